"""From what a controller was told to how it is protected: gate and TLS, or a refusal to start. Nothing is served here.

Next: `access.py` and `tls.py`, which do it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from orchestrator.service import whereabouts
from orchestrator.service.access import AccessError, AccessFile, Gate, NotAuthenticated, Proof, Role
from orchestrator.service.tls import ServerTls, TlsError
from orchestrator.settings import Settings, SettingsError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """Who may call, and over what."""

    gate: Gate
    tls: ServerTls | None


def protection(settings: Settings) -> Protection:
    """Gate and TLS of a controller. Raises SettingsError where they cannot be had, or nobody would be kept out."""
    tls = _tls(settings)
    mutual = tls is not None and tls.mutual
    rules = _rules(settings)
    shared = "" if rules is not None else settings.token
    gate = Gate(rules=rules, shared_token=shared, mutual_tls=mutual)
    if rules is not None and settings.token:
        _check_agents_token(gate, settings)
    address = f"[{settings.host}]:" if ":" in settings.host else f"{settings.host}:"
    if not whereabouts.is_loopback(address):
        _look_outside(gate, tls, settings)
    return Protection(gate=gate, tls=tls)


def _tls(settings: Settings) -> ServerTls | None:
    if settings.tls is None:
        return None
    try:
        tls = ServerTls(settings.tls, mutual=settings.client_certificates)
    except TlsError as error:
        raise SettingsError("--tls-cert", settings.tls.certificate, str(error)) from error
    if tls.mutual and not (settings.agent_tls and settings.agent_tls.certificate):
        log.warning(
            "no --agent-tls-cert: agents that this controller starts itself show no certificate and are not let in"
        )
    return tls


def _rules(settings: Settings) -> AccessFile | None:
    if not settings.access_file:
        return None
    try:
        return AccessFile(Path(settings.access_file))
    except AccessError as error:
        raise SettingsError("--access-file", settings.access_file, str(error)) from error


def _check_agents_token(gate: Gate, settings: Settings) -> None:
    """With an access file the token file is only for the agents that are started here, who must be let in with it."""
    try:
        caller = gate.caller(Proof(tokens=(settings.token,)))
    except NotAuthenticated as error:
        remedy = f"its token is not in {settings.access_file}, so the agents that are started here could not register"
        raise SettingsError("--token-file", settings.token_file, remedy) from error
    if Role.AGENT not in caller.roles:
        remedy = f"{caller.identity} is {caller.role}; the agents that are started here need an agent's token"
        raise SettingsError("--token-file", settings.token_file, remedy)


def _look_outside(gate: Gate, tls: ServerTls | None, settings: Settings) -> None:
    """Other machines can reach the port: it must not be open, unless somebody has said so in as many words."""
    where = f"{settings.host}:{settings.port}"
    if gate.open and not settings.allow_open:
        raise SettingsError(
            "--listen",
            where,
            "other machines can reach this address and nobody would be asked who it is: protect it with --tls-ca, "
            "--tls-cert and --tls-key (`understudy certificates DIR`), with --access-file or --token-file, or say "
            "--allow-open if that is what you want",
        )
    if gate.open:
        log.warning("listening on %s with --allow-open: whoever reaches this port is in command", where)
    elif tls is None:
        log.warning("listening on %s without TLS: tokens travel in clear text", where)
