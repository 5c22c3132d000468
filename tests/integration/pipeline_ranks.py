"""Ranks of a pipeline as threads of this process, in real gloo groups over loopback: what `test_pipeline.py` drives.

Each rank has the parts of its stage, its share of the experts in two replicas where the stage is wide enough, and does
one step up to its reduced gradients, as a trainer does.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worker.data.config import DataConfig, ValidationConfig
from worker.data.windows import Windows, open_dataset
from worker.model.config import ModelConfig
from worker.model.objective import Scale
from worker.model.parts import Entry
from worker.model.stages import Stages
from worker.model.transformer import Transformer
from worker.parallel import pipeline
from worker.parallel.backends import Seat
from worker.parallel.dispatch import AllToAllDispatcher, LocalDispatcher
from worker.parallel.groups import Group, Watch, build_group, serve_store
from worker.parallel.mail import Letter
from worker.parallel.mesh import Mesh, mesh_of
from worker.parallel.pipeline import line_of
from worker.parallel.pulse import Pulse
from worker.parallel.reduce import ReplicaReduction, plan_replicas, reduce_dense
from worker.parallel.routing import plan_route
from worker.parallel.schedule import Kind, plan
from worker.training.batch import BatchConfig
from worker.training.passes import StepPasses, Sums, Work
from worker.training.state import TrainingState

CPU = torch.device("cpu")
HOST = "127.0.0.1"
SEED = 7
STEP = 3
LIMIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is computed, and by whom."""

    config: ModelConfig
    text: Path
    widths: tuple[int, ...]
    microbatches: int
    kind: Kind = Kind.ONE_F_ONE_B
    chunks: int = 1
    apart: bool = False
    """Documents: no attention and no loss across their borders."""

    @property
    def batch(self) -> BatchConfig:
        return BatchConfig(microbatches=self.microbatches, microbatch_size=2)

    @property
    def stages(self) -> Stages:
        return Stages(layers=self.config.layers, count=len(self.widths), chunks=self.chunks)

    @property
    def scale(self) -> Scale:
        tokens = self.windows().targets(self.batch.step_ids(STEP))
        return Scale(step_tokens=tokens, step_microbatches=self.microbatches)

    def windows(self) -> Windows:
        data = DataConfig.from_mapping(
            {"path": str(self.text), "documents": "apart" if self.apart else "joined"}
        )
        return open_dataset(
            data,
            ValidationConfig(),
            sequence_length=self.config.sequence_length,
            vocabulary=self.config.vocabulary,
            seed=SEED,
        ).windows

    def seats(self) -> tuple[int, ...]:
        """The stage of each rank: the seats of a stage are not neighbours."""
        order = [(index, stage) for stage, width in enumerate(self.widths) for index in range(width)]
        return tuple(stage for _, stage in sorted(order))

    def placement(self) -> tuple[tuple[int, ...], ...]:
        """Every expert on two ranks of its stage, where there are two."""
        found = []
        for stage in range(len(self.widths)):
            ranks = [rank for rank, its in enumerate(self.seats()) if its == stage]
            for expert in range(self.config.experts):
                pair = (ranks[expert % len(ranks)], ranks[(expert + 1) % len(ranks)])
                found.append(tuple(dict.fromkeys(pair)))
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a rank holds after a step's reduction: gradients by the name of the tensor, experts by their row."""

    stage: int
    sums: Sums
    dense: dict[str, Tensor]
    experts: dict[tuple[int, str], Tensor]


def gradients(state: TrainingState) -> tuple[dict[str, Tensor], dict[tuple[int, str], Tensor]]:
    """Of what a state holds, by names that are the same in every division into stages."""
    dense_layout, expert_layout = state.layouts[state.stage]

    def cut(gradient: Tensor, entries: Sequence[Entry]) -> dict[str, Tensor]:
        return {each.name: gradient[each.offset : each.offset + each.elements] for each in entries}

    first = state.numbers.experts_of(state.stage).start
    experts = {
        (expert - first, name): value
        for slot, expert in enumerate(state.held)
        for name, value in cut(state.experts_gradient_TN[slot], expert_layout.entries).items()
    }
    return cut(state.dense_gradient_P, dense_layout.entries), experts


def plain(case: Case) -> Result:
    """The same step by one process with everything, microbatch after microbatch."""
    stages = Stages(layers=case.config.layers)
    state = TrainingState(case.config, SEED, CPU)
    state.initialise(range(case.config.experts))
    model = Transformer(case.config, seed=SEED, dispatcher=LocalDispatcher(0), device=CPU)
    state.attach(model, LocalDispatcher(case.config.experts))
    passes = StepPasses(_work(case, stages, 0, model), case.config.experts)
    deals = [[tuple(range(case.microbatches))]]
    pipeline.run(line_of(plan(deals), deals, [[0]], 0), passes, NoMail())
    dense, experts = gradients(state)
    return Result(stage=0, sums=passes.sums, dense=dense, experts=experts)


def staged(case: Case) -> list[Result]:
    """By all ranks of the case at once. The first error of any rank is raised here."""
    _store, address = serve_store(HOST)
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def play(rank: int) -> None:
        try:
            results[rank] = _rank(case, rank, address)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(sum(case.widths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LIMIT_SECONDS)
        assert not thread.is_alive(), "a rank is stuck"
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(sum(case.widths))]


class NoMail:
    """The messenger of a pipeline of one stage, which has nothing to carry."""

    def post(self, tensor: Tensor, to: int, tag: int) -> None:
        raise AssertionError("nothing is sent")

    def expect(self, room: Tensor, source: int, tag: int) -> Letter:
        raise AssertionError("nothing comes")

    def take(self, letter: Letter) -> Tensor:
        raise AssertionError("nothing comes")

    def flush(self) -> None:
        """Nothing is under way."""


def _work(case: Case, stages: Stages, stage: int, model: Transformer) -> Work:
    return Work(
        step=STEP,
        stages=stages,
        stage=stage,
        model=model,
        windows=case.windows(),
        batch=case.batch,
        scale=case.scale,
        sequence_length=case.config.sequence_length,
        pulse=Pulse(),
        device=CPU,
        to_device=lambda tensor: tensor,
    )


def _rank(case: Case, rank: int, address: str) -> Result:
    mesh = mesh_of(case.seats(), case.placement(), len(case.widths), rank)
    route = plan_route(mesh.placement, list(mesh.members), mesh.index)
    seat = Seat(
        generation=1,
        rank=rank,
        world=sum(case.widths),
        store_address=address,
        bind_host=HOST,
        exchange=tuple(mesh.members[index] for index in route.group),
        stage=mesh.members,
    )
    group = build_group(
        seat,
        watch=Watch(),
        pulse=Pulse(),
        device=CPU,
        regroup_seconds=LIMIT_SECONDS,
        collective_seconds=LIMIT_SECONDS,
    )
    try:
        return _step(case, mesh, group, AllToAllDispatcher(group.tokens, route, CPU), rank)
    finally:
        group.abandon()


def _step(case: Case, mesh: Mesh, group: Group, dispatcher: AllToAllDispatcher, rank: int) -> Result:
    state = TrainingState(case.config, SEED, CPU, stages=case.stages)
    held = [expert for expert, ranks in enumerate(case.placement()) if rank in ranks]
    state.initialise(held, stage=mesh.stage)
    share = case.stages.share(mesh.stage)
    model = Transformer(case.config, seed=SEED, dispatcher=LocalDispatcher(0), device=CPU, share=share)
    state.attach(model, dispatcher)
    deals = [
        [tuple(range(index, case.microbatches, width)) for index in range(width)] for width in case.widths
    ]
    schedule = plan(deals, kind=case.kind, chunks=case.chunks)
    work = _work(case, case.stages, mesh.stage, model)
    passes = StepPasses(work, len(case.widths) * case.config.experts)
    pipeline.run(line_of(schedule, deals, mesh.ranks, rank), passes, group)
    replicas = ReplicaReduction(
        plan_replicas(mesh.placement, mesh.index, len(mesh.members)), state.experts_gradient_TN
    )
    replicas.reduce(group.stage, state.experts_gradient_TN)
    reduce_dense(group.stage, state.dense_gradient_P)
    group.all_reduce(passes.sums.loss)  # the vote: nobody leaves before all are done
    dense, experts = gradients(state)
    return Result(stage=mesh.stage, sums=passes.sums, dense=dense, experts=experts)
