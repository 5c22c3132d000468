"""What a controller process was told: command line and environment, read once, checked, frozen.

Only form is checked here (numbers, addresses, folders that can be written). Whether the work directory holds another
job is found out by `app.py`, which is handed the result. Nothing is created here.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

LISTEN_VARIABLE = "UNDERSTUDY_LISTEN"
DATABASE_VARIABLE = "UNDERSTUDY_DATABASE"
TOKEN_FILE_VARIABLE = "UNDERSTUDY_TOKEN_FILE"
TOKEN_VARIABLE = "UNDERSTUDY_TOKEN"
ACCESS_FILE_VARIABLE = "UNDERSTUDY_ACCESS_FILE"
TLS_CA_VARIABLE = "UNDERSTUDY_TLS_CA"
TLS_CERT_VARIABLE = "UNDERSTUDY_TLS_CERT"
TLS_KEY_VARIABLE = "UNDERSTUDY_TLS_KEY"
SECRETS_VARIABLES = (
    TOKEN_FILE_VARIABLE,
    TOKEN_VARIABLE,
    TLS_CA_VARIABLE,
    TLS_CERT_VARIABLE,
    TLS_KEY_VARIABLE,
)
"""What one program must not hand on to another one: each has its own."""
SCHEMA_VARIABLE = "UNDERSTUDY_DATABASE_SCHEMA"
METRICS_VARIABLE = "UNDERSTUDY_METRICS"
POD_VARIABLE = "POD_NAME"
"""In a pod: its own name, by the downward API."""
IMAGE_VARIABLE = "UNDERSTUDY_IMAGE"
"""In a pod: the image of the pods that it makes."""
AGENT_PREFIX_VARIABLE = "UNDERSTUDY_AGENT_PREFIX"
DATABASE_FILE = "controller.db"
TOKEN_LENGTH = 16
"""Shorter tokens can be guessed."""

_SCHEMA = re.compile(r"[a-z][a-z0-9_]{0,62}")

_DESCRIPTION = """\
The controller of one job: starts an agent for each node, watches them, decides what to do when one fails, and answers
the `understudy` commands over gRPC. It holds no tensors and training does not wait for it: stop it or kill it, the
nodes train on, and a controller started again on the same work directory takes over where this one left off.
Most people start it with `understudy run JOB.yaml`."""

_EPILOG = """\
examples:
  a new job, its files in runs/moe:
      python -m orchestrator --job examples/stdlib-moe.yaml --set steps=500 --workdir runs/moe
  the same controller again, after it was killed (the job comes from the database):
      python -m orchestrator --workdir runs/moe
  go on with a job that has stopped or finished, for more steps, from its newest checkpoint:
      python -m orchestrator --workdir runs/moe --resume --job examples/stdlib-moe.yaml --set steps=1000

in the work directory:
  controller.json      address, pid, started_at and job of the newest controller
  controller.db        jobs, nodes, generations, incidents, checkpoints, events, unfinished actions
  metrics.jsonl        the ledger: one line for each committed step
  tensorboard/         curves: event files of what is committed
  checkpoints/         sealed checkpoints
  nodes/, logs/        which agents were started here, and what they said

signals: SIGTERM and SIGINT end this process in order and leave the nodes training; `understudy shutdown` ends all.
exit codes: 0 ended in order, 1 a bug or an action that failed for good (with --exit-when-done also: the job failed),
            2 bad input, 3 the database or the ledger failed, 4 another controller holds the lease of this database"""


class ExitCode(IntEnum):
    """With which status the process ends."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    STORE_FAILED = 3
    LEASE_HELD = 4
    INTERRUPTED = 130
    """Told to end before it served."""


class SettingsError(Exception):
    """Input that nothing can be started with: what it is about, what it holds, what to do instead."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(f"{field}: {remedy}" if value is None else f"{field}: {str(value)!r}: {remedy}")
        self.field = field
        self.value = value
        self.remedy = remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files of one end of a connection, as absolute paths."""

    ca: str
    """Who vouches for the other end."""
    certificate: str = ""
    """What this end shows; a caller may show nothing."""
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One controller process."""

    workdir: Path
    """Absolute; may not exist yet."""
    host: str = "127.0.0.1"
    port: int = 0
    """0: the port that this work directory's last controller had, else a free one."""
    database: str
    """SQLAlchemy URL."""
    job_file: str | None = None
    overrides: tuple[str, ...] = ()
    resume: bool = False
    token: str = field(default="", repr=False)
    token_file: str = ""
    """Handed to the agents that are started here; without an access file its token is also the one that counts."""
    access_file: str = ""
    tls: TlsFiles | None = None
    client_certificates: bool = True
    """With TLS: callers must show a certificate of the CA."""
    agent_tls: TlsFiles | None = None
    """What agents that are started here show the controller."""
    allow_open: bool = False
    """Serve other machines although nobody is asked who it is."""
    agent_prefix: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """Of agents that are started here, as NODES:NAME=VALUE."""
    """Words before the command line of each agent, {node} in them for the node's name."""
    exit_when_done: bool = False
    starts_agents: bool = True
    """False where somebody else does, and this process only waits for them."""
    job_object: tuple[str, str] | None = None
    """Namespace and name of the MoETrainingJob whose nodes are pods."""
    standby: bool = False
    """Wait for as long as another controller is in charge, and begin again after whatever passes."""
    metrics: tuple[str, int] | None = None
    """Where Prometheus and probes ask; None for nowhere."""
    database_schema: str = ""


def default_database(workdir: Path) -> str:
    """URL of the database that lives in the work directory."""
    return f"sqlite:///{workdir / DATABASE_FILE}"


def parser() -> argparse.ArgumentParser:
    """The command line, with its teaching."""
    made = argparse.ArgumentParser(
        prog="python -m orchestrator",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--workdir", metavar="DIR", required=True, help="folder of the job; made when it is not there"
    )
    made.add_argument(
        "--job", metavar="FILE", help="job file (YAML); not needed when DIR holds the job already"
    )
    made.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="override a field of the job file, for example model.width=256; may be repeated",
    )
    made.add_argument("--resume", action="store_true", help="go on with the job of DIR although it has ended")
    made.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help=f"address of the gRPC server (default 127.0.0.1:0, where 0 is the port of the last time or a free one; "
        f"environment: {LISTEN_VARIABLE})",
    )
    made.add_argument(
        "--database",
        metavar="URL",
        help=f"SQLAlchemy URL (default: sqlite, DIR/{DATABASE_FILE}; environment: {DATABASE_VARIABLE})",
    )
    made.add_argument(
        "--token-file",
        metavar="FILE",
        help="file with a shared token, which lets in to everything; with --access-file only the token for the agents "
        f"that are started here (environment: {TOKEN_FILE_VARIABLE})",
    )
    _describe_security(made)
    _describe_nodes(made)
    _describe_service(made)
    made.add_argument(
        "--exit-when-done",
        action="store_true",
        help="end nodes and controller when the job ends; else stay and answer",
    )
    return made


def _describe_nodes(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--agent-prefix",
        metavar="WORDS",
        help="words before the command line of each agent, {node} in them for the node's name, such as "
        f"'ip netns exec {{node}}'; what they name must become the agent by exec (environment: "
        f"{AGENT_PREFIX_VARIABLE})",
    )
    made.add_argument(
        "--label",
        dest="labels",
        metavar="NODES:NAME=VALUE",
        action="append",
        default=[],
        help="say where nodes that are started here stand, for example 'node-1,node-2:rack=a' or 'node-*:zone=z1'; "
        "cluster.spread_over names the labels that are failure domains; may be repeated, the last word counts",
    )
    made.add_argument(
        "--agents",
        choices=("here", "elsewhere", "kubernetes"),
        default="here",
        help="here (default): start an agent on this machine for each node; elsewhere: somebody else starts them "
        "(Slurm, ssh), wait until they register; kubernetes: as pods of a MoETrainingJob (--job-object)",
    )


def _describe_service(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--job-object",
        metavar="NAMESPACE/NAME",
        help="with --agents kubernetes: the MoETrainingJob that says what to train and how its pods are to be",
    )
    made.add_argument(
        "--standby",
        action="store_true",
        help="while another controller is in charge, wait instead of ending; after a failure of the database, begin "
        "again instead of ending",
    )
    made.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        help=f"serve Prometheus metrics at /metrics and a probe at /healthz (environment: {METRICS_VARIABLE})",
    )
    made.add_argument(
        "--database-schema",
        metavar="NAME",
        help="with PostgreSQL: keep the tables in this schema, which is made, so that many jobs share a database "
        f"(environment: {SCHEMA_VARIABLE})",
    )


def _describe_security(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--access-file",
        metavar="FILE",
        help="who may do what: a line for each token or certificate, written by `understudy token` and read again when "
        f"it changes (environment: {ACCESS_FILE_VARIABLE})",
    )
    made.add_argument(
        "--tls-cert",
        metavar="FILE",
        help="serve mutual TLS with this certificate; renewed files count from the next connection on "
        f"(environment: {TLS_CERT_VARIABLE})",
    )
    made.add_argument(
        "--tls-key", metavar="FILE", help=f"key of that certificate (environment: {TLS_KEY_VARIABLE})"
    )
    made.add_argument(
        "--tls-ca",
        metavar="FILE",
        help=f"the CA whose certificates callers must show (environment: {TLS_CA_VARIABLE})",
    )
    made.add_argument(
        "--no-client-certificates",
        action="store_true",
        help="ask callers for no certificate: TLS alone, and tokens to tell who they are",
    )
    made.add_argument(
        "--agent-tls-cert", metavar="FILE", help="certificate for the agents that are started here"
    )
    made.add_argument("--agent-tls-key", metavar="FILE", help="key of that certificate")
    made.add_argument(
        "--allow-open",
        action="store_true",
        help="serve other machines although neither tokens nor client certificates are asked for: whoever reaches the "
        "port is in command",
    )


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from a command line and an environment. Raises SettingsError; argparse exits with 2 by itself."""
    said = parser().parse_args(arguments)
    workdir = _workdir(said.workdir)
    host, port = _listen(said.listen or environment.get(LISTEN_VARIABLE) or "127.0.0.1:0")
    if said.overrides and not said.job:
        raise SettingsError(
            "--set", " ".join(said.overrides), "overrides a job file: name it with --job FILE"
        )
    tls = _tls(said, environment)
    token_file = said.token_file or environment.get(TOKEN_FILE_VARIABLE) or ""
    return Settings(
        workdir=workdir,
        host=host,
        port=port,
        database=said.database or environment.get(DATABASE_VARIABLE) or default_database(workdir),
        job_file=said.job,
        overrides=tuple(said.overrides),
        resume=said.resume,
        token=_token(token_file) if token_file else "",
        token_file=_absolute(token_file),
        access_file=_absolute(said.access_file or environment.get(ACCESS_FILE_VARIABLE) or ""),
        tls=tls,
        client_certificates=not said.no_client_certificates,
        agent_tls=_agent_tls(said, tls),
        allow_open=said.allow_open,
        agent_prefix=_prefix(said.agent_prefix or environment.get(AGENT_PREFIX_VARIABLE) or ""),
        labels=_labels(said),
        exit_when_done=said.exit_when_done,
        starts_agents=said.agents == "here",
        job_object=_job_object(said),
        standby=said.standby,
        metrics=_metrics(said.metrics or environment.get(METRICS_VARIABLE) or ""),
        database_schema=_schema(said.database_schema or environment.get(SCHEMA_VARIABLE) or ""),
    )


def _labels(said: argparse.Namespace) -> tuple[str, ...]:
    if said.labels and said.agents != "here":
        raise SettingsError(
            "--label", said.labels[0], "is for agents that are started here: others say their own"
        )
    return tuple(said.labels)


def _job_object(said: argparse.Namespace) -> tuple[str, str] | None:
    if (said.agents == "kubernetes") != bool(said.job_object):
        raise SettingsError("--job-object", said.job_object, "goes together with --agents kubernetes")
    if not said.job_object:
        return None
    if said.job:
        raise SettingsError("--job", said.job, "the job comes from --job-object: leave it out")
    namespace, slash, name = said.job_object.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise SettingsError(
            "--job-object", said.job_object, "write NAMESPACE/NAME, for example understudy/moe"
        )
    return namespace, name


def _metrics(said: str) -> tuple[str, int] | None:
    return read_address("--metrics", said, "0.0.0.0:9400") if said else None


def _schema(said: str) -> str:
    if said and not _SCHEMA.fullmatch(said):
        remedy = "a lower-case letter, then lower-case letters, digits and '_', at most 63"
        raise SettingsError("--database-schema", said, remedy)
    return said


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path else ""


def _tls(said: argparse.Namespace, environment: Mapping[str, str]) -> TlsFiles | None:
    files = {
        "--tls-ca": said.tls_ca or environment.get(TLS_CA_VARIABLE) or "",
        "--tls-cert": said.tls_cert or environment.get(TLS_CERT_VARIABLE) or "",
        "--tls-key": said.tls_key or environment.get(TLS_KEY_VARIABLE) or "",
    }
    if not any(files.values()):
        if said.no_client_certificates:
            raise SettingsError(
                "--no-client-certificates", None, "is of use with --tls-cert and --tls-key only"
            )
        return None
    for option, value in files.items():
        if not value:
            raise SettingsError(
                option, None, f"{', '.join(files)} go together: `understudy certificates DIR` makes all three"
            )
    ca, certificate, key = (_absolute(value) for value in files.values())
    return TlsFiles(ca=ca, certificate=certificate, key=key)


def _agent_tls(said: argparse.Namespace, tls: TlsFiles | None) -> TlsFiles | None:
    """What agents that are started here need to find and to convince us."""
    certificate, key = said.agent_tls_cert or "", said.agent_tls_key or ""
    if bool(certificate) != bool(key):
        raise SettingsError("--agent-tls-cert", certificate or None, "goes together with --agent-tls-key")
    if tls is None:
        if certificate:
            raise SettingsError(
                "--agent-tls-cert", certificate, "is of use with --tls-ca, --tls-cert and --tls-key only"
            )
        return None
    return TlsFiles(ca=tls.ca, certificate=_absolute(certificate), key=_absolute(key))


def _prefix(said: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(said))
    except ValueError as error:
        raise SettingsError("--agent-prefix", said, f"cannot be split into words ({error})") from error


def _workdir(said: str) -> Path:
    """The folder itself, or the nearest one above it, must be one that we may write to."""
    folder = Path(said).expanduser().absolute()
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise SettingsError("--workdir", said, f"{existing} is not a folder: name another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SettingsError("--workdir", said, f"no permission to write to {existing}: name another one")
    return folder


def _listen(said: str) -> tuple[str, int]:
    return read_address("--listen", said, "127.0.0.1:7400")


def read_address(option: str, said: str, example: str) -> tuple[str, int]:
    """Host and port. Raises SettingsError that names the option."""
    host, colon, port = said.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise SettingsError(option, said, f"write HOST:PORT, for example {example} (port 0 picks a free one)")
    return host, int(port)


def _token(path: str) -> str:
    try:
        token = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError("--token-file", path, f"cannot be read: {error}") from error
    if len(token) < TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        remedy = (
            f"must hold one line of at least {TOKEN_LENGTH} printable ASCII characters: openssl rand -hex 32"
        )
        raise SettingsError("--token-file", path, remedy)
    return token
