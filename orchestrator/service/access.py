"""Who may do what: roles, the rules that grant them, and how a caller proves who it is.

Rules come from one of three places: nobody (whoever reaches the port may do everything, which is meant for loopback),
one shared token, or an access file with a line for each grant. Certificates of mutual TLS name their role themselves.
Tokens are compared as SHA-256 sums (they are random and long, so a slow hash would add nothing), in constant time.
No gRPC calls here. Next: `interceptors.py`, which asks before every call.
"""

from __future__ import annotations

import calendar
import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

GRANTS_LIMIT = 10_000
"""Lines of an access file."""
LOOK_SECONDS = 1.0
"""How often a changed access file is noticed at most."""
SPIFFE_PREFIX = "spiffe://understudy/"
"""A certificate of ours is called spiffe://understudy/ROLE/NAME; that of an agent may leave NAME out."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@-]{0,61}[A-Za-z0-9])?")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_DAY_SECONDS = 86_400.0


class Role(Enum):
    """What a caller is. Roles are few on purpose; what each may do is `METHODS`."""

    AGENT = "agent"
    VIEWER = "viewer"
    OPERATOR = "operator"


ADMIN = "/understudy.admin.v1.Admin/"
COMMANDS = frozenset(
    ADMIN + name for name in ("Drain", "Cordon", "Uncordon", "TakeCheckpoint", "Stop", "Shutdown")
)
"""What changes something: for operators, and every one lands in the audit log."""
QUESTIONS = frozenset(
    ADMIN + name
    for name in (
        "ListNodes",
        "ListExperts",
        "ListJobs",
        "ListIncidents",
        "ListEvents",
        "ListCheckpoints",
        "ListSnapshots",
        "ListAudit",
        "GetGeneration",
        "ExplainIncident",
        "WatchJob",
        "Summarize",
    )
)
SESSION = "/understudy.worker.v1.Worker/Session"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection."

_EVERYBODY = frozenset(Role)
_READERS = frozenset({Role.VIEWER, Role.OPERATOR})
METHODS: Mapping[str, frozenset[Role]] = {
    **dict.fromkeys(COMMANDS, frozenset({Role.OPERATOR})),
    **dict.fromkeys(QUESTIONS, _READERS),
    SESSION: frozenset({Role.AGENT}),
}
"""Who may call what. A method that is not here is for nobody; health checks and reflection are decided in `allowed`."""


def allowed(method: str) -> frozenset[Role]:
    """The roles that may call a method."""
    return _EVERYBODY if method.startswith(REFLECTION) else METHODS.get(method, frozenset())


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who is calling, as far as it was proved."""

    identity: str
    """`token ada`, `certificate spiffe://understudy/operator/ada`, `shared token`; empty when nothing was asked."""
    name: str
    """The proven name; empty where none is."""
    roles: frozenset[Role]
    nodes: tuple[str, ...] = ()
    """An agent may only speak as a node that is in all of these; empty for any node."""
    peer: str = ""

    @property
    def role(self) -> str:
        """In words, for the audit log."""
        return (
            "everything" if self.roles == _EVERYBODY else "+".join(sorted(role.value for role in self.roles))
        )

    def speaks_for(self, node: str) -> bool:
        """Whether an agent that is this caller may call itself `node`."""
        return all(bound == node for bound in self.nodes)


CALLER: ContextVar[Caller] = ContextVar("caller")
"""Who makes the call that this task answers; set by the interceptor, for every call."""


class NotAuthenticated(Exception):
    """The caller has not proved who it is; the message says what to send."""


class AccessError(Exception):
    """An access file that cannot be used; the message names file, line and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One line of an access file."""

    name: str
    role: Role | None
    """None for `nobody`: who is this is refused, whatever else would let it in."""
    token: str = ""
    """`sha256:HEX` of the token."""
    certificate: str = ""
    """URI of the certificate, or `CN:common name`."""
    node: str = ""
    expires: float | None = None
    """Seconds since the epoch."""

    def living(self, at: float) -> bool:
        return self.expires is None or at < self.expires


class Rules(Protocol):
    """Where grants come from."""

    def grants(self) -> Sequence[Grant]:
        """As they are now."""
        ...


def digest_of(token: str) -> str:
    """How a token is stored."""
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


# ---- the access file ----


def parse(text: str, origin: str) -> tuple[Grant, ...]:
    """The grants of an access file. Raises AccessError with the line that is wrong."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            found.append(_grant(words, f"{origin}:{number}"))
    if len(found) > GRANTS_LIMIT:
        raise AccessError(f"{origin}: {len(found)} grants, the limit is {GRANTS_LIMIT}")
    return tuple(found)


def _grant(words: Sequence[str], place: str) -> Grant:
    known = {role.value: role for role in Role}
    if len(words) < 3 or words[0] not in {*known, "nobody"}:
        raise AccessError(
            f"{place}: write ROLE NAME token=sha256:... or certificate=URI, where ROLE is agent, viewer, operator or "
            "nobody; `understudy token` writes such lines"
        )
    if not _NAME.fullmatch(words[1]):
        raise AccessError(f"{place}: {words[1]!r} is no name: letters, digits and . _ @ -, at most 63")
    values: dict[str, str] = {}
    for word in words[2:]:
        key, equals, value = word.partition("=")
        if key not in {"token", "certificate", "node", "expires"} or not (equals and value) or key in values:
            raise AccessError(
                f"{place}: {word!r}: known are token=, certificate=, node= and expires=, each once"
            )
        values[key] = value
    if ("token" in values) == ("certificate" in values):
        raise AccessError(f"{place}: exactly one of token= and certificate= tells who {words[1]} is")
    if "token" in values and not _DIGEST.fullmatch(values["token"]):
        raise AccessError(f"{place}: token= holds sha256: and 64 hexadecimal digits, never the token itself")
    if "node" in values and words[0] != "agent":
        raise AccessError(f"{place}: node= is for agents")
    return Grant(
        name=words[1],
        role=known.get(words[0]),
        token=values.get("token", ""),
        certificate=values.get("certificate", ""),
        node=values.get("node", ""),
        expires=_day(values["expires"], place) if "expires" in values else None,
    )


def _day(said: str, place: str) -> float:
    """The end of a day in UTC: it is the last one on which the grant counts."""
    try:
        if not _DAY.fullmatch(said):
            raise ValueError(said)
        return calendar.timegm(time.strptime(said, "%Y-%m-%d")) + _DAY_SECONDS
    except (ValueError, OverflowError) as error:
        raise AccessError(f"{place}: expires={said} is not a day: write it as 2027-01-31") from error


class AccessFile:
    """An access file that is read again when it changes; a broken change is reported, and what was read before counts.

    That makes rotation a matter of two edits: add the new line, hand the token out, remove the old line.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises AccessError when the file cannot be used now."""
        self._path = path
        self._clock = clock
        self._seen = self._fingerprint()
        self._grants = parse(_text(path), str(path))
        self._looked_at = clock()
        if not self._grants:
            raise AccessError(f"{path}: grants nothing to anybody: add a line with `understudy token`")

    def grants(self) -> Sequence[Grant]:
        now = self._clock()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._look()
        return self._grants

    def _look(self) -> None:
        try:
            seen = self._fingerprint()
            if seen == self._seen:
                return
            self._seen = seen
            self._grants = parse(_text(self._path), str(self._path))
            log.info("%s has changed: %d grants", self._path, len(self._grants))
        except AccessError as error:
            log.error("%s; what it said before goes on to count", error)

    def _fingerprint(self) -> tuple[int, int, int]:
        try:
            status = os.stat(self._path)  # noqa: PTH116 (one call, one moment)
        except OSError as error:
            raise AccessError(f"{self._path}: {error.strerror}") from error
        return status.st_mtime_ns, status.st_size, status.st_ino


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(f"{path} cannot be read: {error}") from error


# ---- who it is ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a call brings along to prove who makes it."""

    tokens: tuple[str, ...] = ()
    """Of `authorization: Bearer TOKEN`."""
    common_name: str = ""
    names: tuple[str, ...] = ()
    """Subject alternative names of the client's certificate, already verified by TLS."""
    peer: str = ""


class Gate:
    """Tells who a caller is. Without rules, a shared token or mutual TLS, everybody is everything."""

    def __init__(
        self,
        *,
        rules: Rules | None = None,
        shared_token: str = "",
        mutual_tls: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._shared = digest_of(shared_token) if shared_token else ""
        self._mutual_tls = mutual_tls
        self._clock = clock

    @property
    def open(self) -> bool:
        """Nobody is asked who it is."""
        return not (self._rules is not None or self._shared or self._mutual_tls)

    def caller(self, proof: Proof) -> Caller:
        """Who makes a call. A token that is sent must be right; a certificate alone is enough where TLS asks for one.

        Raises NotAuthenticated.
        """
        if self.open:
            return Caller(identity="", name="", roles=_EVERYBODY, peer=proof.peer)
        at = self._clock()
        grants = self._rules.grants() if self._rules is not None else ()
        certified = self._certified(proof, grants, at)
        if proof.tokens and (self._shared or grants):
            return self._by_token(proof, grants, at, certified)
        if certified is None or not certified.roles:
            raise NotAuthenticated(self._remedy(proof))
        return certified

    def _by_token(self, proof: Proof, grants: Iterable[Grant], at: float, certified: Caller | None) -> Caller:
        """The token decides on the role; a certificate that is bound to a node binds it all the same."""
        bound = certified.nodes if certified is not None else ()
        said = [digest_of(token) for token in proof.tokens]
        if self._shared and _matches(self._shared, said):
            return Caller(identity="shared token", name="", roles=_EVERYBODY, nodes=bound, peer=proof.peer)
        # Every digest is compared, so that the time taken says nothing about which one was right.
        matching = [grant for grant in grants if grant.token and _matches(grant.token, said)]
        if any(grant.role is None for grant in matching):
            raise NotAuthenticated(f"the token of {matching[0].name} was withdrawn: ask for a new one")
        living = [grant for grant in matching if grant.living(at)]
        if not living:
            expired = ", ".join(grant.name for grant in matching)
            why = f"the token of {expired} has expired" if expired else "the token is wrong"
            raise NotAuthenticated(f"{why}: {_TOKEN_REMEDY}")
        grant = living[0]
        assert grant.role is not None
        nodes = (*bound, grant.node) if grant.node else bound
        return Caller(
            identity=f"token {grant.name}",
            name=grant.name,
            roles=frozenset({grant.role}),
            nodes=nodes,
            peer=proof.peer,
        )

    def _certified(self, proof: Proof, grants: Iterable[Grant], at: float) -> Caller | None:
        """Who the certificate says it is; None without one. A line of the access file goes before its own words."""
        if not self._mutual_tls or not (proof.names or proof.common_name):
            return None
        called = {*proof.names, f"CN:{proof.common_name}"} if proof.common_name else set(proof.names)
        listed = [grant for grant in grants if grant.certificate in called]
        if any(grant.role is None for grant in listed):
            raise NotAuthenticated(f"the certificate of {listed[0].name} was withdrawn: ask for a new one")
        if listed and not any(grant.living(at) for grant in listed):
            raise NotAuthenticated(
                f"the grant of {listed[0].name} for this certificate has expired: renew its line"
            )
        for grant in listed:
            if grant.role is not None and grant.living(at):
                return Caller(
                    identity=f"certificate {grant.certificate}",
                    name=grant.name,
                    roles=frozenset({grant.role}),
                    nodes=(grant.node,) if grant.node else (),
                    peer=proof.peer,
                )
        for name in proof.names:
            if name.startswith(SPIFFE_PREFIX):
                return _named(name, proof.peer)
        return Caller(
            identity=f"certificate CN:{proof.common_name}", name="", roles=frozenset(), peer=proof.peer
        )

    def _remedy(self, proof: Proof) -> str:
        certified = self._mutual_tls and (proof.names or proof.common_name)
        if certified:
            return (
                f"the certificate of {proof.common_name!r} names no role: make one with `understudy certificates`, or "
                "add a line 'ROLE NAME certificate=CN:...' to the access file"
            )
        return f"the token is missing: {_TOKEN_REMEDY}"


_TOKEN_REMEDY = (
    "send metadata 'authorization: Bearer TOKEN' (--token-file FILE, or UNDERSTUDY_TOKEN_FILE); the controller's "
    "--token-file or --access-file says which tokens count"
)


def _matches(stored: str, said: Iterable[str]) -> bool:
    found = False
    for digest in said:
        found |= hmac.compare_digest(stored, digest)
    return found


def _named(uri: str, peer: str) -> Caller:
    """The caller that a certificate of ours names."""
    role, _, name = uri.removeprefix(SPIFFE_PREFIX).partition("/")
    known = {each.value: each for each in Role}
    roles = frozenset({known[role]}) if role in known else frozenset[Role]()
    bound = (name,) if role == Role.AGENT.value and name else ()
    return Caller(identity=f"certificate {uri}", name=name or role, roles=roles, nodes=bound, peer=peer)
