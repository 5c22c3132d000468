"""What members do together: restore, shake hands, commit steps, take checkpoints, leave the loop.

A model of the elastic loop that is exact where the core's promises are: a generation needs all its members, alive and
told; every part must be held at the step that they go on from; a committed step must not be lost. The last two are
assertions about the core: an assignment that breaks them fails the test. Next: `world.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.core import events
from orchestrator.core.ids import Rank, Step, TrainerId, node_of
from orchestrator.core.measurements import StepRecord
from orchestrator.core.state import NO_GENERATION, Generation, GenerationKind
from tests.scenarios.agents import Agents, Controller
from tests.scenarios.memories import Memories
from tests.scenarios.models import RIGHT, STEP_TICKS, TICK_SECONDS, WRITE_SECONDS, Seat, Trainer, parts_of

FROM_STORAGE = (GenerationKind.INITIAL, GenerationKind.RESTORE)


class Training:
    """All generations that trainers are in, however stale."""

    def __init__(self, controller: Controller, agents: Agents) -> None:
        self.committed = 0
        """The last step that was really committed, whoever knows."""
        self.newest = NO_GENERATION
        """The generation whose commits count: who is cut off may train on in an older one, to no effect."""
        self.fail_checkpoints: set[TrainerId] = set()
        self.unreadable: dict[TrainerId, str] = {}
        """What members cannot read of their data: in the vote all learn of it, and leave before the step."""
        self.paused = False
        """Nobody gets on, although everybody looks alive."""
        self._controller = controller
        self._agents = agents
        self._memories = Memories(controller, agents)

    def tick(self, number: int) -> None:
        """Regroup whoever can; commit a step where all members of a generation are at work."""
        self._memories.tick()
        boundary = number % STEP_TICKS == 0 and not self.paused
        for generation in tuple(self._generations()):
            if generation.kind is not GenerationKind.PLANNED or boundary or self._nobody_works(generation):
                self._regroup(generation)
            self._restore(generation)
        if boundary:
            for generation in tuple(self._generations()):
                self._step(generation)

    # ---- who is where ----

    def _generations(self) -> Iterator[Generation]:
        """In which trainers have seats, newest last."""
        told = {
            trainer.generation
            for agent in self._agents.alive.values()
            for trainer in agent.trainers.values()
            if trainer.generation
        }
        for number in sorted(told):
            yield self._controller.disk.generations[number]

    def _seated(self, generation: Generation) -> list[Seat] | None:
        """The living processes of all members, by rank; None when one is gone."""
        found = []
        for member in generation.members:
            agent = self._agents.alive.get(node_of(member.trainer))
            trainer = agent.trainers.get(member.trainer) if agent else None
            if agent is None or trainer is None or trainer.start != member.start:
                return None
            found.append(Seat(agent=agent, trainer=trainer))
        return found

    def _workers(self, generation: Generation) -> list[Seat]:
        """Members that have joined and have not left since."""
        return [
            Seat(agent=agent, trainer=trainer)
            for agent in self._agents.alive.values()
            for trainer in agent.trainers.values()
            if trainer.joined == generation.number and not self._has_left(trainer, generation)
        ]

    def _nobody_works(self, generation: Generation) -> bool:
        """No member is in a step whose boundary a planned generation would wait for."""
        seats = self._seated(generation) or []
        return not any(
            seat.trainer.joined and not seat.trainer.finished and seat.trainer.broken != seat.trainer.joined
            for seat in seats
        )

    def _has_left(self, trainer: Trainer, generation: Generation) -> bool:
        """It was told a newer generation that waits for no boundary."""
        newer = trainer.generation > generation.number
        return (
            newer and self._controller.disk.generations[trainer.generation].kind is not GenerationKind.PLANNED
        )

    # ---- entering a generation ----

    def _restore(self, generation: Generation) -> None:
        """Each member by itself reads its share of a checkpoint, or makes the seed state."""
        if generation.kind not in FROM_STORAGE:
            return
        for member in generation.members:
            agent = self._agents.alive.get(node_of(member.trainer))
            trainer = agent.trainers.get(member.trainer) if agent else None
            if agent is None or trainer is None or agent.stopped or trainer.stopped:
                continue
            if trainer.generation != generation.number or trainer.restored == generation.number:
                continue
            trainer.restored = generation.number
            trainer.holds.clear()
            trainer.wrong.clear()
            trainer.changed.clear()
            missing = self._memories.missing(generation)
            if generation.restore_name in self._controller.disk.damaged or missing is not None:
                self._agents.report(
                    agent,
                    trainer,
                    events.RestoreFailed,
                    generation=generation.number,
                    name=generation.restore_name,
                    shard=f"rank-{missing or 0:05d}.safetensors",
                    reason="its hash does not match" if missing is None else "nobody holds it",
                    damaged=True,
                )
            else:
                trainer.step = generation.restore_step
                trainer.holds = parts_of(generation, member.rank)

    def _regroup(self, generation: Generation) -> None:
        """Members that were all told a generation, and are all awake, shake hands."""
        seats = self._seated(generation)
        if seats is None:
            self._wait_in_vain(generation)
            return
        if not seats or any(
            not seat.awake
            or seat.trainer.generation != generation.number
            or seat.trainer.joined == generation.number
            for seat in seats
        ):
            return
        if generation.kind is GenerationKind.PLANNED and not self._all_agree(generation, seats):
            return
        if generation.kind in FROM_STORAGE:
            if not all(seat.trainer.restored == generation.number and seat.trainer.holds for seat in seats):
                return
            self.committed = generation.restore_step
        elif not self._hand_over(generation, seats):
            return
        self.newest = generation.number
        for seat in seats:
            seat.trainer.joined = generation.number
            seat.trainer.step = self.committed
            seat.trainer.finished = seat.trainer.told_end = seat.trainer.following = False
        self._let_go(generation)
        for seat in seats:
            self._agents.report(
                seat.agent,
                seat.trainer,
                events.GenerationJoined,
                generation=generation.number,
                committed=Step(self.committed),
                completed_held=False,
                redoes=generation.kind is GenerationKind.IMMEDIATE,
                copied_parts=0,
            )

    def _all_agree(self, planned: Generation, seats: list[Seat]) -> bool:
        """A boundary needs everybody that works now, also those that leave."""
        working = {seat.trainer.joined for seat in seats if seat.trainer.joined and not seat.trainer.finished}
        return all(
            seat.awake and planned.number in (seat.trainer.generation, seat.trainer.leaves)
            for number in working
            for seat in self._workers(self._controller.disk.generations[number])
        )

    def _wait_in_vain(self, generation: Generation) -> None:
        """A member is gone before all have joined: those that try to reach it notice."""
        for agent in tuple(self._agents.alive.values()):
            for trainer in tuple(agent.trainers.values()):
                waits = trainer.generation == generation.number and trainer.joined < generation.number
                awake = not agent.stopped and not trainer.stopped
                at_work = trainer.joined and trainer.broken != trainer.joined
                if waits and awake and not (at_work and generation.kind is GenerationKind.PLANNED):
                    self._agents.lost_touch(agent, trainer, generation.number)

    def _hand_over(self, generation: Generation, seats: list[Seat]) -> bool:
        """Every part is held by somebody at the step that all go on from; who lacks it gets it."""
        held: set[str] = set()
        for seat in seats:
            if seat.trainer.step == self.committed or seat.trainer.following:
                held |= seat.trainer.holds
        wanted = {part for rank in range(len(seats)) for part in parts_of(generation, rank)}
        if wanted <= held:
            for rank, seat in enumerate(seats):
                seat.trainer.holds = parts_of(generation, rank)
            return True
        for seat in seats:
            if seat.trainer.broken != generation.number:
                seat.trainer.broken = generation.number
                self._agents.report(
                    seat.agent,
                    seat.trainer,
                    events.StateRefused,
                    generation=generation.number,
                    step=Step(seat.trainer.step),
                    reason=f"nobody holds {min(wanted - held)} at step {self.committed}",
                    not_finite=False,
                )
        return False

    def _let_go(self, generation: Generation) -> None:
        """Those that a planned generation goes on without are free now."""
        for agent in self._agents.alive.values():
            for trainer in agent.trainers.values():
                if trainer.leaves == generation.number:
                    trainer.joined = trainer.generation = trainer.leaves = NO_GENERATION
                    trainer.holds.clear()

    # ---- steps ----

    def _step(self, generation: Generation) -> None:
        """One step of one generation, or the news that a peer is gone."""
        workers = self._workers(generation)
        if not workers or any(seat.trainer.finished for seat in workers):
            self._idle(generation, workers)
            return
        seats = self._seated(generation)
        if seats is None or any(self._has_left(seat.trainer, generation) for seat in seats):
            for seat in workers:
                if seat.awake:
                    self._agents.lost_touch(seat.agent, seat.trainer)
            return
        together = all(
            seat.awake
            and seat.trainer.joined == generation.number
            and seat.trainer.broken != generation.number
            for seat in seats
        )
        if together and self.unreadable:
            for seat in seats:
                seat.trainer.finished = True
            self._idle(generation, seats)
        elif together and not self._differ(generation, seats):
            self._commit(generation, seats)

    def _differ(self, generation: Generation, seats: list[Seat]) -> bool:
        """Replicas are compared before each commit; what is wrong is told by all, and nothing is committed."""
        found = []
        for part in sorted(set().union(*(seat.trainer.holds for seat in seats))):
            holders = [(rank, seat.trainer) for rank, seat in enumerate(seats) if part in seat.trainer.holds]
            said = [
                events.ReplicaFinding(
                    part=part,
                    rank=Rank(rank),
                    checksum=trainer.wrong.get(part, RIGHT),
                    changed=part in trainer.changed,
                )
                for rank, trainer in holders
            ]
            if len({each.checksum for each in said}) > 1 or any(each.changed for each in said):
                found += said
        for seat in seats if found else ():
            seat.trainer.broken = generation.number
            self._agents.report(
                seat.agent,
                seat.trainer,
                events.ReplicasDiffered,
                generation=generation.number,
                step=Step(seat.trainer.step),
                findings=tuple(found),
            )
        return bool(found)

    def _commit(self, generation: Generation, seats: list[Seat]) -> None:
        step = seats[0].trainer.step + 1
        if generation.number == self.newest:
            assert all(seat.trainer.step == self.committed for seat in seats), "a committed step was lost"
            self.committed = step
        total = sum(len(dealt) for dealt in generation.deal)
        for seat, dealt in zip(seats, generation.deal, strict=True):
            seat.trainer.step = step
            seat.trainer.work_share = len(dealt) * len(seats) / total
        record = StepRecord(
            step=Step(step),
            generation=generation.number,
            loss=1.0,
            tokens=100,
            time=self._controller.at,
            step_seconds=TICK_SECONDS * STEP_TICKS,
            sample_ids=(),
            expert_load=(1,) * self._controller.spec.model.experts,
        )
        for seat in seats[:2]:
            self._agents.report(seat.agent, seat.trainer, events.StepCommitted, record=record)
        self._boundary(generation, seats)

    def _boundary(self, generation: Generation, seats: list[Seat]) -> None:
        """Orders that all members have are carried out; at the last step all leave the loop."""
        self._checkpoint(generation, seats)
        self._memories.boundary(generation, seats)
        stops = all(generation.number in seat.agent.stops for seat in seats)
        if stops or seats[0].trainer.step >= self._controller.spec.steps:
            for seat in seats:
                seat.trainer.finished = True
            self._idle(generation, seats)

    def _idle(self, generation: Generation, workers: list[Seat]) -> None:
        """Members that have left the loop say so once, and still take checkpoints."""
        for seat in workers:
            trainer = seat.trainer
            if trainer.finished and not trainer.told_end and seat.agent.connected:
                trainer.told_end = True
                self._agents.report(
                    seat.agent,
                    trainer,
                    events.TrainingEnded,
                    generation=generation.number,
                    step=Step(trainer.step),
                    finished=trainer.step >= self._controller.spec.steps,
                    unreadable=self.unreadable.get(trainer.id, ""),
                )
        seats = self._seated(generation)
        if workers and seats:
            self._checkpoint(generation, seats)

    # ---- checkpoints ----

    def _checkpoint(self, generation: Generation, seats: list[Seat]) -> None:
        """A request that all members' agents have is carried out by all."""
        requests = [
            {order.request for order in seat.agent.checkpoints if order.generation == generation.number}
            for seat in seats
        ]
        for request in sorted(set.intersection(*requests)):
            for seat in seats:
                kept = [order for order in seat.agent.checkpoints if order.request != request]
                seat.agent.checkpoints = kept
            for rank, seat in enumerate(seats):
                self._write(seat, generation, request, rank)

    def _write(self, seat: Seat, generation: Generation, request: str, rank: int) -> None:
        trainer = seat.trainer
        if trainer.id in self.fail_checkpoints:
            reason = "no space left on device"
            kind = events.CheckpointFailed
            self._agents.report(seat.agent, trainer, kind, request=request, reason=reason)
            return
        taken = {
            "request": request,
            "generation": generation.number,
            "step": Step(trainer.step),
            "name": f"step-{trainer.step:08d}.g{generation.number:04d}",
        }
        self._agents.report(seat.agent, trainer, events.CheckpointBegun, **taken)
        shard = {
            **taken,
            "rank": rank,
            "shard": f'{{"rank": {rank}}}',
            "bytes": 1000,
            "stall_seconds": self._agents.stall_seconds,
        }
        trainer.shards.append((self._controller.at + WRITE_SECONDS, shard))
