"""What gRPC says about a connection that did not come about is told as what it is: TLS, or nobody there."""

from __future__ import annotations

import grpc
import pytest

from orchestrator.cli.connection import Target, remote_error

TARGET = Target(address="127.0.0.1:7400", origin="--controller")
NO_ADDRESS = "failed to connect to all addresses; last error: "


class Failed(grpc.RpcError):
    """A call that ended in `UNAVAILABLE`, with words that gRPC has been seen to use."""

    def __init__(self, details: str) -> None:
        super().__init__()
        self._details = details

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize(
    "details",
    [
        NO_ADDRESS
        + "UNKNOWN: ipv4:127.0.0.1:7400: Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: "
        "error:100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER",
        NO_ADDRESS + "UNKNOWN: ipv4:127.0.0.1:7400: Ssl handshake failed: CERTIFICATE_VERIFY_FAILED",
        NO_ADDRESS
        + "UNAVAILABLE: ipv4:127.0.0.1:7400: Handshake read failed (recvmsg:Connection reset by peer)",
    ],
)
def test_a_failed_handshake_of_tls_is_one(details: str) -> None:
    told = remote_error(TARGET, Failed(details))
    assert "no TLS connection with 127.0.0.1:7400" in str(told)
    assert "--tls-ca" in told.remedy


@pytest.mark.parametrize(
    "details",
    [
        NO_ADDRESS + "UNKNOWN: ipv4:127.0.0.1:7400: tcp handshaker shutdown",
        NO_ADDRESS
        + "UNKNOWN: ipv4:127.0.0.1:7400: connection attempt timed out before receiving SETTINGS frame",
        NO_ADDRESS + "UNAVAILABLE: ipv4:127.0.0.1:7400: recvmsg:Connection reset by peer (104)",
        NO_ADDRESS + "UNKNOWN: ipv4:127.0.0.1:7400: Failed to connect to remote host: Connection refused",
        "tcp handshaker shutdown",
        "Socket closed",
    ],
)
def test_a_peer_that_is_not_there_has_nothing_to_do_with_tls(details: str) -> None:
    told = remote_error(TARGET, Failed(details))
    assert "no controller answers at 127.0.0.1:7400" in str(told)
