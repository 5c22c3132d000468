"""TLS of the server: certificates from files, read again when they change, and client certificates asked for.

gRPC asks for the newest certificates before each handshake, so a renewed certificate counts from the next connection
on; connections that are open stay. A change that cannot be used is reported and left alone. Next: `server.py`.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import grpc

from orchestrator.settings import TlsFiles

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often changed files are noticed at most."""

_Fingerprint = tuple[tuple[int, int, int], ...]


class TlsError(Exception):
    """Certificate files that cannot be used; the message names the file and the remedy."""


class ServerTls:
    """The certificate files of a server. `mutual`: clients must show a certificate of the same CA."""

    def __init__(
        self, files: TlsFiles, *, mutual: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises TlsError when the files cannot be used now."""
        self._files = files
        self.mutual = mutual
        self._clock = clock
        self._guard = threading.Lock()
        self._seen = self._fingerprint()
        self._first = self._read()
        self._looked_at = clock()

    def credentials(self) -> grpc.ServerCredentials:
        """What a port is opened with."""
        newest = cast(Callable[[], grpc.ServerCertificateConfiguration], self._newest)  # it may give None
        return grpc.dynamic_ssl_server_credentials(self._first, newest, self.mutual)

    def _newest(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked by gRPC before each handshake, on threads of its own; None keeps what there is."""
        with self._guard:
            now = self._clock()
            if now - self._looked_at < LOOK_SECONDS:
                return None
            self._looked_at = now
            try:
                seen = self._fingerprint()
                if seen == self._seen:
                    return None
                read = self._read()
                if self._fingerprint() != seen:
                    return None  # in the middle of a change: the next handshake sees the end of it
            except TlsError as error:
                log.error("%s; the certificate from before goes on to count", error)
                return None
            self._seen = seen
        log.info("the certificate in %s has changed and counts from now on", self._files.certificate)
        return read

    def _read(self) -> grpc.ServerCertificateConfiguration:
        files = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(files.certificate, files.key)
        except (ssl.SSLError, OSError) as error:
            raise TlsError(
                f"certificate {files.certificate} and key {files.key} cannot be used: {_words(error)}. Make "
                "a pair with `understudy certificates DIR`"
            ) from error
        try:
            context.load_verify_locations(files.ca)
            pair = (Path(files.key).read_bytes(), Path(files.certificate).read_bytes())
            return grpc.ssl_server_certificate_configuration([pair], Path(files.ca).read_bytes())
        except (ssl.SSLError, OSError) as error:
            raise TlsError(f"CA {files.ca} cannot be used: {_words(error)}") from error

    def _fingerprint(self) -> _Fingerprint:
        found = []
        for path in (self._files.ca, self._files.certificate, self._files.key):
            try:
                status = os.stat(path)  # noqa: PTH116 (one call, one moment)
            except OSError as error:
                raise TlsError(f"{path}: {_words(error)}") from error
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)


def _words(error: OSError) -> str:
    return error.strerror or str(error)
