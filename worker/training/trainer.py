"""The trainer process: composes model, state, groups, checkpoints and copies, then lives in the loop.

Composition and seating only; the step is in `step.py`, the loop in `loop.py`, the entry rule in `regroup.py`.
Next: `worker/app.py`, which calls `run`.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.agent.channel import ChannelClosed, TrainerChannel
from worker.agent.messages import (
    Assignment,
    Beat,
    CheckPair,
    Configure,
    PairChecked,
    Ready,
    TrainerRefused,
    Validated,
)
from worker.checkpointing.donation import DonationLimits, Donations
from worker.checkpointing.errors import CheckpointError
from worker.checkpointing.peer import PeerServer, ServerLimits
from worker.data.config import DataConfig, ValidationConfig
from worker.data.errors import DataError
from worker.data.tokenizer import keep
from worker.data.windows import Dataset, open_dataset
from worker.hostmemory.client import Caller
from worker.hostmemory.server import Secret
from worker.model.compute import ComputeConfig
from worker.model.config import ModelConfig
from worker.model.fields import FieldError
from worker.model.stages import Stages
from worker.model.transformer import Transformer
from worker.parallel.backends import Seat
from worker.parallel.dispatch import AllToAllDispatcher, LocalDispatcher
from worker.parallel.groups import Group, Watch, build_group, serve_store
from worker.parallel.handshake import ABSENT
from worker.parallel.mesh import Mesh, mesh_of
from worker.parallel.patience import Patience
from worker.parallel.pipeline import line_of
from worker.parallel.pulse import Pulse
from worker.parallel.reduce import ReplicaReduction, plan_replicas
from worker.parallel.routing import Route, plan_route
from worker.parallel.schedule import Kind, plan
from worker.settings import TrainerSettings
from worker.training.acquire import Acquisitions
from worker.training.base_checkpoint import Base
from worker.training.batch import BatchConfig
from worker.training.devices import choose_device, device_name
from worker.training.fault_effects import Victim
from worker.training.faults import Faults
from worker.training.integrity import ReplicaCheck
from worker.training.loop import Loop
from worker.training.memory import FOLDER, Meter
from worker.training.optimizer import AdamW, OptimizerConfig
from worker.training.orders import Handlers, Orders
from worker.training.pair_check import Place, check_pair
from worker.training.regroup import Entrance, Entry, enter, held_experts, stage_of_rank
from worker.training.saved_state import Identity
from worker.training.saving import Saves
from worker.training.snapshots import Snapshots
from worker.training.state import TrainingState
from worker.training.step import Session, StepShape, clip_factor, record_of
from worker.training.tally import TallyLayout
from worker.training.validation import Measuring, Validation
from worker.training.warm import warm_up

log = logging.getLogger(__name__)

_BEAT_SECONDS = 0.1
_CATCH_UP_SECONDS = 10.0
"""How long a seating waits for background copies to follow the last commits before whole parts are copied."""
_NEVER = 1 << 62
"""A generation that will not come."""
CONFIGURE_SECONDS = 60.0
"""An agent sends the job at once; without it for this long the trainer ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """What a trainer needs of the job, read once."""

    config: Mapping[str, Any]
    model: ModelConfig
    optimizer: OptimizerConfig
    compute: ComputeConfig
    seed: int
    steps: int
    shape: StepShape
    layout: TallyLayout
    stages: Stages
    schedule: Kind
    data: DataConfig
    validation: ValidationConfig
    trainable: tuple[int, ...]
    """The only experts that are trained; none stands for the whole model."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> JobView:
        """Raises FieldError naming the field that the worker cannot use."""
        model = ModelConfig.from_mapping(config["model"], config["precision"])
        optimizer = OptimizerConfig.from_mapping(config["optimizer"])
        batch = BatchConfig.from_mapping(config["batch"])
        shape = StepShape(
            batch=batch,
            sequence_length=model.sequence_length,
            clip_norm=optimizer.clip_norm,
            rate=optimizer.rate(int(config["steps"])),
        )
        pipeline = config["pipeline"]
        stages = Stages(layers=model.layers, count=int(pipeline["stages"]), chunks=int(pipeline["chunks"]))
        return cls(
            config=config,
            model=model,
            optimizer=optimizer,
            compute=ComputeConfig.from_mapping(config["compute"]),
            seed=int(config["seed"]),
            steps=int(config["steps"]),
            shape=shape,
            layout=TallyLayout(
                experts=stages.count * model.experts,
                samples=batch.samples_per_step,
                layers=model.layers,
                layer_experts=model.experts,
            ),
            stages=stages,
            schedule=Kind(pipeline["schedule"]),
            trainable=tuple(config["trainable"]["experts"]),
            data=DataConfig.from_mapping(config["data"]),
            validation=ValidationConfig.from_mapping(config.get("validation")),
        )

    def open_data(self) -> Dataset:
        """What the job reads. Raises DataError."""
        return open_dataset(
            self.data,
            self.validation,
            sequence_length=self.model.sequence_length,
            vocabulary=self.model.vocabulary,
            seed=self.seed,
        )

    def base(self, layout: str) -> Base | None:
        """What training begins with, if it is a checkpoint. Raises FieldError or CheckpointError where it cannot be."""
        path = self.config["init"]["checkpoint"]
        if not path:
            return None
        base = Base.open(path)
        base.require(self.config["model"], layout)
        return base


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The process around a trainer: its agent, its threads' shared values, its place."""

    channel: TrainerChannel
    watch: Watch
    pulse: Pulse
    settings: TrainerSettings


def run(channel: TrainerChannel, settings: TrainerSettings) -> int:
    """Live until the agent is gone. Returns the exit code of the process."""
    watch, pulse = Watch(), Pulse()
    configured: queue.Queue[Configure] = queue.Queue()
    late: dict[str, Any] = {}
    handlers = Handlers(
        configure=configured.put,
        acquire=lambda order: late["acquisitions"].begin(order),
        seal=lambda order: late["saves"].enqueue(order),
        delete=lambda order: late["saves"].enqueue(order),
        foresee=lambda order: late["snapshots"].foresee(order),
    )
    orders = Orders(watch, handlers)

    def end() -> None:
        orders.close()
        watch.end_below(_NEVER)

    channel.listen(orders.receive, end)
    try:
        order = configured.get(timeout=CONFIGURE_SECONDS)
    except queue.Empty:
        return 1
    _start_beating(channel, pulse)
    try:
        frame = Frame(channel=channel, watch=watch, pulse=pulse, settings=settings)
        return _live(frame, order, orders, late)
    except ChannelClosed:
        return 0


def _live(frame: Frame, order: Configure, orders: Orders, late: dict[str, Any]) -> int:
    """From the job's config to the end."""
    try:
        body = Body(frame, order)
    except (FieldError, DataError, CheckpointError, OSError) as error:
        frame.channel.send(TrainerRefused(reason=str(error)))
        orders.wait_for_seat(_NEVER)
        return 2
    late["acquisitions"], late["saves"] = body.acquisitions, body.saves
    late["snapshots"] = body.snapshots
    body.warm_up()
    frame.pulse.phase = "ready"
    frame.channel.send(body.ready())
    Loop(
        orders=orders,
        seating=body,
        saves=body.saves,
        snapshots=body.snapshots,
        pulse=frame.pulse,
        report=frame.channel.send,
        steps=body.job.steps,
    ).run()
    return 0


def _start_beating(channel: TrainerChannel, pulse: Pulse) -> None:
    def beat() -> None:
        while True:
            sign = Beat(
                generation=pulse.generation,
                step=pulse.step,
                phase=pulse.phase,
                operation=pulse.operation,
                waiting=pulse.waiting,
                work_seconds=pulse.work_seconds,
            )
            try:
                channel.send(sign)
            except ChannelClosed:
                return
            time.sleep(_BEAT_SECONDS)

    threading.Thread(target=beat, name="beat", daemon=True).start()


class Body:
    """All that a trainer is made of; implements `loop.Seating`."""

    def __init__(self, frame: Frame, order: Configure) -> None:
        self.job = JobView.of(json.loads(order.config))
        channel, settings = frame.channel, frame.settings
        trainer, bind_host = settings.trainer, settings.bind_host
        self._channel, self._watch, self._pulse = channel, frame.watch, frame.pulse
        self._device = choose_device(trainer, str(self.job.config["cluster"]["device"]))
        self._bind_host = bind_host
        config = self.job.config
        self._data = self.job.open_data()
        self._model = self._model_of(0)
        self._state = TrainingState(
            self.job.model, self.job.seed, self._device, self.job.trainable, self.job.stages
        )
        self._optimizer = AdamW(self.job.optimizer, total_steps=self.job.steps)
        self._store, self._store_address = serve_store(bind_host)
        self._donations = Donations(limits=DonationLimits(), pinned=self._device.type == "cuda")
        token = order.copy_token
        self._peers = PeerServer(
            host=bind_host,
            job=config["name"],
            token=token,
            donor=trainer,
            donations=self._donations,
            limits=ServerLimits(),
        )
        self.acquisitions = Acquisitions(
            trainer=trainer,
            job=config["name"],
            token=token,
            state=self._state,
            optimizer=AdamW(self.job.optimizer, total_steps=self.job.steps),
            report=channel.send,
            acquire_seconds=float(config["timeouts"]["acquire_seconds"]),
            on_copied=lambda version: self._faults.strike(version, "acquire"),
        )
        identity = Identity(
            job=config["name"],
            config=config,
            data_fingerprint=self._data.fingerprint,
            layout=self._state.layout_id,
            precision=str(self._state.dense_P.dtype).removeprefix("torch."),
            base=self.job.base(self._state.layout_id),
        )
        self._memory_file = settings.workdir / FOLDER / f"{trainer.replace('/', '.')}.json"
        checkpoints = settings.workdir / "checkpoints"
        keep(checkpoints, self._data.vocabulary)
        victim = Victim(state=self._state, checkpoints=checkpoints)
        self._faults = Faults(config["faults"], trainer, settings.workdir / "faults", victim)
        self.saves = Saves(checkpoints, identity, self._state, channel.send, self._faults.shard_begins)
        self.snapshots = Snapshots(
            slots=settings.slots,
            identity=identity,
            state=self._state,
            report=channel.send,
            caller=Caller(name=trainer, secret=Secret(job=config["name"], token=token)),
        )
        self._validation = Validation(
            self.job.validation,
            self._data.held_out,
            batch=self.job.shape.batch.microbatch_size,
            steps=self.job.steps,
        )
        self._ranks: tuple[tuple[int, ...], ...] = ()
        self._group: Group | None = None
        self._begun = ABSENT
        self._patience = Patience()
        frame.pulse.on_enter = self._faults.strike

    def ready(self) -> Ready:
        """What the controller must know of this trainer to seat it."""
        host, port = self._peers.address
        return Ready(
            store_address=self._store_address,
            peer_address=f"{host}:{port}",
            device_name=device_name(self._device),
        )

    def warm_up(self) -> None:
        """Load lazily what a first step loads, so that a spare loses no time when it walks on."""
        warm_up(self.job.model, self.job.compute, self._optimizer, self._device)
        self._meter = Meter(self._device, self._memory_file)

    def _model_of(self, stage: int) -> Transformer:
        """Shapes only, of one stage's layers: the state gives them numbers."""
        job, share = self.job, self.job.stages.share(stage)
        return Transformer(
            job.model,
            seed=job.seed,
            dispatcher=LocalDispatcher(0),
            device=self._device,
            share=share,
            compute=job.compute,
        )

    def enter(self, assignment: Assignment) -> tuple[Session, Entry]:
        """See `loop.Seating`."""
        self._prepare(assignment)
        mesh = mesh_of(
            stage_of_rank(assignment), assignment.placement, self.job.stages.count, assignment.rank
        )
        nodes = [assignment.members[rank].trainer.rpartition("/")[0] for rank in mesh.members]
        route = plan_route(mesh.placement, nodes, mesh.index)
        timeouts = self.job.config["timeouts"]
        seat = Seat(
            generation=assignment.number,
            rank=assignment.rank,
            world=len(assignment.members),
            store_address=assignment.members[0].store_address,
            bind_host=self._bind_host,
            exchange=tuple(mesh.members[index] for index in route.group),
            stage=mesh.members,
        )
        self._group = group = build_group(
            seat,
            watch=self._watch,
            pulse=self._pulse,
            device=self._device,
            regroup_seconds=float(timeouts["regroup_seconds"]),
            collective_seconds=self._patience.seconds(float(timeouts["collective_seconds"])),
        )
        entry = enter(
            Entrance(
                group=group,
                assignment=assignment,
                state=self._state,
                acquisitions=self.acquisitions,
                layout=self.job.layout,
                complete=lambda step, tally: self._complete(assignment.number, step, tally),
                begun=self._begun,
                catch_up_seconds=_CATCH_UP_SECONDS,
            )
        )
        return self._open(assignment, group, mesh, route), entry

    def _prepare(self, assignment: Assignment) -> None:
        """Read or make the state that a first or restored generation goes on from."""
        if assignment.kind not in ("initial", "restore"):
            return
        self._donations.end_all("the state is set back to a checkpoint")
        self.acquisitions.clear()
        self._validation.forget()
        self._begun = ABSENT
        experts, stage = held_experts(assignment), stage_of_rank(assignment)[assignment.rank]
        self._pulse.enter("restoring")

        def still_wanted(_count: int) -> None:
            self._watch.check(assignment.number)

        if assignment.restore_shards:
            self.snapshots.restore(assignment, experts, still_wanted, stage=stage)
        elif assignment.restore_name:
            self.saves.restore(assignment.restore_name, experts, still_wanted, stage=stage)
        else:
            self.saves.begin(experts, still_wanted, stage=stage)

    def _open(self, assignment: Assignment, group: Group, mesh: Mesh, route: Route) -> Session:
        dispatcher = AllToAllDispatcher(group.tokens, route, self._device)
        state, numbers = self._state, self._state.numbers
        if self._model.share != self.job.stages.share(mesh.stage):
            self._model = self._model_of(mesh.stage)
        state.attach(self._model, dispatcher)
        self.snapshots.enter(assignment)
        self.saves.enter(assignment)
        held = [numbers.name(part) for part in range(state.parts) if state.holds(part)]
        trained = [
            () if state.frozen(numbers.expert(expert)) else ranks
            for expert, ranks in zip(numbers.experts_of(mesh.stage), mesh.placement, strict=True)
        ]
        self._peers.enter_generation(assignment.number, held)
        self._ranks = mesh.ranks
        deals = [[assignment.deal[rank] for rank in seats] for seats in mesh.ranks]
        schedule = plan(deals, kind=self.job.schedule, chunks=self.job.stages.chunks)
        return Session(
            group=group,
            placement=assignment.placement,
            line=line_of(schedule, deals, mesh.ranks, assignment.rank),
            replicas=ReplicaReduction(
                plan_replicas(trained, mesh.index, len(mesh.members)), state.experts_gradient_TN
            ),
            model=self._model,
            state=self._state,
            windows=self._data.windows,
            optimizer=self._optimizer,
            pulse=self._pulse,
            shape=self.job.shape,
            layout=self.job.layout,
            check=ReplicaCheck(interval_steps=int(self.job.config["integrity"]["interval_steps"])),
        )

    def _complete(self, generation: int, step: int, values: tuple[float, ...]) -> None:
        """Commit a step from the gradients held, with the tally that another member got out of the vote."""
        tally = self.job.layout.read(values)
        clip = clip_factor(self.job.shape, tally)
        self._state.commit(self._optimizer, step, clip, halfway=lambda: None)
        self._state.tally_step, self._state.tally = step, values
        self._pulse.step = step
        self._channel.send(record_of(self.job.shape, generation, step, tally, self._state.ready_seconds))
        self.after_commit(step, clip)

    def validate(self) -> Validated | None:
        """See `loop.Seating`."""
        assert self._group is not None, "members measure in a generation"
        measuring = Measuring(
            group=self._group,
            model=self._model,
            stages=self.job.stages,
            ranks=self._ranks,
            pulse=self._pulse,
        )
        return self._validation.measure(measuring, self._state.version)

    def step_begins(self, step: int) -> None:
        """See `loop.Seating`."""
        self._begun = step

    def after_commit(self, step: int, clip: float) -> None:
        """See `loop.Seating`."""
        state = self._state
        number, holds = state.numbers.number, state.holds
        self._begun = ABSENT
        self._donations.after_commit(
            step,
            lambda name: state.gradient(number(name)) if holds(number(name)) else None,
            clip=clip,
            learning_rate=self._optimizer.learning_rate(step),
        )
        self._donations.at_boundary(
            step, lambda name: state.part(number(name)) if holds(number(name)) else None
        )

    def check_pair(self, order: CheckPair) -> PairChecked:
        """See `loop.Seating`."""
        place = Place(
            watch=self._watch,
            device=self._device,
            bind_host=self._bind_host,
            strike=lambda: self._faults.strike(self._pulse.step + 1, "check"),
        )
        return check_pair(order, place)

    def leave(self) -> None:
        """See `loop.Seating`."""
        if self._group is not None:
            self._meter.write()
            self._patience.heed(timed_out=self._group.timed_out)
            self._group.abandon()
            self._group = None
