"""What Understudy takes for granted of an API server: true of the one that tests play, and of a real one.

    python -m tests.integration.kubernetes_claims NAMESPACE      asks the server of the kubeconfig (`make e2e` does)

Everything that is made here is removed again. The pods fit no machine, so that nothing runs.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import uuid
from collections.abc import Callable, Iterator

from orchestrator.cluster.kube import api as paths
from orchestrator.cluster.kube.api import ApiError, KubeApi, Object
from orchestrator.cluster.kube.election import Election
from orchestrator.cluster.kube.watching import Watcher
from tests.waiting import wait_until

SECONDS = 20.0
LABEL = "understudy.dev/claims"


def pod(name: str, run: str) -> Object:
    """One that no machine takes."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {LABEL: run}},
        "spec": {
            "nodeSelector": {LABEL: "nowhere"},
            "containers": [
                {
                    "name": "nothing",
                    "image": "nothing:none",
                    "imagePullPolicy": "Never",
                    "resources": {"requests": {"cpu": "1m"}},
                }
            ],
        },
    }


def refused(ask: Callable[[], object]) -> ApiError:
    """The error that a call must end in."""
    try:
        ask()
    except ApiError as error:
        return error
    raise AssertionError("the server did not refuse")


@contextlib.contextmanager
def following(api: KubeApi, namespace: str, run: str) -> Iterator[Watcher]:
    """A watcher of the pods of one run."""
    watcher = Watcher(api, paths.pods(namespace), threading.Event().set, {"labelSelector": f"{LABEL}={run}"})
    watcher.start()
    assert watcher.listed.wait(SECONDS)
    try:
        yield watcher
    finally:
        watcher.stop()


def objects(api: KubeApi, namespace: str, run: str) -> None:
    """Names are unique, versions and uids are preconditions, a merge patch removes with null."""
    one = paths.pods(namespace, f"{run}-a")
    made = api.create(paths.pods(namespace), pod(f"{run}-a", run))
    assert refused(lambda: api.create(paths.pods(namespace), pod(f"{run}-a", run))).conflict
    version = made["metadata"]["resourceVersion"]
    changed = api.patch(one, {"metadata": {"labels": {"more": "words"}}})
    assert changed["metadata"]["labels"] == {LABEL: run, "more": "words"}
    stale = {"metadata": {"resourceVersion": version, "labels": {"more": "others"}}}
    if changed["metadata"]["resourceVersion"] != version:
        assert refused(lambda: api.patch(one, stale)).conflict
    api.patch(one, {"metadata": {"labels": {"more": None}}})
    assert api.get(one)["metadata"]["labels"] == {LABEL: run}
    assert refused(lambda: api.delete(one, grace_seconds=0, uid="of-another-pod")).conflict
    api.delete(one, grace_seconds=0, uid=made["metadata"]["uid"])
    assert refused(lambda: api.get(one)).absent
    assert refused(lambda: api.delete(one)).absent


def watches(api: KubeApi, namespace: str, run: str) -> None:
    """What comes, changes, goes and comes again under its name is seen, and only what the selector names."""
    with following(api, namespace, run) as watcher:
        first = api.create(paths.pods(namespace), pod(f"{run}-b", run))
        other = api.create(paths.pods(namespace), pod(f"{run}-c", f"{run}-other"))
        one = paths.pods(namespace, f"{run}-b")
        _until(lambda: set(watcher.objects()) == {f"{run}-b"}, "a pod is seen")
        api.patch(one, {"metadata": {"annotations": {"understudy.dev/said": "hello"}}})
        _until(
            lambda: "hello" in str(watcher.objects()[f"{run}-b"]["metadata"].get("annotations")), "a change"
        )
        api.delete(one, grace_seconds=0)
        api.delete(paths.pods(namespace, other["metadata"]["name"]), grace_seconds=0)
        second = api.create(paths.pods(namespace), pod(f"{run}-b", run))
        _until(lambda: watcher.is_gone(first["metadata"]["uid"]), "the first one is known to have gone")
        _until(
            lambda: watcher.objects().get(f"{run}-b", first)["metadata"]["uid"] == second["metadata"]["uid"],
            "the second one is seen",
        )
        api.delete(one, grace_seconds=0)
        _until(lambda: not watcher.objects(), "nothing is left")


def election(api: KubeApi, namespace: str, run: str) -> None:
    """One of two is in charge, and gives its lease back."""
    ada, bob = (Election(api, namespace, run, name) for name in ("ada", "bob"))
    assert ada.holds() and not bob.holds()
    ada.release()
    assert bob.holds() and not ada.holds()
    bob.release()


def check(api: KubeApi, namespace: str) -> None:
    """All of it. Raises AssertionError."""
    run = f"claims-{uuid.uuid4().hex[:8]}"
    try:
        objects(api, namespace, run)
        watches(api, namespace, run)
        election(api, namespace, run)
    finally:
        for path in (
            *(paths.pods(namespace, f"{run}-{letter}") for letter in "abc"),
            paths.leases(namespace, run),
        ):
            with contextlib.suppress(ApiError):
                api.delete(path, grace_seconds=0)


def _until(done: Callable[[], object], what: str) -> None:
    wait_until(done, within_seconds=SECONDS, what=what)


if __name__ == "__main__":
    check(KubeApi(), sys.argv[1])
    print("the API server is as Understudy takes it to be")
