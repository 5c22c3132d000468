"""Tells people what the core knows: the status of the job, at most one write in a look, and an Event per incident.

A step is no news by itself: how far training has come is written now and then, everything else at once. What could not
be written is written by a later look. Next: `status.py`, what is written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from orchestrator.cluster.kube import api as paths
from orchestrator.cluster.kube import status as statuses
from orchestrator.cluster.kube.api import Api, ApiError, Object
from orchestrator.cluster.kube.moejob import MoEJob
from orchestrator.cluster.kube.status import Told

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 2.0
"""Between two writes that tell no more than step and loss."""
TOLD_LIMIT = 4096


class Reporter:
    """Writes for one job. From one thread."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._written: Object | None = None
        self._written_at = 0.0
        self._told: dict[str, None] = {}

    def report(self, job: MoEJob, item: Object, new: Object, events: Iterable[Told], at: float) -> None:
        """Write what differs from what the object says, `item` being how it was last seen. Raises ApiError."""
        seen = self._written if self._written is not None else item.get("status") or {}
        whole = statuses.with_times(new, seen, at)
        differs, at_once = statuses.changed(whole, seen)
        if differs and (at_once or at - self._written_at >= PROGRESS_SECONDS):
            self._api.patch(f"{paths.jobs(job.namespace, job.name)}/status", {"status": whole})
            self._written, self._written_at = whole, at
        for told in events:
            if told.name not in self._told:
                self._tell(job, told)

    def _tell(self, job: MoEJob, told: Told) -> None:
        try:
            self._api.create(paths.core(job.namespace, "events"), statuses.event(job, told))
        except ApiError as error:
            if not error.conflict:  # else an earlier controller has told it
                raise
        log.info("%s: %s", told.reason, told.message)
        self._told[told.name] = None
        while len(self._told) > TOLD_LIMIT:
            del self._told[next(iter(self._told))]
