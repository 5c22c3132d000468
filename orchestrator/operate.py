"""The operator program: `python -m orchestrator operator`, the one process that a cluster needs before its first job.

Its command line, read once, and its wiring: the API server, the database of the jobs' controllers (to delete what a job
has left there), and signals. What it does is in `cluster/kube/operator.py`.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from orchestrator.cluster.kube import schema as kind
from orchestrator.cluster.kube.api import ApiError, KubeApi
from orchestrator.cluster.kube.operator import Operator, OperatorSettings
from orchestrator.dashboard.web import Web, WebError
from orchestrator.settings import (
    DATABASE_VARIABLE,
    IMAGE_VARIABLE,
    METRICS_VARIABLE,
    POD_VARIABLE,
    ExitCode,
    SettingsError,
    read_address,
)
from orchestrator.store import schema

log = logging.getLogger(__name__)

NAMESPACE_VARIABLE = "POD_NAMESPACE"

_DESCRIPTION = """\
The operator of Understudy on Kubernetes: gives each MoETrainingJob of its namespace a controller (a deployment, a
service, a secret with tokens), and cleans up after jobs that are deleted. It takes no part in training: stop it or kill
it, jobs go on. `kubectl apply -k k8s/overlays/quickstart` installs it."""


def parser() -> argparse.ArgumentParser:
    """The command line, with its teaching."""
    made = argparse.ArgumentParser(prog="python -m orchestrator operator", description=_DESCRIPTION)
    made.add_argument(
        "--namespace", metavar="NAME", help=f"where its jobs are (environment: {NAMESPACE_VARIABLE})"
    )
    made.add_argument(
        "--image", metavar="IMAGE", help=f"of the pods of jobs that name none (environment: {IMAGE_VARIABLE})"
    )
    made.add_argument(
        "--database",
        metavar="URL",
        help=f"that the controllers of jobs use, each with a schema of its own (environment: {DATABASE_VARIABLE})",
    )
    made.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        help=f"serve a probe at /healthz (environment: {METRICS_VARIABLE})",
    )
    made.add_argument(
        "--kube-context",
        metavar="NAME",
        default="",
        help="outside of a cluster: this context of the kubeconfig",
    )
    made.add_argument(
        "--print-crd", action="store_true", help="print the definition of MoETrainingJob, and do nothing else"
    )
    return made


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """The whole process; its exit status. Raises SettingsError."""
    said = parser().parse_args(arguments)
    if said.print_crd:
        sys.stdout.write(kind.as_text())
        return ExitCode.OK
    namespace = said.namespace or environment.get(NAMESPACE_VARIABLE) or ""
    image = said.image or environment.get(IMAGE_VARIABLE) or ""
    database = said.database or environment.get(DATABASE_VARIABLE) or ""
    for option, value in (("--namespace", namespace), ("--image", image), ("--database", database)):
        if not value:
            raise SettingsError(option, None, "is missing")
    metrics = said.metrics or environment.get(METRICS_VARIABLE) or ""
    try:
        api = KubeApi(said.kube_context)
    except ApiError as error:
        raise SettingsError("--kube-context", said.kube_context or None, str(error)) from error
    identity = environment.get(POD_VARIABLE) or f"operator-{os.getpid()}"
    settings = OperatorSettings(namespace=namespace, identity=identity, image=image)
    operator = Operator(api, settings, lambda name: schema.drop(database, name))
    web = _web(metrics)

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        log.info("%s was received", signal.Signals(number).name)
        operator.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    log.info("%s looks after the jobs of namespace %s", identity, namespace)
    try:
        operator.run()
    finally:
        if web is not None:
            web.stop()
    return ExitCode.OK


def _web(said: str) -> Web | None:
    if not said:
        return None
    try:
        web = Web(*read_address("--metrics", said, "0.0.0.0:9400"))
    except WebError as error:
        raise SettingsError("--metrics", said, str(error)) from error
    web.start()
    return web
