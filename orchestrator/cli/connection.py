"""How a controller is found and asked: flags, environment, work directory; one gRPC stub; errors in words.

`find_controller` decides whom to ask, `Admin` asks. Nothing is retried here: `watch.py` follows a controller over
its restarts. Next: `lists.py` and `control.py`, the commands.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, cast

import grpc

from orchestrator.cli import workdir as workdirs
from orchestrator.cli.errors import CliError, ExitCode
from protos import admin_pb2, admin_pb2_grpc

ENVIRONMENT = "UNDERSTUDY_CONTROLLER"
TOKEN_ENVIRONMENT = "UNDERSTUDY_TOKEN_FILE"
BARE_TOKEN_ENVIRONMENT = "UNDERSTUDY_TOKEN"
TLS_FOLDER = "tls"
"""In a work directory: the certificates of a run with --tls."""
ASK_SECONDS = 10.0
"""A controller that does not answer a question for this long is called unreachable."""

_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long a connection may take to come about, too: a forward is slow.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)

_TLS_WORDS = ("handshake failed", "handshake read failed", "ssl", "certificate", "security")
"""Words in gRPC's own messages about a TLS connection that did not come about; TCP has a "handshaker" there too."""
_NOBODY_THERE = ("failed to connect", "connection", "socket", "goaway", "dns", "channel", "handshaker")
"""Words in gRPC's own messages about a peer that is not there."""

_LASTING = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)

_Reply = TypeVar("_Reply")


class ViewStream(Protocol):
    """A running WatchJob call."""

    def __iter__(self) -> Iterator[admin_pb2.JobView]: ...

    def cancel(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to ask, and who said so."""

    address: str
    origin: str
    workdir: Path | None = None
    tls: ClientTls | None = None
    """What its work directory, or its job object, holds for callers."""
    token: str = field(default="", repr=False)
    """What it asks for, where that was found out with the address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """The files of a caller: the authority that it trusts, and, where it is asked for one, its own certificate."""

    ca: Path | bytes
    """A file, or what would be in it."""
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""
    """Whom the controller's certificate must name, where it is reached by another address."""

    @classmethod
    def of_folder(cls, folder: Path, name: str) -> ClientTls:
        """As `understudy certificates` lays them out."""
        return cls(ca=folder / "ca.crt", certificate=folder / f"{name}.crt", key=folder / f"{name}.key")

    def options(self) -> tuple[tuple[str, str], ...]:
        """Of the channel."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises CliError."""
        try:
            certificate = self.certificate.read_bytes() if self.certificate else None
            key = self.key.read_bytes() if self.key else None
            authority = self.ca if isinstance(self.ca, bytes) else self.ca.read_bytes()
            return grpc.ssl_channel_credentials(authority, key, certificate)
        except OSError as error:
            raise CliError(
                f"{error.filename} cannot be read: {error.strerror}",
                remedy="name other files with --tls-ca, --tls-cert and --tls-key",
            ) from error


def find_controller(controller: str | None, directory: Path | None, environment: str | None) -> Target:
    """`--controller`, else `--workdir`, else the environment. Raises CliError that says how to name one."""
    if controller and directory:
        raise CliError("--controller and --workdir both name a controller", remedy="give one of them")
    if controller:
        return Target(address=_address(controller, "--controller"), origin="--controller")
    if directory:
        return _controller_of(directory)
    if environment:
        return Target(address=_address(environment, ENVIRONMENT), origin=ENVIRONMENT)
    found = workdirs.newest(Path(workdirs.DEFAULT_PARENT))
    example = f"--workdir {found}" if found else "--workdir DIR"
    raise CliError(
        "which controller? None was named",
        remedy=f"add {example} (the directory that `understudy run` printed), or --controller HOST:PORT, "
        f"or set {ENVIRONMENT}=HOST:PORT",
    )


def _controller_of(directory: Path) -> Target:
    record = workdirs.read_controller(directory)
    if record is None:
        raise CliError(
            f"{directory} has no {workdirs.CONTROLLER_FILE}: no controller has run there",
            remedy="give the directory that `understudy run` printed at its start",
        )
    folder = directory / TLS_FOLDER
    return Target(
        address=record.address,
        origin=str(directory / workdirs.CONTROLLER_FILE),
        workdir=directory,
        tls=ClientTls.of_folder(folder, "operator") if record.tls and folder.is_dir() else None,
    )


def is_gone(target: Target) -> bool:
    """True when the controller of a work directory has ended: what it kept can be read instead."""
    return target.workdir is not None and not workdirs.controller_alive(target.workdir)


def read_token(path: Path | None) -> str:
    """The token in a file, else in the environment; empty without one. Raises CliError."""
    if path is None:
        return os.environ.get(BARE_TOKEN_ENVIRONMENT, "").strip()
    try:
        return path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(
            f"the token file {path} cannot be read: {error}", remedy="name another --token-file"
        ) from error


def _address(text: str, origin: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise CliError(
            f"{origin}: {text!r} is not an address", remedy="write HOST:PORT, for example 127.0.0.1:7400"
        )
    return text


class Admin:
    """The controller's Admin service. Every method either answers or raises CliError."""

    def __init__(self, target: Target, token: str = "", tls: ClientTls | None = None) -> None:
        """Without `tls`, that of the work directory where its controller speaks TLS. Raises CliError."""
        self.target = target
        tls = tls or target.tls
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = (
            grpc.insecure_channel(target.address, options=_CHANNEL_OPTIONS)
            if tls is None
            else grpc.secure_channel(
                target.address, tls.credentials(), options=(*_CHANNEL_OPTIONS, *tls.options())
            )
        )
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def nodes(self) -> list[admin_pb2.Node]:
        request = admin_pb2.ListNodesRequest()
        return list(self._ask(self._stub.ListNodes, request, admin_pb2.ListNodesReply).nodes)

    def experts(self) -> list[admin_pb2.Expert]:
        request = admin_pb2.ListExpertsRequest()
        return list(self._ask(self._stub.ListExperts, request, admin_pb2.ListExpertsReply).experts)

    def jobs(self) -> list[admin_pb2.Job]:
        request = admin_pb2.ListJobsRequest()
        return list(self._ask(self._stub.ListJobs, request, admin_pb2.ListJobsReply).jobs)

    def incidents(self) -> list[admin_pb2.Incident]:
        request = admin_pb2.ListIncidentsRequest()
        return list(self._ask(self._stub.ListIncidents, request, admin_pb2.ListIncidentsReply).incidents)

    def events(self, *, after: int, limit: int, kind: str) -> list[admin_pb2.Event]:
        request = admin_pb2.ListEventsRequest(after_sequence=after, limit=limit, kind=kind)
        return list(self._ask(self._stub.ListEvents, request, admin_pb2.ListEventsReply).events)

    def checkpoints(self) -> list[admin_pb2.Checkpoint]:
        request = admin_pb2.ListCheckpointsRequest()
        return list(
            self._ask(self._stub.ListCheckpoints, request, admin_pb2.ListCheckpointsReply).checkpoints
        )

    def snapshots(self) -> list[admin_pb2.HeldSnapshot]:
        request = admin_pb2.ListSnapshotsRequest()
        return list(self._ask(self._stub.ListSnapshots, request, admin_pb2.ListSnapshotsReply).snapshots)

    def audit(self, *, after: int, limit: int) -> list[admin_pb2.AuditEntry]:
        request = admin_pb2.ListAuditRequest(after_sequence=after, limit=limit)
        return list(self._ask(self._stub.ListAudit, request, admin_pb2.ListAuditReply).entries)

    def generation(self) -> admin_pb2.GetGenerationReply:
        request = admin_pb2.GetGenerationRequest()
        return self._ask(self._stub.GetGeneration, request, admin_pb2.GetGenerationReply)

    def explain(self, incident: str) -> admin_pb2.ExplainIncidentReply:
        request = admin_pb2.ExplainIncidentRequest(incident=incident)
        return self._ask(self._stub.ExplainIncident, request, admin_pb2.ExplainIncidentReply)

    def drain(self, node: str, by: str) -> str:
        return self._command(self._stub.Drain, admin_pb2.NodeCommand(node=node, by=by))

    def cordon(self, node: str, by: str) -> str:
        return self._command(self._stub.Cordon, admin_pb2.NodeCommand(node=node, by=by))

    def uncordon(self, node: str, by: str) -> str:
        return self._command(self._stub.Uncordon, admin_pb2.NodeCommand(node=node, by=by))

    def take_checkpoint(self, by: str) -> str:
        return self._command(self._stub.TakeCheckpoint, admin_pb2.TakeCheckpointCommand(by=by))

    def stop(self, by: str) -> str:
        return self._command(self._stub.Stop, admin_pb2.StopCommand(by=by))

    def shutdown(self, by: str, *, force: bool) -> str:
        return self._command(self._stub.Shutdown, admin_pb2.ShutdownRequest(force=force, by=by))

    def summary(self) -> str:
        """The JSON text of the summary."""
        return self._ask(self._stub.Summarize, admin_pb2.SummarizeRequest(), admin_pb2.SummarizeReply).json

    def watch(self, interval_seconds: float) -> ViewStream:
        """The stream of views. Raises grpc.RpcError while it is read; `cancel()` ends it from another thread."""
        request = admin_pb2.WatchJobRequest(interval_seconds=interval_seconds)
        return cast(ViewStream, self._stub.WatchJob(request, metadata=self._metadata))

    def _command(self, method: Callable[..., object], request: object) -> str:
        return self._ask(method, request, admin_pb2.CommandReply).message

    def _ask(self, method: Callable[..., object], request: object, kind: type[_Reply]) -> _Reply:
        try:
            reply = method(request, timeout=ASK_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            raise remote_error(self.target, error) from error
        assert isinstance(reply, kind), reply
        return reply


def remote_error(target: Target, error: grpc.RpcError) -> CliError:
    """What a failed call means for the person who made it."""
    call = cast(grpc.Call, error)
    code, details = call.code(), call.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and any(word in details.lower() for word in _TLS_WORDS):
        return CliError(
            f"no TLS connection with {target.address} (from {target.origin}): {_last_words(details)}",
            remedy="name its authority with --tls-ca, and a certificate of it with --tls-cert and --tls-key",
            exit_code=ExitCode.FAILED,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED or is_unreachable(error):
        return _unreachable(target)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return CliError(
            f"what answers at {target.address} (from {target.origin}) is not an Understudy controller of this version",
            remedy="check the address, and use the CLI of the controller's version",
            exit_code=ExitCode.FAILED,
        )
    said = details or code.name
    return CliError(f"the controller at {target.address} refused: {said}", exit_code=ExitCode.FAILED)


def _last_words(details: str) -> str:
    """What gRPC says last about a connection, without the way it took to it."""
    return details.rpartition("last error: ")[2].rpartition(": ")[2] or details


def is_lasting(error: grpc.RpcError) -> bool:
    """True for a refusal that asking again would not change; a database that is away or a full inbox will pass."""
    return cast(grpc.Call, error).code() in _LASTING


def is_unreachable(error: grpc.RpcError) -> bool:
    """True when nobody was there; a controller that answers `UNAVAILABLE` itself says so in words of its own."""
    call = cast(grpc.Call, error)
    details = (call.details() or "").lower()
    return call.code() is grpc.StatusCode.UNAVAILABLE and any(words in details for words in _NOBODY_THERE)


def _unreachable(target: Target) -> CliError:
    message = f"no controller answers at {target.address} (from {target.origin})"
    directory = target.workdir
    if directory is None:
        remedy = (
            "check the address, that the controller runs (`python -m orchestrator` prints where it listens), and "
            "whether it speaks TLS (--tls-ca) and asks for a certificate (--tls-cert, --tls-key)"
        )
    elif workdirs.controller_alive(directory):
        remedy = (
            f"it may be starting: try again in a moment; its log is {directory / workdirs.CONTROLLER_LOG}"
        )
    else:
        message = f"the controller of {directory} is not running any more"
        remedy = f"go on with `understudy run --resume {directory}`; what it left is in {directory}"
    return CliError(message, remedy=remedy, exit_code=ExitCode.FAILED)
