"""The bounded queue: what is coalesced, what is refused first, and that order is kept where it matters."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.controller.inbox import Inbox
from orchestrator.core.events import CheckpointDue, Event, HeartbeatReceived, LeasesDue
from tests.unit.orchestrator.controller.fakes import CAUSE, committed, disconnected, heartbeat


def _all(inbox: Inbox) -> list[Event]:
    found = []
    while (event := inbox.take(timeout=0.0)) is not None:
        found.append(event)
    return found


def test_events_come_out_in_the_order_in_which_they_went_in() -> None:
    inbox = Inbox()
    events: list[Event] = [committed(1), disconnected(), committed(2)]
    assert all(inbox.put(event) for event in events)
    assert _all(inbox) == events


def test_of_the_heartbeats_of_a_node_the_newest_waits() -> None:
    inbox = Inbox()
    for at in (1.0, 2.0, 3.0):
        inbox.put(heartbeat("node-1", at))
        inbox.put(heartbeat("node-2", at))
    assert _all(inbox) == [heartbeat("node-1", 3.0), heartbeat("node-2", 3.0)]


def test_a_heartbeat_does_not_overtake_another_event_of_its_node() -> None:
    inbox = Inbox()
    events: list[Event] = [heartbeat("node-1", 1.0), disconnected("node-1", 2.0), heartbeat("node-1", 3.0)]
    for event in events:
        inbox.put(event)
    assert _all(inbox) == events


def test_events_of_other_nodes_do_not_keep_heartbeats_apart() -> None:
    inbox = Inbox()
    for event in (heartbeat("node-1", 1.0), disconnected("node-2", 2.0), heartbeat("node-1", 3.0)):
        inbox.put(event)
    assert _all(inbox) == [heartbeat("node-1", 3.0), disconnected("node-2", 2.0)]


def test_after_a_heartbeat_was_taken_the_next_one_queues_again() -> None:
    inbox = Inbox()
    inbox.put(heartbeat(at=1.0))
    assert inbox.take(timeout=0.0) == heartbeat(at=1.0)
    inbox.put(heartbeat(at=2.0))
    assert inbox.take(timeout=0.0) == heartbeat(at=2.0)


def test_of_each_timer_one_event_waits_and_it_is_the_older_one() -> None:
    inbox = Inbox()
    for at in (1.0, 2.0):
        assert inbox.put(LeasesDue(at=at, cause_id=CAUSE))
        assert inbox.put(CheckpointDue(at=at, cause_id=CAUSE))
    assert [event.at for event in _all(inbox)] == [1.0, 1.0]
    inbox.put(LeasesDue(at=3.0, cause_id=CAUSE))
    assert len(inbox) == 1


def test_heartbeats_are_refused_first_and_step_reports_last() -> None:
    inbox = Inbox(capacity=4, heartbeat_share=0.5, node_share=1.0)
    assert inbox.put(heartbeat("node-1")) and inbox.put(heartbeat("node-2"))
    assert not inbox.put(heartbeat("node-3"))
    assert inbox.put(heartbeat("node-1", at=9.0)), "a newer one takes the place of the one that waits"
    assert inbox.put(committed(1)) and inbox.put(committed(2))
    assert not inbox.put(committed(3)), "full: the caller must know"
    assert len(inbox) == 4
    inbox.take(timeout=0.0)
    assert inbox.put(committed(3))


def test_heartbeats_that_come_together_are_treated_as_if_they_came_alone() -> None:
    inbox = Inbox(capacity=4, heartbeat_share=0.5)
    inbox.put(heartbeat("node-1", 1.0))
    inbox.put_heartbeats([heartbeat("node-1", 2.0), heartbeat("node-2", 2.0), heartbeat("node-3", 2.0)])
    assert _all(inbox) == [heartbeat("node-1", 2.0), heartbeat("node-2", 2.0)], "the third finds no room"
    inbox.close()
    inbox.put_heartbeats([heartbeat("node-1", 3.0)])
    assert _all(inbox) == []


def test_heartbeats_that_are_next_are_taken_together_up_to_anything_else() -> None:
    inbox = Inbox()
    events: list[Event] = [heartbeat(f"node-{each}") for each in range(1, 5)]
    for event in (*events, disconnected("node-9"), heartbeat("node-5")):
        inbox.put(event)
    assert list(inbox.take_heartbeats(3)) == events[:3]
    assert list(inbox.take_heartbeats(3)) == events[3:]
    assert not inbox.take_heartbeats(3)
    assert _all(inbox) == [disconnected("node-9"), heartbeat("node-5")]
    inbox.put(heartbeat("node-1", 2.0))
    assert len(inbox) == 1, "one that was taken does not keep the next one out"


def test_heartbeats_wake_who_waits() -> None:
    inbox = Inbox()
    taken: list[Event | None] = []
    thread = threading.Thread(target=lambda: taken.append(inbox.take(timeout=30.0)))
    thread.start()
    inbox.put_heartbeats([heartbeat("node-1")])
    thread.join(timeout=10.0)
    assert not thread.is_alive() and taken == [heartbeat("node-1")]


def test_a_closed_inbox_takes_nothing_and_still_gives_what_it_has() -> None:
    inbox = Inbox()
    inbox.put(committed(1))
    inbox.close()
    assert not inbox.put(committed(2))
    assert _all(inbox) == [committed(1)]


def test_wake_ends_a_wait_without_an_event() -> None:
    inbox = Inbox()
    taken: list[Event | None] = []
    thread = threading.Thread(target=lambda: taken.append(inbox.take(timeout=30.0)))
    thread.start()
    inbox.wake()
    thread.join(timeout=10.0)
    assert not thread.is_alive() and taken == [None]


def test_nothing_is_lost_between_many_threads() -> None:
    inbox = Inbox(capacity=10_000)
    writers = 4
    each = 500

    def write(writer: int) -> None:
        for number in range(each):
            assert inbox.put(disconnected(f"node-{writer}", at=float(number)))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    found: list[Event] = []
    while len(found) < writers * each:
        event = inbox.take(timeout=10.0)
        assert event is not None, f"{len(found)} of {writers * each} events came out"
        found.append(event)
    for thread in threads:
        thread.join()
    for writer in range(writers):
        mine = [event.at for event in found if event == disconnected(f"node-{writer}", event.at)]
        assert mine == [float(number) for number in range(each)]


_EVENTS = st.one_of(
    st.builds(heartbeat, st.sampled_from(["node-1", "node-2"]), st.floats(0, 1)),
    st.builds(disconnected, st.sampled_from(["node-1", "node-2"]), st.floats(0, 1)),
    st.builds(committed, st.integers(1, 9)),
    st.none(),
)


@given(st.lists(_EVENTS, max_size=40))
def test_coalescing_loses_heartbeats_only_and_the_newest_never(script: list[Event | None]) -> None:
    """`None` takes one event. Whatever is put, everything but heartbeats comes out in order, and for each node the
    last heartbeat is the last one that comes out."""
    inbox = Inbox()
    put: list[Event] = []
    out: list[Event] = []
    for event in script:
        if event is None:
            taken = inbox.take(timeout=0.0)
            out += [] if taken is None else [taken]
        else:
            assert inbox.put(event)
            put.append(event)
    out += _all(inbox)
    assert _others(out) == _others(put)
    for node in ("node-1", "node-2"):
        assert _beats(out, node)[-1:] == _beats(put, node)[-1:]


def _others(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, HeartbeatReceived)]


def _beats(events: list[Event], node: str) -> list[Event]:
    return [event for event in events if isinstance(event, HeartbeatReceived) and event.node == node]


def test_a_node_that_floods_leaves_room_for_the_others() -> None:
    """It is refused at its share; taking its events makes room for it again."""
    inbox = Inbox(capacity=16, node_share=0.25)
    flood = [disconnected("node-1") for _ in range(6)]
    assert [inbox.put(each) for each in flood] == [True] * 4 + [False] * 2
    assert inbox.put(disconnected("node-2")) and inbox.put(heartbeat("node-3"))
    assert not inbox.put(heartbeat("node-1"))
    assert inbox.take(0.0) is flood[0]
    assert inbox.put(disconnected("node-1"))
    while inbox.take(0.0) is not None:
        pass
    assert [inbox.put(disconnected("node-1")) for _ in range(5)] == [True] * 4 + [False]
