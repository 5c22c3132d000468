"""A watcher follows the objects at a path, whatever becomes of its watch; and who of several operators is in charge."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from orchestrator.cluster.kube import api as paths
from orchestrator.cluster.kube.api import KubeApi
from orchestrator.cluster.kube.election import LEASE_SECONDS, RENEW_SECONDS, Election
from orchestrator.cluster.kube.watching import Watcher
from tests.integration.played_kubernetes import PlayedKubernetes
from tests.waiting import wait_until

PODS = paths.pods("understudy")
SECONDS = 10.0


def path(name: str) -> str:
    return paths.pods("understudy", name)


@pytest.fixture
def watcher(kubernetes: PlayedKubernetes) -> Iterator[Watcher]:
    """Of pods with the label a=b, begun when there is one."""
    kubernetes.write(path("first"), {"metadata": {"labels": {"a": "b"}}})
    kubernetes.write(path("other"), {"metadata": {"labels": {"a": "c"}}})
    made = Watcher(KubeApi("played"), PODS, threading.Event().set, {"labelSelector": "a=b"})
    made.start()
    assert made.listed.wait(SECONDS)
    yield made
    made.stop()
    kubernetes.end_watches()
    made._thread.join(SECONDS)
    assert not made._thread.is_alive()


def until_seen(watcher: Watcher, *names: str) -> None:
    wait_until(lambda: set(watcher.objects()) == set(names), within_seconds=SECONDS, what=f"{names} are seen")


def test_what_there_is_and_what_comes_and_goes_is_seen(
    kubernetes: PlayedKubernetes, watcher: Watcher
) -> None:
    """Only what the selector names."""
    until_seen(watcher, "first")
    kubernetes.write(path("second"), {"metadata": {"labels": {"a": "b"}}})
    until_seen(watcher, "first", "second")
    gone = watcher.objects()["first"]["metadata"]["uid"]
    assert not watcher.is_gone(gone)
    kubernetes.remove(path("first"))
    until_seen(watcher, "second")
    assert watcher.is_gone(gone)


def test_a_pod_that_was_made_anew_under_its_name_is_another_one(
    kubernetes: PlayedKubernetes, watcher: Watcher
) -> None:
    """The uid of the old one is known to have gone, which is what a stale agent is refused by."""
    old = watcher.objects()["first"]["metadata"]["uid"]
    kubernetes.remove(path("first"))
    kubernetes.write(path("first"), {"metadata": {"labels": {"a": "b"}}})
    wait_until(
        lambda: watcher.is_gone(old) and "first" in watcher.objects(),
        within_seconds=SECONDS,
        what="the new pod is seen",
    )
    assert watcher.objects()["first"]["metadata"]["uid"] != old


def test_a_watch_that_ends_goes_on_where_it_was(kubernetes: PlayedKubernetes, watcher: Watcher) -> None:
    """Without a second list."""
    wait_until(lambda: kubernetes.watches == 1, within_seconds=SECONDS, what="a watch")
    lists = kubernetes.count("GET", "/pods")
    kubernetes.end_watches()
    kubernetes.write(path("second"), {"metadata": {"labels": {"a": "b"}}})
    until_seen(watcher, "first", "second")
    assert kubernetes.count("GET", "/pods") == lists


def test_what_went_while_the_server_was_forgetful_is_known_to_have_gone(
    kubernetes: PlayedKubernetes, watcher: Watcher
) -> None:
    """410: listed again, and compared with what was known."""
    wait_until(lambda: kubernetes.watches == 1, within_seconds=SECONDS, what="a watch")
    old = watcher.objects()["first"]["metadata"]["uid"]
    with kubernetes.changed:
        kubernetes.remove(path("first"))
        kubernetes.write(path("third"), {"metadata": {"labels": {"a": "b"}}})
        kubernetes.forget()
    until_seen(watcher, "third")
    assert watcher.is_gone(old)


def test_a_server_that_was_away_is_asked_again(kubernetes: PlayedKubernetes, watcher: Watcher) -> None:
    """Until it answers; what is known stays known meanwhile."""
    kubernetes.away = True
    kubernetes.end_watches()
    kubernetes.write(path("second"), {"metadata": {"labels": {"a": "b"}}})
    assert set(watcher.objects()) == {"first"}
    kubernetes.away = False
    until_seen(watcher, "first", "second")


def test_a_long_list_is_read_page_by_page(kubernetes: PlayedKubernetes) -> None:
    """However many there are."""
    kubernetes.page = 2
    names = [f"pod-{number}" for number in range(5)]
    for name in names:
        kubernetes.write(path(name), {})
    watcher = Watcher(KubeApi("played"), PODS, threading.Event().set)
    watcher.start()
    try:
        until_seen(watcher, *names)
        assert kubernetes.count("GET", "/pods") == 3
    finally:
        watcher.stop()


class Clock:
    """Of an election."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def election(identity: str, clock: Clock) -> Election:
    return Election(KubeApi("played"), "understudy", "operator", identity, clock)


def test_one_of_two_operators_is_in_charge(kubernetes: PlayedKubernetes) -> None:
    """And goes on being it, by renewing its lease."""
    clock = Clock()
    ada, bob = election("ada", clock), election("bob", clock)
    for _ in range(10):
        assert ada.holds() and not bob.holds()
        clock.now += RENEW_SECONDS
    lease = kubernetes.read(paths.leases("understudy", "operator"))
    assert lease is not None and lease["spec"]["holderIdentity"] == "ada"


def test_one_that_falls_silent_is_followed_after_its_lease_and_not_before(
    kubernetes: PlayedKubernetes,
) -> None:
    """Whatever the clocks of others say: the lease was seen not to change."""
    del kubernetes
    clock = Clock()
    ada, bob = election("ada", clock), election("bob", clock)
    assert ada.holds() and not bob.holds()
    clock.now += LEASE_SECONDS - 1
    assert not bob.holds()
    clock.now += 1
    assert bob.holds() and not ada.holds()


def test_one_that_leaves_in_order_is_followed_at_once(kubernetes: PlayedKubernetes) -> None:
    """Its lease is given back; giving back what somebody else has taken is no harm."""
    clock = Clock()
    ada, bob = election("ada", clock), election("bob", clock)
    assert ada.holds() and not bob.holds()
    ada.release()
    assert bob.holds()
    ada.release()
    lease = kubernetes.read(paths.leases("understudy", "operator"))
    assert lease is not None and lease["spec"]["holderIdentity"] == "bob"


def test_an_api_server_that_is_away_is_forgiven_as_long_as_the_lease_lasts(
    kubernetes: PlayedKubernetes,
) -> None:
    """Nobody else can have taken it so soon."""
    clock = Clock()
    ada = election("ada", clock)
    assert ada.holds()
    kubernetes.away = True
    clock.now += LEASE_SECONDS - 1
    assert ada.holds()
    clock.now += 1
    assert not ada.holds()


def test_two_that_reach_for_a_lease_at_once_do_not_both_get_it(kubernetes: PlayedKubernetes) -> None:
    """The server refuses the second: what it wants to change has changed since it read it."""
    clock = Clock()
    ada = election("ada", clock)
    kubernetes.refusals[("PATCH", "/leases/operator")] = (409, "the object has been modified")
    kubernetes.write(paths.leases("understudy", "operator"), {"spec": {"holderIdentity": ""}})
    assert not ada.holds()
    kubernetes.refusals.clear()
    assert ada.holds()
