"""Where the nodes of a controller come from, as its settings say: this machine, somebody else, or pods.

Next: `cluster/nodes.py`, what all of them offer; `app.py`, which wires them.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

from orchestrator.cluster import devices, labels
from orchestrator.cluster.elsewhere import AgentsElsewhere
from orchestrator.cluster.kube import api as paths
from orchestrator.cluster.kube import moejob
from orchestrator.cluster.kube.api import ApiError, KubeApi
from orchestrator.cluster.kube.moejob import BadJob, MoEJob
from orchestrator.cluster.kube.pods import PodCluster
from orchestrator.cluster.labels import BadLabel, NodeLabel
from orchestrator.cluster.nodes import NodeSource
from orchestrator.cluster.processes import AgentCommand, ProcessCluster
from orchestrator.core.spec import JobSpec
from orchestrator.core.spec_rules import node_ids
from orchestrator.settings import IMAGE_VARIABLE, POD_VARIABLE, Settings, SettingsError

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
"""Between two attempts to read the job object: without it nothing can begin, and somebody will mend the API server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes:
    """The job object, and the cluster that holds it."""

    api: KubeApi
    job: MoEJob


def kubernetes(settings: Settings) -> Kubernetes | None:
    """The job object that the settings name; None where they name none. Raises SettingsError."""
    if settings.job_object is None:
        return None
    namespace, name = settings.job_object
    where = f"{namespace}/{name}"
    try:
        api = KubeApi()
    except ApiError as error:
        raise SettingsError("--job-object", where, str(error)) from error
    while True:
        try:
            return Kubernetes(api=api, job=moejob.read(api.get(paths.jobs(namespace, name))))
        except BadJob as error:
            raise SettingsError("--job-object", where, f"cannot run:\n{error}") from error
        except ApiError as error:
            if error.absent:
                raise SettingsError("--job-object", where, "there is no such object") from error
            log.warning("%s, trying again in %g s", error, RETRY_SECONDS)
            time.sleep(RETRY_SECONDS)


def node_source(settings: Settings, spec: JobSpec, address: str, found: Kubernetes | None) -> NodeSource:
    """Whoever starts and ends agents. `address` is where agents of this machine find the controller."""
    if found is not None:
        image = os.environ.get(IMAGE_VARIABLE) or found.job.pods.image
        return PodCluster(found.api, found.job, image=image, own_pod=os.environ.get(POD_VARIABLE, ""))
    if not settings.starts_agents:
        return AgentsElsewhere()
    shares = devices.share_devices(spec.cluster, devices.gpus())
    if shares.why:
        log.warning("%s", shares.why)
    tls = settings.agent_tls
    command = AgentCommand(
        controller=address,
        workdir=settings.workdir,
        token_file=settings.token_file,
        tls=(tls.ca, tls.certificate, tls.key) if tls is not None else None,
        labels=_labels(settings, spec),
        prefix=settings.agent_prefix,
    )
    return ProcessCluster(command, devices=shares)


def _labels(settings: Settings, spec: JobSpec) -> tuple[NodeLabel, ...]:
    """What people say of nodes that are started here, now or when the run began. Raises SettingsError."""
    read = []
    for text in settings.labels or labels.kept(settings.workdir):
        try:
            read.append(labels.read(text, node_ids(spec.cluster)))
        except BadLabel as error:
            if settings.labels:
                raise SettingsError("--label", text, str(error)) from error
            log.warning("the label %r of this run says nothing any more: %s", text, error)
    if settings.labels:
        labels.keep(settings.workdir, settings.labels)
    return tuple(read)
