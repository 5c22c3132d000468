"""What the outbox keeps, for how long, and what it lets go."""

from __future__ import annotations

from tests.unit.worker.agent.stories import FIRST, ended, failed, joined
from worker.agent import messages
from worker.agent.controller_messages import PassedOn, TrainerExited, TrainerFellSilent, TrainerSaid
from worker.agent.outbox import Outbox

SEALED = messages.CheckpointSealed(request="c", step=1, name="n", path="/n", bytes=1)


def _said(report: PassedOn, start: int = 1) -> TrainerSaid:
    return TrainerSaid(trainer=FIRST, start=start, report=report)


def _exited(start: int = 1, age_seconds: float = 0.0) -> TrainerExited:
    return TrainerExited(
        trainer=FIRST, start=start, exit_code=1, signal=None, will_restart=True, age_seconds=age_seconds
    )


def _outbox(limit: int = 10) -> Outbox:
    return Outbox(limit=limit, settled_seconds=30.0)


def test_unsent_messages_stay_however_old() -> None:
    """No controller for an hour."""
    outbox = _outbox()
    outbox.add(_exited(), 0.0, sent=False)
    outbox.settle(3600.0)
    assert outbox.resend(3600.0) == (_exited(age_seconds=3600.0),)


def test_sent_messages_stay_until_they_must_have_arrived() -> None:
    """Half a minute on a living stream."""
    outbox = _outbox()
    outbox.add(_exited(), 100.0, sent=True)
    outbox.settle(129.0)
    assert len(outbox) == 1
    outbox.settle(130.0)
    assert len(outbox) == 0


def test_sending_again_starts_the_time_again() -> None:
    """The new stream may break as well."""
    outbox = _outbox()
    outbox.add(_exited(), 100.0, sent=True)
    outbox.resend(125.0)
    outbox.settle(140.0)
    assert outbox.resend(141.0) == (_exited(age_seconds=41.0),)


def test_an_unsent_message_keeps_its_place() -> None:
    """Order is kept: what was sent before may settle, what comes after waits."""
    outbox = _outbox()
    outbox.add(_exited(1), 100.0, sent=True)
    outbox.add(_exited(2), 400.0, sent=False)
    outbox.settle(1000.0)
    assert outbox.resend(1000.0) == (_exited(2, age_seconds=600.0),)


def test_the_oldest_makes_room() -> None:
    """And is given back, so that it can be said which."""
    outbox = _outbox(limit=2)
    assert outbox.add(_exited(1), 0.0, sent=False) is None
    assert outbox.add(_exited(2), 0.0, sent=False) is None
    assert outbox.add(_exited(3), 0.0, sent=False) == _exited(1)
    assert outbox.resend(0.0) == (_exited(2), _exited(3))


def test_a_newer_generation_lets_go_of_what_belonged_to_older_ones() -> None:
    """But not of checkpoints: they are on disk, whoever wrote them."""
    outbox = _outbox()
    for report in (failed(1), joined(1), SEALED, joined(2)):
        outbox.add(_said(report), 0.0, sent=False)
    outbox.forget_generations_below(2)
    assert outbox.resend(0.0) == (_said(SEALED), _said(joined(2)))


def test_the_end_of_a_process_lets_go_of_what_was_true_of_it() -> None:
    """What it wrote, and how it ended, stay; so does everything of other processes."""
    outbox = _outbox()
    silent = TrainerFellSilent(trainer=FIRST, start=1, silent_seconds=4.0)
    for message in (
        silent,
        _said(joined(3)),
        _said(SEALED),
        _said(ended(finished=True)),
        _said(joined(3), 2),
    ):
        outbox.add(message, 0.0, sent=False)
    outbox.forget_process(FIRST, 1)
    kept = (_said(SEALED), _said(ended(finished=True)), _said(joined(3), 2))
    assert outbox.resend(0.0) == kept
