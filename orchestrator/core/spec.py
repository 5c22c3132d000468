"""The job as it was asked for: frozen values with their defaults, and nothing else.

Validation is in `spec_rules.py`, reading files in `orchestrator/jobfile.py`. Workers receive the whole spec, with
every default filled in, as a mapping of these names. Times are in seconds, sizes in bytes unless a name says else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Precision(Enum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """float32 master weights, bfloat16 compute."""
    FLOAT64 = "float64"


class ReplicaLayout(Enum):
    """How replicas lie over the trainers of a new placement."""

    GROUPS = "groups"
    """`replicas` groups of nodes, each holding every expert once: tokens stay inside a group."""
    RING = "ring"
    """Each node shares experts with its neighbours: the load of a lost node falls on two."""


class Device(Enum):
    """What trainers compute on. All of a job use the same: one group cannot have trainers of both kinds."""

    AUTO = "auto"
    """A GPU for each trainer where there are enough; nodes that share a machine go without where there are not."""
    CPU = "cpu"
    CUDA = "cuda"
    """A GPU, or the job is refused."""


class Documents(Enum):
    """What a sample may see of the documents in it."""

    JOINED = "joined"
    """Everything: a sample is a piece of the stream of all documents."""
    APART = "apart"
    """Each document only itself: attention and loss stop where a document ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """One source of a mixture."""

    path: str
    """As `data.path`."""
    name: str
    """The order of its samples is drawn from the seed and this name, whatever other sources there are."""
    weight: float = 1.0
    """Its share of all samples is this over the sum of all weights, exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """What is trained on: `path`, or `sources`."""

    path: str = ""
    """A file, a folder or a glob of text, a token file, or `stdlib` for the sources of the Python standard library."""
    sources: tuple[SourceSpec, ...] = ()
    documents: Documents = Documents.JOINED


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSpec:
    """What is measured while training: a corpus of its own, or a share of the training data that is held out."""

    path: str = ""
    """As `data.path`; empty for none."""
    share: float = 0.0
    """Of the windows of each source, never trained on; the same ones for every seed."""
    interval_steps: int = 100
    """Every so many steps, and after the last one."""
    windows: int = 64
    """Measured each time, always the same ones; 0 for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    nodes: int = 4
    spares: int = 1
    devices_per_node: int = 1
    device: Device = Device.AUTO
    replicas: int = 2
    """Live copies of each expert, never two on one node."""
    spread_over: tuple[str, ...] = ("topology.kubernetes.io/zone", "zone", "rack", "host")
    """Keys of labels that name failure domains larger than a node, the largest first: replicas of an expert, members of
    a stage and copies of snapshots are kept apart in them as far as even shares allow."""
    replica_layout: ReplicaLayout = ReplicaLayout.GROUPS
    """A ring is used where the nodes cannot be divided into `replicas` equal groups."""
    device_memory: str = ""
    """Of each device, such as `80GB`; a job that needs more is refused. Empty where it is not known."""
    trainer_restarts: int = 3
    """How often an agent starts a trainer again before it gives the device up."""


class Schedule(Enum):
    """The order of work in a pipeline (`worker/parallel/schedule.py`)."""

    GPIPE = "gpipe"
    """All forward passes, then all backward passes."""
    ONE_F_ONE_B = "1f1b"
    """One forward, one backward pass in turns: as fast, with fewer activations held."""
    INTERLEAVED = "interleaved"
    """The same with several chunks of layers in a stage: waits are shorter, messages more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """Layers divided over stages, and trainers too. Experts of a stage are its own: with 4 experts in each layer and 4
    stages there are 16, each of which is placed, backed up and copied by itself."""

    stages: int = 1
    schedule: Schedule = Schedule.ONE_F_ONE_B
    chunks: int = 1
    """Of layers in each stage, for the schedule interleaved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpec:
    microbatches: int = 12
    microbatch_size: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    width: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    experts: int = 16
    """In each layer."""
    top_k: int = 2
    expert_width: int = 256
    sequence_length: int = 128
    vocabulary: int = 256
    """A job file that leaves it out gets that of its token files."""
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    aux_loss: float = 0.01
    router_temperature: float = 1.0
    router_noise: float = 0.0


class Decay(Enum):
    """How the learning rate goes on after the warm-up."""

    COSINE = "cosine"
    """Half a cosine, down to the last step."""
    WSD = "wsd"
    """Stable, then a decay at the end: warm-up, stable, decay."""
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    learning_rate: float = 0.004
    warmup_steps: int = 20
    schedule: Decay = Decay.COSINE
    final_learning_rate_ratio: float = 0.1
    """The decay ends here, as a share of `learning_rate`, at step `steps`."""
    decay_steps: int = 0
    """Of the schedule wsd: how many of the last steps go down; 0 stands for a fifth of `steps`."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0


class CheckpointMode(Enum):
    """What decides how often a checkpoint, or a snapshot, is taken."""

    FIXED = "fixed"
    """Every `interval_seconds`."""
    AUTO = "auto"
    """As often as loses least, by what one costs and how often one is needed; at least every `interval_seconds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InitSpec:
    """What the weights are before the first step."""

    checkpoint: str = ""
    """A sealed checkpoint of the same model, or a workdir for its newest one; empty for what the seed gives."""


class AffinityScore(Enum):
    """What an expert's affinity to a task is measured by."""

    GATE = "gate"
    """The mean weight that the router gives to it."""
    TOKENS = "tokens"
    """Its share of all choices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinitySpec:
    """Experts chosen by what a sample of the task asks for, before the first step (ESFT, arXiv 2407.01906)."""

    sample: str = ""
    """Text of the task, as `data.path`; empty where `experts` are named."""
    threshold: float = 0.2
    """Chosen are the fewest experts that reach this share of all scores together, in each stage."""
    score: AffinityScore = AffinityScore.GATE
    windows: int = 64
    """Of the model's context, spread evenly over the sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableSpec:
    """What is trained of a model that is there already (`init.checkpoint`); the rest stays as it is, bit for bit."""

    experts: tuple[int, ...] = ()
    """Only these experts, in all layers; empty for the whole model, or for those that `affinity` chooses: they stand
    here from then on, and are not chosen again."""
    affinity: AffinitySpec = field(default_factory=AffinitySpec)

    @property
    def open(self) -> bool:
        """Whether experts are still to be chosen."""
        return bool(self.affinity.sample) and not self.experts


class Recompute(Enum):
    """What the backward pass computes again instead of keeping it (activation checkpointing)."""

    NOTHING = "nothing"
    ATTENTION = "attention"
    EXPERTS = "experts"
    ALL = "all"
    """Attention and experts. Routing and dispatch never: they are exchanges that all ranks take part in."""

    @property
    def attention(self) -> bool:
        return self in (Recompute.ATTENTION, Recompute.ALL)

    @property
    def experts(self) -> bool:
        return self in (Recompute.EXPERTS, Recompute.ALL)


class WandbMode(Enum):
    """Where what is told to Weights & Biases goes."""

    ONLINE = "online"
    OFFLINE = "offline"
    """Into files of the workdir, to be sent later with `wandb sync`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WandbSpec:
    """Weights & Biases, with the extra `wandb`. Its key is the environment's WANDB_API_KEY, never the job's."""

    project: str = ""
    """Empty for none of it."""
    entity: str = ""
    """A user or a team; empty for the key's own."""
    group: str = ""
    """Empty for the name of the job."""
    tags: tuple[str, ...] = ()
    mode: WandbMode = WandbMode.ONLINE


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingSpec:
    """Curves for people, beside the ledger. May be changed when a job goes on."""

    tensorboard: bool = True
    """Event files in `tensorboard` of the workdir."""
    wandb: WandbSpec = field(default_factory=WandbSpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSpec:
    """How the model is computed: memory against time. May be changed when a job goes on."""

    recompute: Recompute = Recompute.NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSpec:
    interval: CheckpointMode = CheckpointMode.FIXED
    interval_seconds: float = 900.0
    keep: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSpec:
    """Copies of the state in the host memory of two agents: where the last replica of an expert is lost, training goes
    back to the newest of them. A node holds about four times its share of the state; without room there is none."""

    enabled: bool = True
    interval: CheckpointMode = CheckpointMode.AUTO
    interval_seconds: float = 300.0
    """Between two; of `auto` the longest."""


class TimeoutMode(Enum):
    """What decides how long somebody is waited for."""

    FIXED = "fixed"
    """The times below."""
    AUTO = "auto"
    """Lease, hang and stall follow what is observed of the running job; the times below are the longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutSpec:
    """These nest: heartbeat < lease, hang < collective < regroup; `spec_rules` refuses a plan that does not."""

    mode: TimeoutMode = TimeoutMode.FIXED
    heartbeat_seconds: float = 0.2
    blame_seconds: float = 0.5
    """After a communication failure: how long to wait for its cause before groups are rebuilt with the same members."""
    lease_seconds: float = 3.0
    """A node without a heartbeat for this long is dead."""
    takeover_seconds: float = 0.0
    """How long nodes have to find a new controller, where that takes longer than a lease; 0 stands for the lease."""
    hang_seconds: float = 3.0
    """A trainer without a sign of life for this long is stopped or stuck."""
    stall_seconds: float = 60.0
    """No step for this long (and ten times the usual step) while everybody looks alive: break it up. After a stall in
    which somebody computed, the next one is given twice as long."""
    collective_seconds: float = 120.0
    """After one that was waited for in vain, the next ones are given twice as long."""
    regroup_seconds: float = 150.0
    start_seconds: float = 180.0
    acquire_seconds: float = 300.0
    orphan_seconds: float = 120.0
    """An agent without a controller for this long ends itself (training goes on until then)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegritySpec:
    """How often members compare their replicas; `orchestrator/core/corruption.py` says what follows."""

    interval_steps: int = 20
    """Every so many steps, and in the first step of a generation and before each checkpoint; 0 compares never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySpec:
    """How much is borne before something else is tried. Windows slide; limits are per node unless a name says else."""

    node_starts: int = 3
    """How often a lost node is started again within `window_seconds`, where a seat or a replica waits for it."""
    node_failures: int = 3
    """Failures within `window_seconds` that put a node into quarantine: no seat before a pair check has passed."""
    window_seconds: float = 3600.0
    quarantine_seconds: float = 60.0
    """Of a node's first quarantine; each further one is twice as long, up to `quarantine_limit_seconds`."""
    quarantine_limit_seconds: float = 3600.0
    mass_failure_share: float = 0.5
    """More nodes than this share of `cluster.nodes` lost within `mass_failure_window_seconds` breaks the circuit."""
    mass_failure_window_seconds: float = 10.0
    mass_failure_wait_seconds: float = 60.0
    """With the circuit broken: how long nodes may take to come back before training goes on with what is there."""
    window_alarm_seconds: float = 120.0
    """A warning is given when an expert stands on fewer replicas than asked for, for so long; 0 gives none."""
    pair_check_ratio: float = 1.5
    """In a pair check: who takes more than so many times as long as the known-good one is slow."""
    straggler_score: float = 0.7
    """A member whose speed is below this share of the median member's is a straggler."""
    straggler_seconds: float = 30.0
    """For so long, before a spare takes its seat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSpec:
    """A failure to inject: the real thing, done by the victim to itself at an exact point (`fault_rules.py`).

    Fields of text that are empty, and `bit` -1, stand for what is usual for the kind.
    """

    kind: str
    """sigkill | sigstop | exit | slow | nan | bitflip | disk-full | torn-shard"""
    node: str
    step: int
    phase: str = ""
    """forward | dispatch | backward | reduce | vote | optimizer | boundary | checkpoint | regroup | acquire"""
    target: str = ""
    """node (agent and trainers) | trainer"""
    device: int = 0
    part: str = ""
    """Of nan and bitflip: dense, or an expert such as expert-00003 (default: the first one that the victim holds)."""
    tensor: str = "weights"
    """Of bitflip: weights | m | v"""
    bit: int = -1
    """Of bitflip: 0 is the lowest; the default is the highest of the fraction, which keeps the number finite."""
    factor: float = 3.0
    """Of slow: how many times longer the victim computes."""
    duration_steps: int = 20
    """Of slow: for how many steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    name: str
    data: DataSpec
    seed: int = 0
    steps: int = 200
    precision: Precision = Precision.FLOAT32
    cluster: ClusterSpec = field(default_factory=ClusterSpec)
    pipeline: PipelineSpec = field(default_factory=PipelineSpec)
    batch: BatchSpec = field(default_factory=BatchSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    init: InitSpec = field(default_factory=InitSpec)
    trainable: TrainableSpec = field(default_factory=TrainableSpec)
    compute: ComputeSpec = field(default_factory=ComputeSpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    snapshot: SnapshotSpec = field(default_factory=SnapshotSpec)
    integrity: IntegritySpec = field(default_factory=IntegritySpec)
    validation: ValidationSpec = field(default_factory=ValidationSpec)
    logging: LoggingSpec = field(default_factory=LoggingSpec)
    timeouts: TimeoutSpec = field(default_factory=TimeoutSpec)
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    faults: tuple[FaultSpec, ...] = ()

    @property
    def all_experts(self) -> int:
        """Of all stages: what a placement places."""
        return self.pipeline.stages * self.model.experts
