"""Roles and who has them: lines of an access file, tokens, certificates, and every method under exactly one rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.service import access
from orchestrator.service.access import (
    METHODS,
    AccessError,
    AccessFile,
    Gate,
    Grant,
    NotAuthenticated,
    Proof,
    Role,
    digest_of,
    parse,
)
from protos import admin_pb2, worker_pb2

ADA, EVE = "ada-has-this-token", "eve-has-that-token"
NEW_YEAR = 1798761600.0
"""2027-01-01 in UTC."""


class Listed:
    """Rules that a test writes."""

    def __init__(self, *lines: str) -> None:
        self._grants = parse("\n".join(lines), "test")

    def grants(self) -> tuple[Grant, ...]:
        return self._grants


def line(role: str, name: str, token: str, *more: str) -> str:
    return " ".join((role, name, f"token={digest_of(token)}", *more))


def gate(*lines: str, at: float = 0.0, mutual_tls: bool = False) -> Gate:
    return Gate(rules=Listed(*lines), mutual_tls=mutual_tls, clock=lambda: at)


def bearing(token: str) -> Proof:
    return Proof(tokens=(token,), peer="ipv4:10.0.0.7:5")


# ---- every method has its rule ----


def test_every_method_of_both_services_has_a_rule_and_no_other_has() -> None:
    """A method that is added without one is closed to everybody, and this fails."""
    services = (
        admin_pb2.DESCRIPTOR.services_by_name["Admin"],
        worker_pb2.DESCRIPTOR.services_by_name["Worker"],
    )
    there = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert set(METHODS) == there


def test_what_has_a_by_is_a_command_and_only_operators_may() -> None:
    """The field `by` is what every message of a command has."""
    for method in admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods:
        commanding = "by" in method.input_type.fields_by_name
        assert (access.ADMIN + method.name in access.COMMANDS) == commanding, method.name
        wanted = {Role.OPERATOR} if commanding else {Role.OPERATOR, Role.VIEWER}
        assert access.allowed(access.ADMIN + method.name) == wanted


def test_an_unknown_method_is_for_nobody() -> None:
    assert access.allowed("/understudy.admin.v1.Admin/Format") == frozenset()


# ---- tokens ----


def test_without_any_rule_everybody_may_everything_and_proves_nothing() -> None:
    caller = Gate().caller(bearing("whatever"))
    assert (caller.name, caller.identity, caller.roles) == ("", "", frozenset(Role))


def test_a_shared_token_lets_in_to_everything_and_any_other_to_nothing() -> None:
    shared = Gate(shared_token=ADA)
    assert shared.caller(bearing(ADA)).roles == frozenset(Role)
    for proof in (Proof(), bearing(EVE), bearing("")):
        with pytest.raises(NotAuthenticated, match="--token-file"):
            shared.caller(proof)


@pytest.mark.parametrize("role", list(Role))
def test_a_token_has_the_role_of_its_line(role: Role) -> None:
    caller = gate(line(role.value, "ada", ADA), line("viewer", "eve", EVE)).caller(bearing(ADA))
    assert (caller.name, caller.identity, set(caller.roles)) == ("ada", "token ada", {role})


def test_two_tokens_of_one_name_count_side_by_side() -> None:
    """Rotation: the new one is handed out before the old one is removed."""
    both = gate(line("operator", "ada", ADA), line("operator", "ada", EVE))
    assert {both.caller(bearing(token)).name for token in (ADA, EVE)} == {"ada"}


def test_a_token_counts_through_its_last_day_and_not_longer() -> None:
    rule = line("viewer", "ada", ADA, "expires=2026-12-31")
    assert gate(rule, at=NEW_YEAR - 1.0).caller(bearing(ADA)).name == "ada"
    with pytest.raises(NotAuthenticated, match="token of ada has expired"):
        gate(rule, at=NEW_YEAR).caller(bearing(ADA))


def test_a_withdrawn_token_is_refused_whatever_other_lines_say() -> None:
    with pytest.raises(NotAuthenticated, match="withdrawn"):
        gate(line("operator", "ada", ADA), line("nobody", "ada", ADA)).caller(bearing(ADA))


def test_an_agent_speaks_for_its_node_only() -> None:
    bound = gate(line("agent", "node-1", ADA, "node=node-1")).caller(bearing(ADA))
    assert (bound.speaks_for("node-1"), bound.speaks_for("node-2")) == (True, False)
    assert gate(line("agent", "pool", ADA)).caller(bearing(ADA)).speaks_for("node-2")


@given(st.text(max_size=40))
def test_no_other_text_is_let_in(said: str) -> None:
    """Near misses, spaces, non-ASCII: only the very token counts."""
    if said != ADA:
        with pytest.raises(NotAuthenticated):
            gate(line("operator", "ada", ADA)).caller(bearing(said))


# ---- certificates ----


def certified(uri: str, common_name: str = "someone") -> Proof:
    return Proof(names=(uri,), common_name=common_name)


@pytest.mark.parametrize(
    "uri,roles,nodes",
    [
        ("spiffe://understudy/operator/ada", {Role.OPERATOR}, ()),
        ("spiffe://understudy/viewer/grafana", {Role.VIEWER}, ()),
        ("spiffe://understudy/agent", {Role.AGENT}, ()),
        ("spiffe://understudy/agent/node-1", {Role.AGENT}, ("node-1",)),
    ],
)
def test_a_certificate_names_its_role_itself(uri: str, roles: set[Role], nodes: tuple[str, ...]) -> None:
    caller = Gate(mutual_tls=True).caller(certified(uri))
    assert (caller.identity, set(caller.roles), caller.nodes) == (f"certificate {uri}", roles, nodes)


@pytest.mark.parametrize("uri", ["spiffe://understudy/root", "spiffe://elsewhere/operator/ada", "localhost"])
def test_a_certificate_without_a_role_proves_nothing(uri: str) -> None:
    with pytest.raises(NotAuthenticated, match="names no role"):
        Gate(mutual_tls=True).caller(certified(uri))


def test_what_the_wire_says_about_certificates_counts_only_where_they_were_verified() -> None:
    with pytest.raises(NotAuthenticated):
        Gate(shared_token=ADA).caller(certified("spiffe://understudy/operator/ada"))


def test_a_line_gives_a_foreign_certificate_a_role_and_takes_one_from_ours() -> None:
    listed = gate(
        "viewer ci certificate=CN:ci.example.org",
        "nobody bob certificate=spiffe://understudy/operator/bob",
        mutual_tls=True,
    )
    assert listed.caller(certified("dns.example.org", "ci.example.org")).roles == {Role.VIEWER}
    with pytest.raises(NotAuthenticated, match="bob was withdrawn"):
        listed.caller(certified("spiffe://understudy/operator/bob"))


def test_a_token_beside_a_certificate_decides_and_the_certificate_still_binds() -> None:
    both = gate(line("agent", "pool", ADA), mutual_tls=True)
    proof = Proof(tokens=(ADA,), names=("spiffe://understudy/agent/node-1",), common_name="node-1")
    caller = both.caller(proof)
    assert (caller.identity, caller.speaks_for("node-1"), caller.speaks_for("node-2")) == (
        "token pool",
        True,
        False,
    )
    wrong = Proof(tokens=(EVE,), names=("spiffe://understudy/operator/ada",), common_name="ada")
    with pytest.raises(NotAuthenticated, match="token is wrong"):
        both.caller(wrong)


# ---- the file ----


@pytest.mark.parametrize(
    "text,words",
    [
        ("operator ada", "write ROLE NAME"),
        ("root ada token=sha256:" + "0" * 64, "write ROLE NAME"),
        ("operator a/b token=sha256:" + "0" * 64, "is no name"),
        ("operator ada token=secret", "never the token itself"),
        ("operator ada node=n token=sha256:" + "0" * 64, "node= is for agents"),
        ("operator ada expires=soon token=sha256:" + "0" * 64, "is not a day"),
        ("operator ada expires=2027-02-31 token=sha256:" + "0" * 64, "is not a day"),
        ("operator ada certificate=x token=sha256:" + "0" * 64, "exactly one"),
        ("operator ada expires=2027-01-01", "exactly one"),
        ("operator ada tokn=x", "'tokn=x'"),
        ("operator ada token=a token=b", "each once"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(text: str, words: str) -> None:
    with pytest.raises(AccessError, match=r"^file:3: ") as refused:
        parse(f"# who may what\n\n{text}\n", "file")
    assert words in str(refused.value)


@given(st.text(max_size=200))
def test_no_text_makes_the_reader_fail_otherwise(text: str) -> None:
    try:
        parse(text, "file")
    except AccessError:
        pass  # the one way in which it refuses


def test_a_changed_file_counts_and_a_broken_change_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, now = tmp_path / "access.txt", [0.0]
    path.write_text(line("viewer", "ada", ADA))
    file = AccessFile(path, clock=lambda: now[0])
    assert [grant.name for grant in file.grants()] == ["ada"]
    for text, names in ((line("viewer", "eve", EVE) + " # new", ["eve"]), ("operator nonsense", ["eve"])):
        path.write_text(text)
        now[0] += access.LOOK_SECONDS
        assert [grant.name for grant in file.grants()] == names
    path.unlink()
    now[0] += access.LOOK_SECONDS
    assert [grant.name for grant in file.grants()] == ["eve"]
    assert sum("goes on to count" in entry.message for entry in caplog.records) == 2


def test_a_file_that_grants_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "access.txt").write_text("# nobody yet\n")
    with pytest.raises(AccessError, match="grants nothing"):
        AccessFile(tmp_path / "access.txt")
    with pytest.raises(AccessError, match="No such file"):
        AccessFile(tmp_path / "missing.txt")
