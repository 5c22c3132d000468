"""One rank of the training benchmark: the same model as data x expert parallel, as our pipeline, and as torch's own.

The arms take turns within one process group's life, one step each, another one first every time, so that noise meets
all of them. All start from the same weights and compute the same microbatches; nothing is updated, so every step of
every arm gives the same loss. Started by `training.py`; rank 0 writes what was measured as JSON.

The bubble of our pipeline is told twice. `waited_share` is what ranks waited, which means something where every rank
has a core of its own. `bubble` plays the same turns with the processor time that each of them took, as if it had.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn import functional

from worker.data.config import DataConfig, ValidationConfig
from worker.data.windows import Windows, open_dataset
from worker.model.config import ModelConfig
from worker.model.objective import Scale
from worker.model.router import ForwardContext
from worker.model.stages import Share, Stages, whole
from worker.model.transformer import Transformer
from worker.parallel import pipeline
from worker.parallel.backends import Seat
from worker.parallel.dispatch import AllToAllDispatcher, LocalDispatcher
from worker.parallel.groups import Group, Watch, build_group
from worker.parallel.mail import Letter
from worker.parallel.mesh import mesh_of
from worker.parallel.pipeline import line_of
from worker.parallel.pulse import Pulse
from worker.parallel.reduce import reduce_dense
from worker.parallel.routing import plan_route
from worker.parallel.schedule import Pass, Schedule, Turn, bubble, plan
from worker.training.batch import BatchConfig
from worker.training.passes import StepPasses, Work
from worker.training.state import TrainingState

CPU = torch.device("cpu")
HOST = "127.0.0.1"
SEED = 7
STEP = 1
LIMIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured, the same on all ranks."""

    config: ModelConfig
    batch: BatchConfig
    windows: Windows
    stages: int
    rank: int
    address: str

    @property
    def scale(self) -> Scale:
        tokens = self.batch.samples_per_step * self.config.sequence_length
        return Scale(step_tokens=tokens, step_microbatches=self.batch.microbatches)


@dataclass(slots=True)
class Arm:
    """One way to compute a step. `run` returns the sum of cross entropies where it is known, else 0."""

    run: Callable[[], float]
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    """Of all ranks and their threads together; a machine with other work on it changes this least."""
    waited_share: list[float] = field(default_factory=list)
    """Of each step, the share that this rank waited for others."""
    loss: float = 0.0
    pulse: Pulse | None = None


class OurStep:
    """Forward, backward and reduction of one step, as a trainer of that seat does it."""

    def __init__(self, setting: Setting, seats: tuple[int, ...], generation: int) -> None:
        """`seats` is the stage of each rank."""
        self._setting, self.pulse = setting, Pulse()
        rank, depth = setting.rank, max(seats) + 1
        config = setting.config
        ranks_of = [[r for r, its in enumerate(seats) if its == stage] for stage in range(depth)]
        placement = tuple(
            (ranks_of[stage][expert % len(ranks_of[stage])],)
            for stage in range(depth)
            for expert in range(config.experts)
        )
        mesh = mesh_of(seats, placement, depth, rank)
        route = plan_route(mesh.placement, list(mesh.members), mesh.index)
        seat = Seat(
            generation=generation,
            rank=rank,
            world=len(seats),
            store_address=setting.address,
            bind_host=HOST,
            exchange=tuple(mesh.members[index] for index in route.group),
            stage=mesh.members,
        )
        self.group: Group = build_group(
            seat,
            watch=Watch(),
            pulse=self.pulse,
            device=CPU,
            regroup_seconds=LIMIT_SECONDS,
            collective_seconds=LIMIT_SECONDS,
        )
        self._stages = Stages(layers=config.layers, count=depth)
        self._state = TrainingState(config, SEED, CPU, stages=self._stages)
        held = [expert for expert, holders in enumerate(placement) if rank in holders]
        self._state.initialise(held, stage=mesh.stage)
        self._model = _model(setting, self._stages.share(mesh.stage))
        self._state.attach(self._model, AllToAllDispatcher(self.group.tokens, route, CPU))
        microbatches = setting.batch.microbatches
        deals = [[tuple(range(i, microbatches, len(r))) for i in range(len(r))] for r in ranks_of]
        self.schedule = plan(deals)
        self._line = line_of(self.schedule, deals, mesh.ranks, rank)
        self.turn_seconds: list[float] = []
        """Processor time of each turn of the last step."""

    def run(self) -> float:
        """One step; its gradients are thrown away."""
        self._state.zero_gradients()
        passes = _passes(self._setting, self._stages, self._line.stage, self._model)
        timed = _Timed(passes)
        pipeline.run(self._line, timed, self.group)
        self.turn_seconds = timed.seconds
        reduce_dense(self.group.stage, self._state.dense_gradient_P)
        self.group.all_reduce(passes.sums.loss)  # the vote
        return float(passes.sums.loss)


class _Timed:
    """Passes whose processor time is kept, turn after turn."""

    def __init__(self, passes: StepPasses) -> None:
        self._passes = passes
        self.seconds: list[float] = []

    def room(self) -> Tensor:
        """See `pipeline.Passes`."""
        return self._passes.room()

    def forward(self, turn: Turn, microbatch: int | None, x: Tensor | None) -> Tensor | None:
        """See `pipeline.Passes`."""
        return self._timed(self._passes.forward, turn, microbatch, x)

    def backward(self, turn: Turn, microbatch: int | None, gradient: Tensor | None) -> Tensor | None:
        """See `pipeline.Passes`."""
        return self._timed(self._passes.backward, turn, microbatch, gradient)

    def _timed(
        self,
        work: Callable[[Turn, int | None, Tensor | None], Tensor | None],
        turn: Turn,
        microbatch: int | None,
        tensor: Tensor | None,
    ) -> Tensor | None:
        began = time.thread_time()
        try:
            return work(turn, microbatch, tensor)
        finally:
            self.seconds.append(time.thread_time() - began)


def played_bubble(schedule: Schedule, seconds: Sequence[Sequence[float]]) -> float:
    """The share of waiting if turns took so long (by stage, in their order) and messages nothing; one seat a stage."""
    ends: dict[tuple[int, Turn], float] = {}
    now, done = [0.0] * schedule.stages, [0] * schedule.stages
    while any(count < len(turns) for count, turns in zip(done, schedule.turns, strict=True)):
        for stage, turns in enumerate(schedule.turns):
            while done[stage] < len(turns):
                turn = turns[done[stage]]
                source = stage + (-1 if turn.way is Pass.FORWARD else 1)
                if 0 <= source < schedule.stages and (source, turn) not in ends:
                    break
                begins = max(now[stage], ends.get((source, turn), 0.0))
                ends[stage, turn] = now[stage] = begins + seconds[stage][done[stage]]
                done[stage] += 1
    return 1 - sum(map(sum, seconds)) / (max(now) * schedule.stages)


class PlainStep:
    """All of the model in one process, microbatch after microbatch; every rank but 0 is idle."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        config = setting.config
        self._stages = Stages(layers=config.layers)
        self._state = TrainingState(config, SEED, CPU)
        self._state.initialise(range(config.experts))
        self._model = _model(setting, whole(config.layers))
        self._state.attach(self._model, LocalDispatcher(config.experts))
        deals = [[tuple(range(setting.batch.microbatches))]]
        self._line = line_of(plan(deals), deals, [[0]], 0)

    def run(self) -> float:
        """One step on rank 0."""
        if self._setting.rank:
            return 0.0
        self._state.zero_gradients()
        passes = _passes(self._setting, self._stages, 0, self._model)
        pipeline.run(self._line, passes, _NoMail())
        return float(passes.sums.loss)


class TorchStep:
    """The same chunks of layers under torch.distributed.pipelining, 1F1B, all experts of a stage in its rank."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        config, batch = setting.config, setting.batch
        stages = Stages(layers=config.layers, count=setting.stages)
        share = stages.share(setting.rank)
        self._state = TrainingState(config, SEED, CPU, stages=stages)
        self._state.initialise(self._state.numbers.experts_of(setting.rank), stage=setting.rank)
        model = _model(setting, share)
        self._state.attach(model, LocalDispatcher(config.experts))
        self._first, self._last = share.first, share.last
        stage = PipelineStage(_Chunk(model, share), setting.rank, setting.stages, CPU)
        window_BC = setting.windows.batch(batch.step_ids(STEP)).window_BC
        self._tokens, self._targets = window_BC[:, :-1].contiguous(), window_BC[:, 1:].contiguous()
        scale = setting.scale

        def loss(logits_BSV: Tensor, target_BS: Tensor) -> Tensor:
            flat = logits_BSV.flatten(0, 1)
            return functional.cross_entropy(flat, target_BS.reshape(-1), reduction="sum") / scale.step_tokens

        self._schedule = Schedule1F1B(stage, batch.microbatches, loss_fn=loss, scale_grads=False)

    def run(self) -> float:
        """One step."""
        self._state.zero_gradients()
        losses: list[Tensor] = []
        arguments = (self._tokens,) if self._first else ()
        if self._last:
            self._schedule.step(*arguments, target=self._targets, losses=losses)
        else:
            self._schedule.step(*arguments)
        return sum(float(each.detach()) for each in losses) * self._setting.scale.step_tokens


class _Chunk(nn.Module):
    """A stage as torch's pipelining takes it: a module from tensor to tensor."""

    def __init__(self, model: Transformer, share: Share) -> None:
        super().__init__()
        self._model, self._share = model, share

    def forward(self, x: Tensor) -> Tensor:
        x_BSD = self._model.embed(x) if self._share.first else x
        x_BSD = self._model.run(x_BSD, self._share.layers, ForwardContext(step=STEP, microbatch=0)).x_BSD
        return self._model.predict(x_BSD) if self._share.last else x_BSD


class _NoMail:
    """The messenger of a pipeline of one stage, which has nothing to carry."""

    def post(self, tensor: Tensor, to: int, tag: int) -> None:
        raise AssertionError("nothing is sent")

    def expect(self, room: Tensor, source: int, tag: int) -> Letter:
        raise AssertionError("nothing comes")

    def take(self, letter: Letter) -> Tensor:
        raise AssertionError("nothing comes")

    def flush(self) -> None:
        """Nothing is under way."""


def _model(setting: Setting, share: Share) -> Transformer:
    return Transformer(setting.config, seed=SEED, dispatcher=LocalDispatcher(0), device=CPU, share=share)


def _passes(setting: Setting, stages: Stages, stage: int, model: Transformer) -> StepPasses:
    work = Work(
        step=STEP,
        stages=stages,
        stage=stage,
        model=model,
        windows=setting.windows,
        batch=setting.batch,
        scale=setting.scale,
        sequence_length=setting.config.sequence_length,
        pulse=Pulse(),
        device=CPU,
        to_device=lambda tensor: tensor,
    )
    return StepPasses(work, stages.count * setting.config.experts)


def measure(setting: Setting, steps: int, warm_steps: int) -> dict[str, object]:
    """All arms in turns."""
    world = setting.stages
    pipelined = OurStep(setting, tuple(range(world)), 1)
    parallel = OurStep(setting, (0,) * world, 2)
    arms = {
        "plain model, one process": Arm(PlainStep(setting).run),
        "data x expert parallel": Arm(parallel.run, pulse=parallel.pulse),
        "pipeline": Arm(pipelined.run, pulse=pipelined.pulse),
        "torch.distributed.pipelining": Arm(TorchStep(setting).run),
    }
    bubbles: list[float] = []
    for number in range(warm_steps + steps):
        for name in _rotated(list(arms), number):
            arm = arms[name]
            dist.barrier()
            waited = arm.pulse.waited_seconds if arm.pulse else 0.0
            began, used = time.perf_counter(), time.process_time()
            loss = torch.tensor(arm.run(), dtype=torch.float64)
            mine, processor = time.perf_counter() - began, torch.tensor(time.process_time() - used)
            dist.barrier()
            seconds = time.perf_counter() - began
            dist.all_reduce(loss, op=dist.ReduceOp.MAX)
            dist.all_reduce(processor)
            arm.loss = float(loss)
            if number >= warm_steps:
                arm.seconds.append(seconds)
                arm.processor_seconds.append(float(processor))
                if arm.pulse is not None:
                    arm.waited_share.append((arm.pulse.waited_seconds - waited) / mine)
        if number >= warm_steps:
            took = torch.tensor(pipelined.turn_seconds, dtype=torch.float64)
            by_stage = [torch.empty_like(took) for _ in range(world)]
            dist.all_gather(by_stage, took)
            bubbles.append(played_bubble(pipelined.schedule, [each.tolist() for each in by_stage]))
    shares = torch.tensor(arms["pipeline"].waited_share, dtype=torch.float64)
    dist.all_reduce(shares)
    return {
        "seconds": {name: arm.seconds for name, arm in arms.items()},
        "processor_seconds": {name: arm.processor_seconds for name, arm in arms.items()},
        "losses": {name: arm.loss for name, arm in arms.items()},
        "waited_share": (shares / world).tolist(),
        "bubble": bubbles,
        "bubble_of_schedule": bubble(pipelined.schedule),
    }


def _rotated(names: list[str], number: int) -> list[str]:
    first = number % len(names)
    return names[first:] + names[:first]


def main() -> None:
    """Measure, and write the result from rank 0."""
    parser = argparse.ArgumentParser()
    for name in ("rank", "stages", "port", "microbatches", "steps", "warm-steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--model", required=True, help="the model section as JSON")
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = ModelConfig.from_mapping(json.loads(given.model), "float32")
    # One store for torch's own group and for ours: keys of ours have their generation in front.
    store = dist.TCPStore(
        HOST, given.port, is_master=given.rank == 0, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    dist.init_process_group(  # noqa: TID251 - what torch's pipelining needs; nothing of ours uses it
        "gloo", store=store, rank=given.rank, world_size=given.stages
    )
    setting = Setting(
        config=config,
        batch=BatchConfig(microbatches=given.microbatches, microbatch_size=2),
        windows=open_dataset(
            DataConfig.from_mapping({"path": given.text}),
            ValidationConfig(),
            sequence_length=config.sequence_length,
            vocabulary=config.vocabulary,
            seed=SEED,
        ).windows,
        stages=given.stages,
        rank=given.rank,
        address=f"{HOST}:{given.port}",
    )
    result = measure(setting, given.steps, given.warm_steps)
    if given.rank == 0:
        given.out.write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
