"""Where the controller of a run is to listen: looked at before anything is written or started.

The controller finds out for certain, and it alone knows who may listen where; here is what a person can mend at once, a
port that somebody holds or an address that is none of ours. Next: `launch.py`, which starts the controller.
"""

from __future__ import annotations

import socket

from orchestrator.cli.errors import CliError

_REMEDY = "write HOST:PORT, for example 127.0.0.1:7400 (port 0 picks a free one)"


def refuse_unlistenable(said: str) -> None:
    """Raises CliError for an address that is none, or that cannot be listened on now."""
    host, colon, port = said.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise CliError(f"--listen: {said!r} is not an address", remedy=_REMEDY)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise CliError(
            f"--listen: {said!r} cannot be listened on: {error.strerror or error}",
            remedy="name another address (port 0 picks a free one), or end the process that holds it",
        ) from error
