"""Certificates for tests, made once for a session by the very code that people use, and the clients that show them."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from orchestrator.cli import authority, certificates
from orchestrator.cli.authority import Client
from orchestrator.cli.certificates import Wanted
from orchestrator.cli.connection import ClientTls
from orchestrator.settings import TlsFiles

NODE = "node-1"


@pytest.fixture(scope="session")
def tls_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with a server, an operator, a viewer, an agent of any node and one of node-1."""
    folder = tmp_path_factory.mktemp("tls")
    clients = (
        Client(role="agent"),
        Client(role="agent", name=NODE),
        *certificates.PEOPLE,
        Client(role="nonsense"),
    )
    certificates.make(folder, Wanted(hosts=("localhost", "127.0.0.1"), clients=clients, days=1))
    return folder


def server_files(folder: Path) -> TlsFiles:
    return TlsFiles(
        ca=str(authority.certificate_path(folder, authority.CA)),
        certificate=str(authority.certificate_path(folder, authority.SERVER)),
        key=str(authority.key_path(folder, authority.SERVER)),
    )


def shown(folder: Path, name: str) -> grpc.ChannelCredentials:
    """What a client shows that has the certificate of this name; empty for one that has none."""
    tls = ClientTls.of_folder(folder, name)
    return (tls if name else ClientTls(ca=tls.ca)).credentials()
