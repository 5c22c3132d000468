"""The command line of the two programs of a node, read once into frozen values.

`python -m worker agent ...` is started by the cluster (a process launcher, a pod); `python -m worker trainer ...` only
by an agent. Everything about training comes from the job config, not from here. Next: `app.py`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict

NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
LABELS_LIMIT = 64
TOKEN_VARIABLE = "UNDERSTUDY_TOKEN"
TOKEN_FILE_VARIABLE = "UNDERSTUDY_TOKEN_FILE"
TLS_VARIABLES = {"ca": "UNDERSTUDY_TLS_CA", "cert": "UNDERSTUDY_TLS_CERT", "key": "UNDERSTUDY_TLS_KEY"}
DEVICES_LIMIT = 64


class SettingsError(Exception):
    """The command line cannot be used; the message says which argument, and what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    node: str
    controller: str
    """HOST:PORT"""
    workdir: Path
    labels: tuple[tuple[str, str], ...]
    token: str
    """Empty for a controller that asks for none."""
    host: str
    """The address of this node for the trainers of other nodes; empty for the one that leads to the controller."""
    devices: int | None
    """Trainers to start; None takes the number from the job (cluster.devices_per_node)."""
    tls_ca: Path | None = None
    """Whom the controller's certificate must be signed by; None for a connection without TLS."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    fd: int
    """Our end of the socket pair."""
    trainer: str
    start: int
    device: int
    workdir: Path
    bind_host: str
    """The address to listen on for other trainers."""
    parent: int
    """Process id of the agent."""
    slots: tuple[int, ...] = ()
    """Descriptors of the shared memory that snapshots go to."""


def parse(
    arguments: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})
) -> AgentSettings | TrainerSettings:
    """The settings of the program that was asked for. Raises SettingsError; exits by itself only for --help."""
    given = _parser().parse_args(arguments)
    if given.program == "agent":
        return _agent(given, environment)
    return _trainer(given)


def _agent(given: argparse.Namespace, environment: Mapping[str, str]) -> AgentSettings:
    if not NODE_NAME.fullmatch(given.node):
        raise SettingsError(
            f"--node {given.node!r}: a name of letters, digits, '.', '_' and '-', at most 63, such as node-1"
        )
    host, colon, port = given.controller.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise SettingsError(f"--controller {given.controller!r}: write HOST:PORT, such as 127.0.0.1:7070")
    return AgentSettings(
        node=given.node,
        controller=given.controller,
        workdir=_folder(given.workdir),
        labels=_labels(given.label),
        token=_token(given.token_file, environment),
        host=given.host,
        devices=_devices(given.devices),
        **_tls(given, environment),
    )


def _trainer(given: argparse.Namespace) -> TrainerSettings:
    node, slash, device = given.trainer.rpartition("/")
    if not (node and slash and device.isascii() and device.isdigit()):
        raise SettingsError(f"--trainer {given.trainer!r}: write NODE/DEVICE, such as node-1/0")
    return TrainerSettings(
        fd=given.fd,
        trainer=given.trainer,
        start=given.start,
        device=int(device) if given.device is None else given.device,
        workdir=_folder(given.workdir),
        bind_host=given.bind_host,
        parent=given.parent,
        slots=_slots(given.slots),
    )


def _slots(given: str) -> tuple[int, ...]:
    numbers = given.split(",") if given else []
    if not all(each.isascii() and each.isdigit() for each in numbers):
        raise SettingsError(f"--slots {given!r}: write descriptor numbers, such as 7,8")
    return tuple(map(int, numbers))


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--workdir {path}: cannot be made ({error.strerror})") from error
    return path.resolve()


def _labels(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """One without a value is left out: a template had nothing to fill in."""
    labels: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise SettingsError(f"--label {text!r}: write NAME=VALUE, such as rack=r1")
        if labels.setdefault(name, value) != value:
            raise SettingsError(f"--label {text!r}: {name} is {labels[name]!r} already")
    labels = {name: value for name, value in labels.items() if value}
    if len(labels) > LABELS_LIMIT:
        raise SettingsError(f"--label: {len(labels)} labels, the limit is {LABELS_LIMIT}")
    return tuple(sorted(labels.items()))


class _Tls(TypedDict):
    tls_ca: Path | None
    tls_certificate: Path | None
    tls_key: Path | None


def _tls(given: argparse.Namespace, environment: Mapping[str, str]) -> _Tls:
    said: dict[str, Path | None] = {}
    for name, variable in TLS_VARIABLES.items():
        text = getattr(given, f"tls_{name}") or environment.get(variable)
        said[name] = Path(text) if text else None
    if said["ca"] is None and (said["cert"] or said["key"]):
        raise SettingsError(
            "--tls-ca: missing; a certificate is of no use without the authority of the controller"
        )
    if bool(said["cert"]) != bool(said["key"]):
        raise SettingsError("--tls-cert, --tls-key: give both, or neither")
    for name, path in said.items():
        if path is not None and not path.is_file():
            raise SettingsError(f"--tls-{name} {path}: there is no such file")
    return {"tls_ca": said["ca"], "tls_certificate": said["cert"], "tls_key": said["key"]}


def _token(path: Path | None, environment: Mapping[str, str]) -> str:
    if path is None and environment.get(TOKEN_FILE_VARIABLE):
        path = Path(environment[TOKEN_FILE_VARIABLE])
    if path is None:
        return environment.get(TOKEN_VARIABLE, "").strip()
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"--token-file {path}: {error.strerror}") from error
    if not token:
        raise SettingsError(f"--token-file {path}: the file is empty; it must hold the controller's token")
    return token


def _devices(given: str) -> int | None:
    if given == "auto":
        return None
    if not (given.isascii() and given.isdigit() and 1 <= int(given) <= DEVICES_LIMIT):
        raise SettingsError(f"--devices {given!r}: write a number from 1 to {DEVICES_LIMIT}, or auto")
    return int(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worker",
        description="A node of a training job: its agent, or one of the trainers that the agent starts.",
    )
    programs = parser.add_subparsers(dest="program", required=True, metavar="PROGRAM")
    _describe_agent(
        programs.add_parser(
            "agent",
            help="the node's agent: registers with the controller and supervises the trainers",
            description="Registers this node with the controller, sends heartbeats, starts one trainer per device "
            "and tells them what the controller wants. Reconnects when the controller comes back; ends when the "
            "controller says so, on SIGTERM, or after timeouts.orphan_seconds of the job without a controller.",
            epilog="Exit codes: 0 the job is over or the node was sent home, 1 no controller for too long, "
            "2 the command line or the job config cannot be used, 128+N ended by signal N.",
        )
    )
    _describe_trainer(
        programs.add_parser(
            "trainer",
            help="one trainer, started by its agent (not by hand)",
            description="Trains on one device. Started by an agent, which holds the other end of --fd.",
        )
    )
    return parser


def _describe_agent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", required=True, metavar="NAME", help="this node's name, unique in the job")
    parser.add_argument(
        "--controller", required=True, metavar="HOST:PORT", help="where the controller listens"
    )
    parser.add_argument(
        "--workdir",
        required=True,
        type=Path,
        metavar="DIR",
        help="the job's folder, shared by all nodes: checkpoints and logs (DIR/logs/NODE.DEVICE.log)",
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a fact about the node that people ask for, such as rack=r1; may be given often",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"holds the token, where the controller asks for one (environment: {TOKEN_FILE_VARIABLE})",
    )
    for name, words in (
        ("ca", "certificate of the controller's authority; makes the connection TLS"),
        ("cert", "certificate that this agent shows"),
        ("key", "key of that certificate"),
    ):
        variable = TLS_VARIABLES[name]
        parser.add_argument(f"--tls-{name}", metavar="FILE", help=f"{words} (environment: {variable})")
    parser.add_argument(
        "--host",
        default="",
        metavar="ADDRESS",
        help="this node's address for other nodes' trainers; default: the one that leads to the controller",
    )
    parser.add_argument(
        "--devices",
        default="auto",
        metavar="N",
        help="trainers to start; auto (the default) takes cluster.devices_per_node of the job",
    )


def _describe_trainer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fd", required=True, type=int, metavar="N", help="the inherited socket to the agent"
    )
    parser.add_argument("--trainer", required=True, metavar="NODE/DEVICE", help="the trainer's name")
    parser.add_argument(
        "--start", required=True, type=int, metavar="N", help="processes started for the device"
    )
    parser.add_argument("--device", type=int, metavar="N", help="the device's number; default: from the name")
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="the job's folder")
    parser.add_argument(
        "--bind-host", required=True, metavar="ADDRESS", help="where to listen for other trainers"
    )
    parser.add_argument("--parent", required=True, type=int, metavar="PID", help="the agent's process id")
    parser.add_argument(
        "--slots",
        default="",
        metavar="FD,FD",
        help="shared memory for snapshots, which the agent holds as well",
    )
