"""Which of several operators is in charge: a Lease object, renewed while its holder lives, taken over when it is not.

Clocks of different machines do not matter: what counts is for how long a lease has been seen not to change. The API
server refuses a change of what has changed since it was read, so that two cannot win. Next: `operator.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from orchestrator.cluster.kube import api as paths
from orchestrator.cluster.kube.api import Api, ApiError, Object

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
RENEW_SECONDS = 4.0


class Election:
    """`holds` again and again, at least every `RENEW_SECONDS`, from one thread."""

    def __init__(
        self, api: Api, namespace: str, name: str, identity: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._renewed_at: float | None = None
        self._seen: tuple[str, float] | None = None
        """Version of somebody else's lease, and since when it has not changed."""

    def holds(self) -> bool:
        """In charge from now until the lease would run out. An API server that is away is forgiven so long."""
        now = self._clock()
        if self._renewed_at is not None and now - self._renewed_at < RENEW_SECONDS:
            return True
        try:
            mine = self._try(now)
        except ApiError as error:
            log.warning("the lease of the operator could not be renewed: %s", error)
            return self._renewed_at is not None and now - self._renewed_at < LEASE_SECONDS
        if mine != (self._renewed_at is not None):
            log.info("%s %s in charge", self._identity, "is" if mine else "is not")
        self._renewed_at = now if mine else None
        return mine

    def release(self) -> None:
        """Let the next one begin at once."""
        if self._renewed_at is None:
            return
        self._renewed_at = None
        try:
            lease = self._api.get(paths.leases(self._namespace, self._name))
            if lease["spec"].get("holderIdentity") == self._identity:
                self._write(lease, "")
        except ApiError as error:
            log.warning("the lease was not given back: %s", error)

    def _try(self, now: float) -> bool:
        try:
            lease = self._api.get(paths.leases(self._namespace, self._name))
        except ApiError as error:
            if not error.absent:
                raise
            return self._make()
        holder, version = lease["spec"].get("holderIdentity") or "", lease["metadata"]["resourceVersion"]
        if holder not in ("", self._identity):
            if self._seen is None or self._seen[0] != version:
                self._seen = (version, now)
            if now - self._seen[1] < LEASE_SECONDS:
                return False
        return self._write(lease, self._identity)

    def _make(self) -> bool:
        body: Object = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {"holderIdentity": self._identity, **_times()},
        }
        try:
            self._api.create(paths.leases(self._namespace), body)
        except ApiError as error:
            if error.conflict:
                return False
            raise
        return True

    def _write(self, lease: Object, holder: str) -> bool:
        change: Object = {
            "metadata": {"resourceVersion": lease["metadata"]["resourceVersion"]},
            "spec": {"holderIdentity": holder, **_times()},
        }
        try:
            self._api.patch(paths.leases(self._namespace, self._name), change)
        except ApiError as error:
            if error.conflict:
                return False
            raise
        return True


def _times() -> Object:
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    return {"leaseDurationSeconds": round(LEASE_SECONDS), "renewTime": now}
