"""`understudy ... --kube-job`: the real program, with a kubectl that is acted, in front of a real Admin service.

The acted kubectl knows two verbs: it shows objects that lie in a folder, and it forwards a port by carrying bytes.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.cli import authority, certificates
from orchestrator.cli.certificates import Wanted
from protos import admin_pb2 as pb
from protos import admin_pb2_grpc
from tests.integration.played_controller import PlayedAdmin
from tests.unit.orchestrator.cli import views

SECONDS = 60.0
SERVICE = "moe-controller.understudy.svc"
KUBECTL = """\
import json, pathlib, socket, sys, threading
folder, words = pathlib.Path(__file__).parent, sys.argv[1:]
with (folder / "asked").open("a") as asked:
    asked.write(" ".join(words) + "\\n")
while words[0].startswith("--"):
    words = words[2:]
if words[0] == "get":
    path = folder / f"{words[1]}-{words[2]}.json"
    if not path.exists():
        sys.exit(f'Error from server (NotFound): {words[1]} "{words[2]}" not found')
    sys.exit(print(path.read_text()))
assert words == ["port-forward", "service/moe-controller", ":7400"], words
target = (folder / "target").read_text()
if not target:
    sys.exit("error: unable to forward port because pod is not running. Current status=Pending")
host, port = target.split(":")
here = socket.create_server(("127.0.0.1", 0))
print(f"Forwarding from 127.0.0.1:{here.getsockname()[1]} -> 7400", flush=True)

def carry(a, b):
    while data := a.recv(65536):
        b.sendall(data)

while True:
    one, _ = here.accept()
    other = socket.create_connection((host, int(port)))
    for pair in ((one, other), (other, one)):
        threading.Thread(target=carry, args=pair, daemon=True).start()
"""


class Listener(PlayedAdmin):
    """Remembers the tokens that it was shown."""

    def __init__(self) -> None:
        super().__init__(views.healthy())
        self.tokens: list[str] = []

    def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesReply:  # noqa: N802
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        return super().ListNodes(request, context)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A folder with the acted kubectl, what it shows, and whom it leads to."""

    folder: Path
    admin: Listener

    def put(self, kind: str, name: str, **content: Any) -> None:
        (self.folder / f"{kind}-{name}.json").write_text(json.dumps({"kind": kind, **content}))

    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()

    def understudy(self, *words: str, search: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from orchestrator.cli.main import main; main()", *words],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "PATH": f"{self.folder}:{search}"},
        )


def encoded(**data: str) -> dict[str, str]:
    return {key.replace("_", "-"): base64.b64encode(value.encode()).decode() for key, value in data.items()}


@pytest.fixture
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A job whose controller can be reached; with TLS where the test asks for it (`param`)."""
    made = Stage(folder=tmp_path, admin=Listener())
    program = tmp_path / "kubectl"
    program.write_text(f"#!{sys.executable}\n{KUBECTL}")
    program.chmod(0o755)
    made.put("secret", "moe-access", data=encoded(operator_token="let-me-in"))
    made.put("moetrainingjob", "moe", spec={"nodes": 3})
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    admin_pb2_grpc.add_AdminServicer_to_server(made.admin, server)
    if getattr(request, "param", "") == "tls":
        port = server.add_secure_port("127.0.0.1:0", _with_tls(made))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    (tmp_path / "target").write_text(f"127.0.0.1:{port}")
    server.start()
    yield made
    server.stop(None).wait(5)


def _with_tls(stage: Stage) -> grpc.ServerCredentials:
    """A certificate that names the service and nothing else; its authority in a secret, as documented."""
    folder = stage.folder / "tls"
    certificates.make(folder, Wanted(hosts=(SERVICE,), clients=(), days=1))
    ca = authority.certificate_path(folder, authority.CA).read_text()
    stage.put("secret", "moe-tls", data={"ca.crt": base64.b64encode(ca.encode()).decode()})
    stage.put("moetrainingjob", "moe", spec={"nodes": 3, "tlsSecretName": "moe-tls"})
    key = authority.key_path(folder, authority.SERVER).read_bytes()
    return grpc.ssl_server_credentials(
        [(key, authority.certificate_path(folder, authority.SERVER).read_bytes())]
    )


def test_a_command_reaches_the_controller_of_a_job_as_it_does_locally(stage: Stage) -> None:
    """Through a forward that kubectl makes, with the token of the job's secret, in the context that was named."""
    done = stage.understudy(
        "nodes", "--kube-job", "moe", "--kube-context", "far", "--kube-namespace", "understudy", "-o", "json"
    )
    assert done.returncode == 0, done.stderr
    assert [each["id"] for each in json.loads(done.stdout)] == [node.id for node in stage.admin.view.nodes]
    assert stage.admin.tokens == ["Bearer let-me-in"]
    assert all(line.startswith("--context far --namespace understudy ") for line in stage.asked())


def test_a_token_that_is_named_comes_before_the_one_of_the_secret(stage: Stage) -> None:
    """Somebody who may only look has one of their own."""
    token = stage.folder / "token"
    token.write_text("a-viewer's\n")
    done = stage.understudy("nodes", "--kube-job", "moe", "--token-file", str(token))
    assert done.returncode == 0, done.stderr
    assert stage.admin.tokens == ["Bearer a-viewer's"]


@pytest.mark.parametrize("stage", ["tls"], indirect=True)
def test_a_job_with_tls_is_spoken_to_with_tls(stage: Stage) -> None:
    """By the authority in its secret, and by the name of its service, though it is reached at 127.0.0.1."""
    done = stage.understudy("nodes", "--kube-job", "moe", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert stage.admin.tokens == ["Bearer let-me-in"]


@pytest.mark.parametrize("stage", ["tls"], indirect=True)
def test_a_controller_with_a_certificate_of_somebody_else_is_not_believed(stage: Stage) -> None:
    """No token is sent to it."""
    other = stage.folder / "other"
    certificates.make(other, Wanted(hosts=(SERVICE,), clients=(), days=1))
    ca = str(authority.certificate_path(other, authority.CA))
    done = stage.understudy("nodes", "--kube-job", "moe", "--tls-ca", ca)
    assert done.returncode != 0 and stage.admin.tokens == []


def test_what_is_wrong_is_said_in_one_sentence_with_a_remedy(stage: Stage) -> None:
    """A job that is not there, a controller that is not, a context without a job, no kubectl."""
    absent = stage.understudy("nodes", "--kube-job", "other")
    assert absent.returncode == 1 and "other-access" in absent.stderr and "--kube-namespace" in absent.stderr
    (stage.folder / "target").write_text("")
    pending = stage.understudy("nodes", "--kube-job", "moe")
    assert pending.returncode == 1 and "Current status=Pending" in pending.stderr
    assert "get pods -l understudy.dev/job=moe" in pending.stderr
    alone = stage.understudy("nodes", "--kube-context", "far")
    assert alone.returncode == 2 and "--kube-context needs --kube-job" in alone.stderr
    (stage.folder / "secret-moe-access.json").write_text(json.dumps({"data": {}}))
    empty = stage.understudy("nodes", "--kube-job", "moe")
    assert empty.returncode != 0 and "holds no operator-token" in empty.stderr
    (stage.folder / "kubectl").unlink()
    without = stage.understudy("nodes", "--kube-job", "moe", search="/nowhere")
    assert without.returncode != 0 and "kubectl is not installed" in without.stderr
    assert "Traceback" not in absent.stderr + pending.stderr + alone.stderr + empty.stderr + without.stderr
