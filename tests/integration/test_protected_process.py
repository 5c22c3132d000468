"""A real controller, its real agent and the real CLI behind mutual TLS and behind tokens, as the docs set them up.

What is trained does not matter here; that nobody gets in who should not, and everybody else does, is the point.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster.processes import living_nodes
from orchestrator.service.access import parse
from tests.integration.real_controller import WAIT_SECONDS, Controller, understudy
from tests.waiting import wait_until


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    made = Controller(tmp_path)
    yield made
    made.clean_up()


def registered(*options: str) -> bool:
    code, out, _ = understudy("nodes", "-o", "json", *options)
    return code == 0 and all(node["connected"] for node in json.loads(out) or [{"connected": False}])


def test_mutual_tls_from_end_to_end(controller: Controller, tmp_path: Path) -> None:
    """Certificates from the command, a node that registers with its own, people who see and do what they may."""
    tls = tmp_path / "tls"
    code, out, errors = understudy("certificates", str(tls), "--node", "node-1")
    assert (code, errors) == (0, ""), errors
    assert "they count until" in out
    files = [f"--tls-{name}" for name in ("ca", "cert", "key")]
    server = [
        word for pair in zip(files, ("ca.crt", "server.crt", "server.key"), strict=True) for word in pair
    ]
    served = [str(tls / word) if "." in word else word for word in server]
    agent = [
        "--agent-tls-cert",
        str(tls / "agent-node-1.crt"),
        "--agent-tls-key",
        str(tls / "agent-node-1.key"),
    ]
    address = controller.serve(*served, *agent)

    def as_(who: str) -> list[str]:
        shown = (tls / "ca.crt", tls / f"{who}.crt", tls / f"{who}.key")
        return [
            "--controller",
            address,
            *(str(each) for pair in zip(files, shown, strict=True) for each in pair),
        ]

    wait_until(lambda: registered(*as_("viewer")), within_seconds=WAIT_SECONDS, what="the node registers")
    code, _, errors = understudy("cordon", "node-1", *as_("viewer"))
    assert code == 1
    assert errors.startswith("error: ") and len(errors.splitlines()) == 1, errors
    assert "Cordon is for operator" in errors
    code, out, errors = understudy("cordon", "node-1", *as_("operator"))
    assert (code, errors) == (0, ""), errors
    wait_until(
        lambda: len(json.loads(understudy("audit", "-o", "json", *as_("viewer"))[1])) == 2,
        within_seconds=WAIT_SECONDS,
        what="both commands are in the audit log",
    )
    rows = json.loads(understudy("audit", "-o", "json", *as_("viewer"))[1])
    assert [(row["command"], row["by"], row["result"]) for row in rows] == [
        ("Cordon", "viewer", "refused"),
        ("Cordon", "operator", "done"),
    ]
    table = understudy("audit", *as_("viewer"))[1]
    assert "Cordon" in table and "node=node-1" in table
    code, _, errors = understudy("nodes", "--controller", address)
    assert code == 1 and "--tls-ca" in errors, "in clear text"
    code, _, errors = understudy("nodes", "--controller", address, "--tls-ca", str(tls / "ca.crt"))
    assert code == 1 and "--tls-cert" in errors, errors
    code, out, _ = understudy("shutdown", "--force", *as_("operator"))
    assert code == 0 and "operator ends nodes and controller" in out
    wait_until(
        lambda: not living_nodes(controller.workdir), within_seconds=WAIT_SECONDS, what="all has ended"
    )


def test_tokens_from_end_to_end(controller: Controller, tmp_path: Path) -> None:
    """And a rotation while it runs: the new token counts, the old one counts until its line is gone."""
    access, look = tmp_path / "access.txt", ["--access-file", str(tmp_path / "access.txt")]
    for role, name, more in (
        ("agent", "node-1", ["--node", "node-1"]),
        ("viewer", "eve", []),
        ("operator", "ada", []),
    ):
        code, _, errors = understudy(
            "token", role, name, *look, "--out", str(tmp_path / f"{name}.token"), *more
        )
        assert (code, errors) == (0, ""), errors
        assert stat.S_IMODE((tmp_path / f"{name}.token").stat().st_mode) == 0o600
    assert [grant.name for grant in parse(access.read_text(), "access")] == ["node-1", "eve", "ada"]
    assert (tmp_path / "ada.token").read_text().strip() not in access.read_text()
    address = controller.serve(*look, "--token-file", str(tmp_path / "node-1.token"))

    def as_(name: str) -> list[str]:
        return ["--controller", address, "--token-file", str(tmp_path / f"{name}.token")]

    wait_until(lambda: registered(*as_("eve")), within_seconds=WAIT_SECONDS, what="the node registers")
    for who, words in ((as_("eve"), "token eve is viewer"), (as_("node-1"), "token node-1 is agent")):
        code, _, errors = understudy("drain", "node-1", *who)
        assert code == 1 and words in errors and len(errors.splitlines()) == 1, errors
    code, _, errors = understudy("nodes", "--controller", address)
    assert code == 1 and "the token is missing" in errors, errors
    assert understudy("cordon", "node-1", *as_("ada"))[0] == 0
    old = access.read_text()
    assert understudy("token", "operator", "ada", *look, "--out", str(tmp_path / "new.token"))[0] == 0
    wait_until(
        lambda: understudy("uncordon", "node-1", *as_("new"))[0] == 0,
        within_seconds=WAIT_SECONDS,
        what="the new token counts",
    )
    assert understudy("jobs", *as_("ada"))[0] == 0, "the old one too"
    withdrawn = next(line for line in old.splitlines() if line.startswith("operator ada"))
    access.write_text(access.read_text().replace(withdrawn + "\n", ""))
    wait_until(
        lambda: understudy("jobs", *as_("ada"))[0] == 1,
        within_seconds=WAIT_SECONDS,
        what="the old one is gone",
    )


@pytest.mark.parametrize("more", [(), ("--tls-cert", "{tls}/server.crt", "--tls-key", "{tls}/server.key",
                                       "--tls-ca", "{tls}/ca.crt", "--no-client-certificates")])  # fmt: skip
def test_a_port_that_others_can_reach_is_not_left_open_by_accident(
    controller: Controller, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Also TLS without tokens and without client certificates: encrypted, and everybody is in command."""
    understudy("certificates", str(tmp_path / "tls"))
    options = [word.format(tls=tmp_path / "tls") for word in more]
    code, said = controller.refused("--listen", "0.0.0.0:0", *options)
    assert code == 2
    assert "--allow-open" in said and "--tls-ca" in said and "Traceback" not in said
    assert not controller.workdir.exists()


def test_an_access_file_that_does_not_let_in_the_own_agents_is_refused(
    controller: Controller, tmp_path: Path
) -> None:
    for role in ("viewer", "agent"):
        options = ["--access-file", str(tmp_path / f"{role}.txt"), "--out", str(tmp_path / f"{role}.token")]
        understudy("token", role, "somebody", *options)
    for wrong, words in (("viewer", "need an agent's token"), ("other", "is not in")):
        file = tmp_path / f"{wrong}.token"
        if wrong == "other":
            file.write_text("0123456789abcdef0123456789abcdef")
        code, said = controller.refused(
            "--access-file", str(tmp_path / "viewer.txt"), "--token-file", str(file)
        )
        assert code == 2 and words in said, said


# ---- the two commands that make secrets ----


def test_keys_are_for_their_owner_and_nothing_is_overwritten(tmp_path: Path) -> None:
    tls = tmp_path / "tls"
    understudy("certificates", str(tls), "--hosts", "ctl.example.org,10.0.0.5")
    for key in tls.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key
    before = {path.name: path.read_bytes() for path in tls.iterdir()}
    code, _, errors = understudy("certificates", str(tls))
    assert code == 2 and "holds these certificates already" in errors
    assert {path.name: path.read_bytes() for path in tls.iterdir()} == before
    code, out, _ = understudy("certificates", str(tls), "--operator", "ada")
    assert code == 0 and "operator-ada.crt" in out
    assert before.items() <= {path.name: path.read_bytes() for path in tls.iterdir()}.items()


def test_renewal_keeps_every_name(tmp_path: Path) -> None:
    from cryptography import x509

    def names(path: Path) -> tuple[x509.Name, x509.SubjectAlternativeName]:
        read = x509.load_pem_x509_certificate(path.read_bytes())
        return read.subject, read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    tls = tmp_path / "tls"
    understudy("certificates", str(tls), "--hosts", "ctl.example.org,10.0.0.5", "--node", "node-1")
    certificates = [path for path in sorted(tls.glob("*.crt")) if path.name != "ca.crt"]
    before = {path: (names(path), path.read_bytes()) for path in certificates}
    code, out, errors = understudy("certificates", str(tls), "--renew")
    assert (code, errors) == (0, ""), errors
    for path, (kept, old) in before.items():
        assert names(path) == kept and path.read_bytes() != old and path.name in out
    code, _, errors = understudy("certificates", str(tls), "--renew", "--node", "node-2")
    assert code == 2 and "--renew takes the names that are there" in errors


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["certificates", "{new}", "--node", "../x"], "is no name"),
        (["certificates", "{new}", "--hosts", "a b"], "neither a name nor an address"),
        (["certificates", "{new}", "--renew"], "no authority to renew from"),
        (["token", "viewer", "a/b", "--access-file", "{new}", "--out", "{new}.t"], "is no name"),
        (
            ["token", "viewer", "a", "--node", "n", "--access-file", "{new}", "--out", "{new}.t"],
            "is for agents",
        ),
        (
            ["token", "viewer", "a", "--expires", "soon", "--access-file", "{new}", "--out", "{new}.t"],
            "is not a day",
        ),
        (["nodes", "--controller", "h:1", "--tls-cert", "x"], "--tls-cert needs --tls-ca"),
        (["nodes", "--controller", "h:1", "--tls-ca", "a", "--tls-cert", "x"], "go together"),
        (["nodes", "--controller", "h:1", "--tls-ca", "/nowhere.crt"], "/nowhere.crt cannot be read"),
    ],
)
def test_bad_input_makes_nothing(tmp_path: Path, arguments: list[str], words: str) -> None:
    new = tmp_path / "new"
    code, out, errors = understudy(*(each.format(new=new) for each in arguments))
    assert (code, out) == (2, "")
    assert words in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
