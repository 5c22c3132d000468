"""`understudy certificates`, and the throw-away certificates of `understudy run --tls`. Next: `authority.py`."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from orchestrator.cli import authority
from orchestrator.cli.authority import LOOPBACK_HOSTS, SERVER, Client
from orchestrator.cli.connection import TLS_FOLDER, ClientTls
from orchestrator.cli.errors import CliError
from orchestrator.cli.options import PATH

DAYS = 30
DAYS_MAX = 825
RUN_DAYS = 90
"""For the certificates of one run on this machine, whose authority is forgotten at once."""
FRESH_DAYS = 1
"""A run that is resumed gets new certificates when those it has end within a day."""

PEOPLE = (Client(role="operator"), Client(role="viewer"))
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@-]{0,61}[A-Za-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9*:.-]{1,253}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a folder of certificates is to hold."""

    hosts: tuple[str, ...]
    clients: tuple[Client, ...]
    days: int


@click.command(short_help="Make certificates for TLS between controller, agents and people.")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option(
    "--hosts",
    default="",
    metavar="A,B,...",
    help="Names and addresses under which the controller is reached, beside localhost, 127.0.0.1 and ::1.",
)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NAME",
    help="A certificate with which only this node can register.",
)
@click.option(
    "--operator", "operators", multiple=True, metavar="NAME", help="A certificate for one more operator."
)
@click.option("--viewer", "viewers", multiple=True, metavar="NAME", help="A certificate for one more viewer.")
@click.option(
    "--days", type=click.IntRange(1, DAYS_MAX), default=DAYS, show_default=True, help="How long they count."
)
@click.option("--renew", is_flag=True, help="Replace what DIR holds by certificates for the same names.")
def certificates(
    folder: Path,
    hosts: str,
    nodes: tuple[str, ...],
    operators: tuple[str, ...],
    viewers: tuple[str, ...],
    days: int,
    renew: bool,
) -> None:
    """Make an authority in DIR, and certificates for the controller, its agents, an operator and a viewer.

    For development and small clusters; where there is a certificate authority already, use that one and let each
    client certificate carry the URI spiffe://understudy/ROLE/NAME. Keys are readable by their owner only. Keep ca.key
    off the machines that train: it is needed for making certificates, not for using them.

    \b
    examples:
      understudy certificates tls
      understudy certificates tls --hosts controller.example.org,10.0.0.5 --node node-1 --node node-2
      understudy certificates tls --operator ada        # one more, from the authority that is there
      understudy certificates tls --renew               # again, before they end; nobody has to be restarted

    \b
    then:
      python -m orchestrator ... --tls-ca tls/ca.crt --tls-cert tls/server.crt --tls-key tls/server.key
      python -m worker agent ... --tls-ca tls/ca.crt --tls-cert tls/agent.crt --tls-key tls/agent.key
      understudy nodes ...       --tls-ca tls/ca.crt --tls-cert tls/viewer.crt --tls-key tls/viewer.key
    """
    if renew and (hosts or nodes or operators or viewers):
        raise CliError(
            "--renew takes the names that are there", remedy="add certificates without --renew, then renew"
        )
    _check([*nodes, *operators, *viewers], hosts)
    if renew:
        made = renewed(folder, days)
    else:
        clients = (
            Client(role="agent"),
            *PEOPLE,
            *(Client(role="agent", name=name) for name in nodes),
            *(Client(role="operator", name=name) for name in operators),
            *(Client(role="viewer", name=name) for name in viewers),
        )
        named = tuple(filter(None, (host.strip() for host in hosts.split(","))))
        made = make(folder, Wanted(hosts=(*named, *LOOPBACK_HOSTS), clients=clients, days=days))
    for name in made:
        click.echo(f"{authority.certificate_path(folder, name)}  {authority.key_path(folder, name)}")
    until = authority.ends_at(authority.certificate_path(folder, made[-1]))
    click.echo(
        f"they count until {until:%Y-%m-%d %H:%M} UTC; `understudy certificates {folder} --renew` makes new ones"
    )


def _check(names: Sequence[str], hosts: str) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise CliError(
                f"{name!r} is no name",
                remedy="use letters, digits and . _ @ -, at most 63, for example node-1",
            )
    for host in filter(None, (host.strip() for host in hosts.split(","))):
        if not _HOST.fullmatch(host):
            raise CliError(
                f"--hosts: {host!r} is neither a name nor an address", remedy="write name,10.0.0.5"
            )


def make(folder: Path, wanted: Wanted) -> list[str]:
    """Write what is wanted and is not there yet. Gives the names written. Raises CliError."""
    names = {SERVER: None, **{client.file_name: client for client in wanted.clients}}
    has_authority = authority.certificate_path(folder, authority.CA).exists()
    missing = [name for name in names if not authority.key_path(folder, name).exists()]
    if has_authority and not missing:
        raise CliError(
            f"{folder} holds these certificates already; nothing was written",
            remedy="replace them with --renew, or name another folder",
        )
    if len(missing) < len(names) and not has_authority:
        raise CliError(
            f"{folder} holds keys but no authority; nothing was written", remedy="name another folder"
        )
    with _in_words(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if has_authority:
            signer = authority.read_authority(folder)
        else:
            signer = authority.make_authority(days=DAYS_MAX)
            authority.write(folder, authority.CA, signer, replace=False)
        for name in missing:
            client = names[name]
            pair = (
                authority.issue_server(signer, hosts=wanted.hosts, days=wanted.days)
                if client is None
                else authority.issue_client(signer, client, days=wanted.days)
            )
            authority.write(folder, name, pair, replace=False)
    return missing


def renewed(folder: Path, days: int) -> list[str]:
    """Replace every certificate of the folder by one for the same names. Gives the names written. Raises CliError."""
    if not authority.certificate_path(folder, authority.CA).exists():
        raise CliError(f"{folder} holds no authority to renew from", remedy="leave --renew out to make one")
    with _in_words(folder):
        signer = authority.read_authority(folder)
        names = sorted(path.stem for path in folder.glob("*.crt") if path.stem != authority.CA)
        for name in names:
            old = authority.read_certificate(authority.certificate_path(folder, name))
            authority.write(folder, name, authority.reissue(signer, old, days=days), replace=True)
    return names


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise CliError(
            f"certificates in {folder}: {error}", remedy="mend that, or name another folder"
        ) from error


# ---- of one run ----


def of_a_run(workdir: Path) -> ClientTls:
    """The certificates of a run on this machine, made where there are none that count for another day.

    Their authority's key is never written, so nothing can be signed by it later. Raises CliError.
    """
    folder = workdir / TLS_FOLDER
    names = (SERVER, "agent", "operator")
    with _in_words(folder):
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(days=FRESH_DAYS)
        present = authority.certificate_path(folder, authority.CA).exists()
        if not present or any(
            authority.ends_at(authority.certificate_path(folder, each)) < soon for each in names
        ):
            _make_for_a_run(folder)
    return ClientTls.of_folder(folder, "operator")


def _make_for_a_run(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    signer = authority.make_authority(days=RUN_DAYS)
    server = authority.issue_server(signer, hosts=LOOPBACK_HOSTS, days=RUN_DAYS)
    authority.write(folder, SERVER, server, replace=True)
    for client in (Client(role="agent"), PEOPLE[0]):
        pair = authority.issue_client(signer, client, days=RUN_DAYS)
        authority.write(folder, client.file_name, pair, replace=True)
    authority.write_authority_certificate(folder, signer)
