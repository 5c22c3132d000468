"""A simulated trainer process: the loop of `worker/training/loop.py`, told as a generator that virtual time drives.

It reads like the real loop, step, entrance and orders, and calls the real ones where they are pure: the order book
(`Orders`), the vote (`TallyLayout`), the resume rule (`resume_from`). What waits is a `yield`; a peer's end or a newer
generation is raised there, as in the real program. Next: `groups.py` for collectives, `agent.py` for its supervisor.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from simulation.copies import Copies, Donor, Staging, give, unite
from simulation.ground import Ground
from simulation.groups import Groups
from simulation.holdings import Holdings
from simulation.memory import FindHost, Snapshots
from simulation.process import Idle, Life, Meet, Pause, Place, Process, Wait
from simulation.saves import READ_SECONDS, Saves
from simulation.truth import Commit
from worker.agent.messages import (
    Assignment,
    Beat,
    CommunicationFailed,
    Configure,
    GenerationJoined,
    Order,
    PairChecked,
    Ready,
    Report,
    RestoreFailed,
    StateRefused,
    StepCommitted,
    StepRedone,
    TrainingEnded,
)
from worker.checkpointing.errors import CheckpointDamaged
from worker.parallel.groups import CommunicationError, GenerationEnded
from worker.parallel.handshake import ABSENT, PartLost, Resumption, Standing, resume_from
from worker.training.orders import Handlers, Orders
from worker.training.regroup import held_experts, stage_of_rank
from worker.training.step import NotFinite
from worker.training.tally import Pending, Tally, TallyLayout, Vote

START_SECONDS = (0.5, 2.5)
STEP_SECONDS = 0.35
CHECK_SECONDS = 0.4
ORDER_SECONDS = 0.0005


class Trainer(Process):
    """A process that trains."""

    def __init__(
        self,
        ground: Ground,
        place: Place,
        *,
        groups: Groups,
        find: Callable[[str], Donor | None],
        memory: tuple[list[str], FindHost],
        say: Callable[[Report], None],
    ) -> None:
        super().__init__(ground)
        self.name = place.trainer
        self.start = place.start
        self.place = place.node
        self.slowness = 1.0
        self.not_finite = False
        """The next step's loss will not be a number."""
        self.peer_address = f"{place.trainer}:peer-{place.serial}"
        self.followers: list[Staging] = []
        self._store_address = f"{place.trainer}:store-{place.serial}"
        self._groups = groups
        self._say = say
        spec = ground.spec
        self._samples = spec.batch.microbatches * spec.batch.microbatch_size
        self._layout = TallyLayout(experts=spec.all_experts, samples=self._samples)
        self.state = Holdings(place.trainer, ground.parts, ground.truth)
        self._said_at = 0.0
        self._saves = Saves(
            ground, self.state, trainer=self.name, when_awake=self._when_awake, report=self._report
        )
        self._snapshots = Snapshots(
            ground,
            self.state,
            slots=memory[0],
            find=memory[1],
            when_awake=self._when_awake,
            report=self._report,
        )
        self._copies = Copies(
            ground, place=self.place, find=find, when_awake=self._when_awake, report=self._report
        )
        handlers = Handlers(
            configure=lambda order: None,
            acquire=self._copies.begin,
            seal=self._saves.seal,
            delete=self._saves.delete,
            foresee=lambda order: None,
        )
        self._orders = Orders(self._watch, handlers)
        self._begun = ABSENT
        self._work_seconds = 0.0
        """Of the last committed step: what it computed itself."""
        self._worked = 0.0
        """Of the step that it computes."""
        self._when_awake(0.0, lambda: self._advance(None))

    # ---- what others do to it ----

    def receive(self, order: Order) -> None:
        """An order of the agent; a stopped process reads it when it runs again."""
        if not isinstance(order, Configure):
            self._when_awake(ORDER_SECONDS, lambda: self._read(order))

    def _read(self, order: Order) -> None:
        self._orders.receive(order)
        self._look()

    def beat(self) -> Beat:
        pulse = self._pulse
        return Beat(
            generation=pulse.generation,
            step=pulse.step,
            phase=pulse.phase,
            operation=pulse.operation,
            waiting=pulse.waiting,
            work_seconds=self._work_seconds,
        )

    def end(self, *, silently: bool = False) -> None:
        """The process is gone; silently where the whole machine has lost its power."""
        if not self.alive:
            return
        self.alive = False
        self._copies.clear()
        for staging in self.followers:
            staging.end("the donor is gone")
        if self._group is not None:
            if silently:
                self._group.vanish(self._rank)
            else:
                self._group.leave(self._rank)
            self._group = None

    def break_collective(self) -> None:
        """A collective raises though nobody is gone."""
        if self._group is not None:
            self._group.interrupt(self._rank, "unexpected end of message")

    @property
    def seated(self) -> bool:
        return self._group is not None

    def _report(self, report: Report) -> None:
        """To the agent, in order, through a socket that the process's end does not empty."""
        self._said_at = max(self._said_at + 1e-6, self._ground.now + self._ground.between(0.0, 0.003))
        self._ground.scheduler.after(self._said_at - self._ground.now, lambda: self._say(report))

    # ---- the life: worker/training/loop.py ----

    def _live(self) -> Life:
        yield Pause(self._ground.between(*START_SECONDS))
        self._pulse.phase = "ready"
        self._report(
            Ready(store_address=self._store_address, peer_address=self.peer_address, device_name="simulated")
        )
        seen, idle_in = 0, None
        while True:
            assignment = yield from self._wait_for_seat(seen, idle_in)
            seen, idle_in = assignment.number, None
            try:
                yield from self._enter(assignment)
                finished = yield from self._train(assignment)
                self._report(TrainingEnded(generation=seen, step=self.state.version, finished=finished))
                idle_in = assignment
            except GenerationEnded:
                continue
            except CommunicationError as error:
                self._report(CommunicationFailed(generation=seen, step=self._pulse.step, detail=str(error)))
            except (PartLost, NotFinite) as error:
                self._report(
                    StateRefused(
                        generation=seen,
                        step=self._pulse.step,
                        reason=str(error),
                        not_finite=isinstance(error, NotFinite),
                    )
                )
            except CheckpointDamaged as error:
                self._report(
                    RestoreFailed(
                        generation=seen,
                        name=error.checkpoint,
                        shard=error.shard,
                        reason=error.reason,
                        damaged=True,
                    )
                )
            finally:
                self._pulse.phase = "ready" if idle_in is None else "finished"
                self._leave()

    def _wait_for_seat(
        self, seen: int, idle_in: Assignment | None
    ) -> Generator[Wait, Any, Assignment]:  # Any: see Life
        while True:
            assignment = self._orders.seat_above(seen)
            if assignment is not None:
                return assignment
            yield from self._check_pair()
            if idle_in is not None and (order := self._orders.take_checkpoint()) is not None:
                self._saves.take(order, idle_in)
            yield Idle()

    def _check_pair(self) -> Life:
        """Work against another trainer, if that is wanted; what came of it depends on this machine alone."""
        order = self._orders.take_check()
        if order is None:
            return
        yield Pause(CHECK_SECONDS * self.slowness * self._ground.between(0.9, 1.1))
        self._report(
            PairChecked(
                check=order.check,
                outcome="done",
                right=True,
                digest="simulated",
                compute_seconds=CHECK_SECONDS * self.slowness,
                exchange_seconds=CHECK_SECONDS,
                reason="",
            )
        )

    def _leave(self) -> None:
        if self._group is not None:
            self._group.leave(self._rank)
        self._group = None

    # ---- entering: worker/training/{trainer,regroup}.py ----

    def _enter(self, assignment: Assignment) -> Life:
        self._pulse.generation = assignment.number
        self._pulse.enter("regroup")
        yield from self._prepare(assignment)
        self._group, self._rank = self._groups.of(assignment), assignment.rank
        self._operation, self._broken = 0, ""
        self.generation = assignment.number
        self._group.enter(self._rank, self, self._lost_touch)
        self._check_over(assignment.number)
        standings = yield Meet(self._standing())
        resumption = resume_from(standings, assignment.placement, stage_of_rank(assignment))
        completes = resumption.tally is not None and self.state.version == resumption.committed - 1
        if completes:
            assert resumption.tally is not None
            self._commit(assignment.number, resumption.committed, resumption.tally)
        copied = yield from self._fill(assignment, resumption)
        redoes = self._begun > resumption.committed
        self._pulse.step = self.state.version
        self._report(
            GenerationJoined(
                generation=assignment.number,
                committed=resumption.committed,
                completed_held=completes,
                redoes=redoes,
                copied_parts=copied,
            )
        )

    def _prepare(self, assignment: Assignment) -> Life:
        if assignment.kind not in ("initial", "restore"):
            return
        for staging in self.followers:
            staging.end("the state is set back to a checkpoint")
        self._copies.clear()
        self._begun = ABSENT
        experts, stage = held_experts(assignment), stage_of_rank(assignment)[assignment.rank]
        self._pulse.enter("restoring")
        if not assignment.restore_name:
            self.state.initialise(experts, stage)
            return
        yield Pause(self._ground.between(*READ_SECONDS), minding=assignment.number)
        self._check_over(assignment.number)
        wanted = self.state.wanted(experts, stage)
        if assignment.restore_shards:
            digests = self._snapshots.read(assignment, wanted)
        else:
            digests = self._saves.read(assignment.restore_name, wanted)
        self.state.load(digests, assignment.restore_step)

    def _check_over(self, generation: int) -> None:
        self._watch.check(generation)

    def _standing(self) -> Standing:
        state = self.state
        return Standing(
            committed=state.version,
            ready=state.ready,
            tally_step=state.tally_step,
            tally=state.tally or (0.0,) * self._layout.length,
            versions=unite(state.versions(), self._copies.versions()),
        )

    def _fill(
        self, assignment: Assignment, resumption: Resumption
    ) -> Generator[Wait, Any, int]:  # Any: see Life
        """Receive what is missing; returns how many parts came from peers."""
        if resumption.transfers:
            self._copies.catch_up()
            standings = yield Meet(self._standing())
            resumption = resume_from(standings, assignment.placement, stage_of_rank(assignment))
        received: dict[int, int] = {}
        if resumption.transfers:
            mine = {
                each.part: self._supply(each.part, resumption.committed)
                for each in resumption.transfers
                if each.source == self._rank
            }
            given = yield Meet(mine)
            received = {
                each.part: given[each.source][each.part]
                for each in resumption.transfers
                if each.to == self._rank
            }
        copied = len(received)
        for part, digest in self._copies.staged(resumption.committed).items():
            held = part in self.state.digests and self.state.version == resumption.committed
            if part not in received and not held:
                received[part] = digest
        stage = stage_of_rank(assignment)[assignment.rank]
        self.state.adopt(held_experts(assignment), stage, received, resumption.committed)
        self._copies.clear()
        return copied

    def _supply(self, part: int, version: int) -> int:
        if part in self.state.digests and self.state.version == version:
            return self.state.digests[part]
        return self._copies.staged(version)[part]

    # ---- steps: worker/training/step.py ----

    def _train(self, assignment: Assignment) -> Generator[Wait, Any, bool]:  # Any: see Life
        """Steps until the job is done (True) or stopped (False)."""
        self._saves.enter()
        while self.state.version < self._ground.spec.steps:
            step = self._begun = self.state.version + 1
            tally, pending = yield from self._step(assignment, step)
            self._commit(assignment.number, step, self.state.tally)
            self._pulse.enter("boundary")
            yield from self._check_pair()
            if not self._boundary(assignment, tally, pending):
                return False
        return True

    def _step(
        self, assignment: Assignment, step: int
    ) -> Generator[Wait, Any, tuple[Tally, dict[Pending, str]]]:  # Any: see Life
        """One step up to its vote, once more where its numbers are none: as in the real loop."""
        began = self._ground.now
        pending = self._orders.pending(room=self._saves.ready)
        try:
            tally = yield from self._compute(assignment, step, pending)
        except NotFinite as error:
            culprit = error.culprit
        else:
            return tally, pending
        pending = self._orders.pending(room=self._saves.ready)
        tally = yield from self._compute(assignment, step, pending)
        seconds = self._ground.now - began
        self._report(StepRedone(generation=assignment.number, step=step, rank=culprit, seconds=seconds))
        return tally, pending

    def _compute(
        self, assignment: Assignment, step: int, pending: dict[Pending, str]
    ) -> Generator[Wait, Any, Tally]:  # Any: see Life
        self.state.zero_gradients()
        self._pulse.enter("forward")
        seconds = STEP_SECONDS * self.slowness * self._ground.between(0.9, 1.1)
        yield Pause(seconds)  # of which it waits where it has less to do than others
        most = max(map(len, assignment.deal))
        self._worked = seconds * len(assignment.deal[self._rank]) / most if most else seconds
        tally = yield from self._reduce_and_vote(assignment, step, pending)
        return tally

    def _reduce_and_vote(
        self, assignment: Assignment, step: int, pending: dict[Pending, str]
    ) -> Generator[Wait, Any, Tally]:  # Any: see Life
        size = self._ground.spec.batch.microbatch_size
        mine = [index * size + each for index in assignment.deal[self._rank] for each in range(size)]
        stages = stage_of_rank(assignment)
        own, last = stages[self._rank], max(stages)
        self._pulse.enter("reduce")
        given = yield Meet(tuple(mine))
        counts = [0] * self._samples
        for stage, samples in zip(stages, given, strict=True):
            for sample in samples if stage == own else ():
                counts[sample] += 1
        self._pulse.enter("vote")
        self.state.ready, self.state.counts = step, tuple(counts)
        self.state.voted_in = assignment.number
        self.state.voters = frozenset(each.peer_address for each in assignment.members)
        poisoned, self.not_finite = self.not_finite, False
        experts = self._layout.experts
        vote = Vote(
            expert_norms_squared=(0.0,) * experts,
            dense_norm_squared=0.0,
            expert_load=(len(mine),) * experts,
            samples=mine if own == last else (),
            loss=1.0 / len(assignment.members),
            tokens=len(mine) if own == last else 0,
            rank=self._rank,
            own_finite=not poisoned,
            sums_finite=not poisoned,
            pending=pending,
        )
        votes = yield Meet(self._layout.cast(vote))
        result = tuple(map(sum, zip(*votes, strict=True)))
        tally = self._layout.read(result)
        if tally.not_finite:
            self.state.ready = ABSENT
            raise NotFinite(step, tally)
        self.state.tally_step, self.state.tally = step, result
        return tally

    def _commit(self, generation: int, step: int, values: tuple[float, ...]) -> None:
        """Apply the held gradients, say so, and let those who follow have them."""
        tally = self._layout.read(values)
        self._pulse.phase = "optimizer"
        self.state.commit(step)
        self.state.tally_step, self.state.tally = step, values
        self._pulse.step, self._work_seconds = step, self._worked
        self._begun = ABSENT
        commit = Commit(
            process=self.peer_address,
            generation=generation,
            voted_in=self.state.voted_in,
            members=self.state.voters,
            step=step,
            counts=tally.sample_counts,
        )
        if self._ground.truth.committed(commit):
            self._ground.timeline.say(self.name, f"commits step {step} in generation {generation}")
        first = (step - 1) * self._samples
        self._report(
            StepCommitted(
                step=step,
                generation=generation,
                loss=tally.loss,
                tokens=tally.tokens,
                time=self._ground.now,
                step_seconds=STEP_SECONDS,
                sample_ids=tuple(
                    first + index for index, count in enumerate(tally.sample_counts) for _ in range(count)
                ),
                expert_load=tally.expert_load,
                layer_load=tally.layer_load,
                learning_rate=0.0,
                gradient_norm=tally.norm,
            )
        )
        give(self._ground, self.followers, self.state)

    def _boundary(self, assignment: Assignment, tally: Tally, pending: dict[Pending, str]) -> bool:
        """Carry out what all members had been told when they voted. False when training stops here."""
        world = len(assignment.members)
        if tally.agreed(Pending.SNAPSHOT, pending.get(Pending.SNAPSHOT), world):
            snapshot = self._orders.take_snapshot()
            if snapshot is not None:
                self._snapshots.take(snapshot, assignment)
        if tally.agreed(Pending.CHECKPOINT, pending.get(Pending.CHECKPOINT), world):
            order = self._orders.take_checkpoint()
            if order is not None:
                self._saves.take(order, assignment)
        if tally.agreed(Pending.STOP, pending.get(Pending.STOP), world):
            self._orders.take_stop()
            return False
        if tally.agreed(Pending.PLANNED_GENERATION, pending.get(Pending.PLANNED_GENERATION), world):
            self._orders.take_planned()
            raise GenerationEnded("a planned generation takes over at this boundary")
        return True
