"""A controller on Kubernetes, reached through kubectl: its token from the job's secret, its port by a port-forward.

kubectl is asked and not the API server, so that whatever makes it work for a person (contexts, plugins that log in,
proxies) works here too. A job with `tlsSecretName` is spoken to with TLS: its authority is in that secret, and its
certificate names the service, not the end of the forward. The forward ends with this process. Next: `connection.py`,
which talks through it.
"""

from __future__ import annotations

import atexit
import base64
import json
import queue
import subprocess
import threading
from dataclasses import dataclass
from typing import Any

from orchestrator.cli.connection import ClientTls
from orchestrator.cli.errors import CliError, ExitCode

CONTROLLER_PORT = 7400
ANSWER_SECONDS = 15.0
"""For kubectl to answer, or to say that it forwards."""
DEFAULT_NAMESPACE = "understudy"


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeJob:
    """A MoETrainingJob as it was named on the command line."""

    name: str
    namespace: str = DEFAULT_NAMESPACE
    context: str = ""

    def kubectl(self) -> list[str]:
        """The words before a command."""
        context = ["--context", self.context] if self.context else []
        return ["kubectl", *context, "--namespace", self.namespace]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarded:
    """Where the controller of a job can be reached now, and what it asks for."""

    address: str
    token: str
    tls: ClientTls | None
    """For a job with TLS."""


def forward(job: KubeJob) -> Forwarded:
    """Begin to forward. Raises CliError."""
    token, tls = _operator_token(job), _tls(job)
    words = [*job.kubectl(), "port-forward", f"service/{job.name}-controller", f":{CONTROLLER_PORT}"]
    process = _started(words)
    atexit.register(process.terminate)
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), name="kubectl", daemon=True).start()
    try:
        line = lines.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        process.terminate()
        raise CliError(
            f"kubectl did not forward a port within {ANSWER_SECONDS:g} s", exit_code=ExitCode.FAILED
        ) from None
    # It says, for example: Forwarding from 127.0.0.1:40123 to 7400.
    words_said = line.split()
    if not line.startswith("Forwarding from") or len(words_said) < 3:
        raise CliError(
            f"kubectl cannot reach the controller of {job.name}: {line.strip() or 'it said nothing'}",
            remedy=f"look at it: {' '.join(job.kubectl())} get pods -l understudy.dev/job={job.name}",
            exit_code=ExitCode.FAILED,
        )
    return Forwarded(address=words_said[2], token=token, tls=tls)


def _operator_token(job: KubeJob) -> str:
    secret = f"{job.name}-access"
    return _in_secret(secret, "operator-token", _get(job, "secret", secret)).decode()


def _tls(job: KubeJob) -> ClientTls | None:
    """How to speak to a job with TLS; None for one without."""
    secret = (_get(job, "moetrainingjob", job.name).get("spec") or {}).get("tlsSecretName")
    if not secret:
        return None
    authority = _in_secret(secret, "ca.crt", _get(job, "secret", secret))
    return ClientTls(ca=authority, server_name=f"{job.name}-controller.{job.namespace}.svc")


def _in_secret(name: str, key: str, secret: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(secret["data"][key])
    except (ValueError, KeyError, TypeError) as error:
        raise CliError(f"the secret {name} holds no {key}: {error!r}") from error


def _get(job: KubeJob, kind: str, name: str) -> dict[str, Any]:
    """An object, as kubectl shows it. Raises CliError."""
    words = [*job.kubectl(), "get", kind, name, "--output", "json"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except FileNotFoundError as error:
        raise CliError(
            "kubectl is not installed", remedy="install it, or forward a port some other way"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CliError(
            f"kubectl did not answer within {ANSWER_SECONDS:g} s", exit_code=ExitCode.FAILED
        ) from error
    if answer.returncode:
        raise CliError(
            f"kubectl cannot read {kind} {name}: {' '.join(answer.stderr.split())}",
            remedy="check --kube-job, --kube-namespace and --kube-context, and that you may read secrets there",
            exit_code=ExitCode.FAILED,
        )
    try:
        found = json.loads(answer.stdout)
    except ValueError as error:
        raise CliError(
            f"kubectl did not answer with an object: {error}", exit_code=ExitCode.FAILED
        ) from error
    if not isinstance(found, dict):
        raise CliError("kubectl did not answer with an object", exit_code=ExitCode.FAILED)
    return found


def _started(words: list[str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except FileNotFoundError as error:
        raise CliError(
            "kubectl is not installed", remedy="install it, or forward a port some other way"
        ) from error


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    """Its first line is waited for; the others are read so that it does not wait for us."""
    assert process.stdout is not None
    first = True
    for line in process.stdout:
        if first:
            lines.put(line)
        first = False
    if first:
        lines.put("")
