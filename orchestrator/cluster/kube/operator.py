"""The operator: gives each MoETrainingJob of a namespace a controller of its own, and takes it away again.

It knows nothing of training. A job object becomes a secret with tokens, a service and a deployment; from then on the
job's controller speaks for it. A job that is deleted keeps a finalizer until its controllers and pods have gone, and
its tables with them. Several operators may run; one is in charge (`election.py`). Next: `manifests.py`.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.cluster.kube import api as paths
from orchestrator.cluster.kube import manifests, moejob, status
from orchestrator.cluster.kube.api import Api, ApiError, Object
from orchestrator.cluster.kube.election import RENEW_SECONDS, Election
from orchestrator.cluster.kube.manifests import Tokens
from orchestrator.cluster.kube.moejob import FINALIZER, BadJob, MoEJob
from orchestrator.cluster.kube.sightings import seconds
from orchestrator.cluster.kube.watching import Watcher
from orchestrator.controller.ports import StoreError

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""Between two looks while nothing is seen to change."""
END_GRACE_SECONDS = 2
"""For the pods of a job that is deleted: nobody will use what they could still hand on."""
TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """One operator process."""

    namespace: str
    identity: str
    image: str
    """Of the pods of jobs that name none."""


class Operator:
    """`run` until `stop`."""

    def __init__(self, api: Api, settings: OperatorSettings, drop_schema: Callable[[str], None]) -> None:
        """`drop_schema` deletes what a job has left in the database; raises StoreError."""
        self._api = api
        self._settings = settings
        self._drop_schema = drop_schema
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._election = Election(api, settings.namespace, "understudy-operator", settings.identity)
        self._jobs = Watcher(api, paths.jobs(settings.namespace), self._wake.set)
        self._said: dict[str, str] = {}

    def run(self) -> None:
        """Look again and again, while in charge."""
        self._jobs.start()
        try:
            while not self._stopping.is_set():
                if self._election.holds() and self._jobs.listed.is_set():
                    self._look()
                self._wake.wait(min(LOOK_SECONDS, RENEW_SECONDS / 2))
                self._wake.clear()
        finally:
            self._jobs.stop()
            self._election.release()

    def stop(self) -> None:
        """Have `run` return. From any thread, or a signal's handler."""
        self._stopping.set()
        self._wake.set()

    def _look(self) -> None:
        for name, item in sorted(self._jobs.objects().items()):
            try:
                self._reconcile(item)
            except (ApiError, StoreError) as error:
                self._say(name, f"{error}, trying again")

    def _reconcile(self, item: Object) -> None:
        """Bring what belongs to one job closer to how it should be. Raises ApiError, StoreError."""
        name = item["metadata"]["name"]
        if moejob.is_leaving(item):
            self._clean_up(item)
            return
        if FINALIZER not in (item["metadata"].get("finalizers") or ()):
            finalizers = [*(item["metadata"].get("finalizers") or ()), FINALIZER]
            change = {
                "metadata": {
                    "finalizers": finalizers,
                    "resourceVersion": item["metadata"]["resourceVersion"],
                }
            }
            self._api.patch(paths.jobs(self._settings.namespace, name), change)
        try:
            job = moejob.read(item)
        except BadJob as error:
            self._refuse(item, error)
            return
        self._provide(job)
        if not (item.get("status") or {}).get("phase"):
            self._write_status(item, status.invalid_or_new(job, "Pending", "its controller is being started"))

    def _provide(self, job: MoEJob) -> None:
        """Secret, service and deployment, each made if it is not there; the deployment follows the object."""
        namespace = job.namespace
        tokens = Tokens(agent=secrets.token_urlsafe(TOKEN_BYTES), operator=secrets.token_urlsafe(TOKEN_BYTES))
        for kind, made in (
            ("secrets", manifests.access_secret(job, tokens)),
            ("services", manifests.service(job)),
        ):
            if self._find(paths.core(namespace, kind, made["metadata"]["name"])) is None:
                self._api.create(paths.core(namespace, kind), made)
        wanted = manifests.controller_deployment(job, self._settings.image)
        path = paths.deployments(namespace, wanted["metadata"]["name"])
        found = self._find(path)
        if found is None:
            self._api.create(paths.deployments(namespace), wanted)
            self._say(job.name, f"job {job.name} gets a controller: {wanted['metadata']['name']}")
        elif _digest(found) != _digest(wanted):
            self._api.patch(path, wanted)
            self._say(job.name, f"the controller of {job.name} is rolled over to what its object says now")

    def _find(self, path: str) -> Object | None:
        try:
            return self._api.get(path)
        except ApiError as error:
            if error.absent:
                return None
            raise

    def _refuse(self, item: Object, error: BadJob) -> None:
        """Tell why nothing is made of an object; a job that is under way already is told by its controller."""
        said = item.get("status") or {}
        version = int(item["metadata"].get("generation", 1))
        if said.get("phase") not in (None, "Invalid") or (
            said.get("phase") == "Invalid" and said.get("observedGeneration") == version
        ):
            return
        self._write_status(item, status.invalid_or_new(None, "Invalid", str(error), version))
        self._say(item["metadata"]["name"], f"job {item['metadata']['name']} cannot run: {error}")

    def _write_status(self, item: Object, new: Object) -> None:
        at = time.time()
        whole = status.with_times(new, item.get("status") or {}, at)
        path = f"{paths.jobs(self._settings.namespace, item['metadata']['name'])}/status"
        self._api.patch(path, {"status": whole})

    def _clean_up(self, item: Object) -> None:
        """Controllers first, so that nobody brings pods back; then pods; then tables; then the object may go."""
        metadata, namespace = item["metadata"], self._settings.namespace
        if FINALIZER not in (metadata.get("finalizers") or ()):
            return
        name = metadata["name"]
        deployment = paths.deployments(namespace, manifests.service_name(name))
        if self._find(deployment) is not None:
            self._api.delete(deployment)
        self._end_pods(name)
        if self._pods_of(name):
            return  # the next look goes on
        self._drop_schema(moejob.schema_of(metadata["uid"]))
        left = [each for each in metadata["finalizers"] if each != FINALIZER]
        change = {"metadata": {"finalizers": left, "resourceVersion": metadata["resourceVersion"]}}
        try:
            self._api.patch(paths.jobs(namespace, name), change)
        except ApiError as error:
            if not (error.absent or error.conflict):
                raise
        self._say(name, f"job {name} is deleted, and all that belonged to it; its folder stays")

    def _end_pods(self, name: str) -> None:
        for pod in self._pods_of(name):
            metadata = pod["metadata"]
            # On a machine that does not answer nobody confirms an end: the second time it is not waited for.
            left = metadata.get("deletionGracePeriodSeconds")
            grace = (
                0 if metadata.get("deletionTimestamp") and left == END_GRACE_SECONDS else END_GRACE_SECONDS
            )
            if grace == 0 and not _overdue(metadata):
                continue
            try:
                path = paths.pods(self._settings.namespace, metadata["name"])
                self._api.delete(path, grace_seconds=grace, uid=metadata["uid"])
            except ApiError as error:
                if not (error.absent or error.conflict):
                    raise

    def _pods_of(self, name: str) -> list[Object]:
        query = {"labelSelector": f"{manifests.JOB_LABEL}={name}"}
        return list(self._api.get(paths.pods(self._settings.namespace), query).get("items") or ())

    def _say(self, name: str, words: str) -> None:
        """Once for each thing that there is to say of a job."""
        if self._said.get(name) != words:
            self._said[name] = words
            log.info("%s", words)


def _digest(deployment: Object) -> str:
    return str((deployment["metadata"].get("annotations") or {}).get(manifests.HASH_ANNOTATION, ""))


def _overdue(metadata: Object) -> bool:
    return time.time() > seconds(metadata["deletionTimestamp"]) + END_GRACE_SECONDS
