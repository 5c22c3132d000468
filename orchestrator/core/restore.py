"""Generations that begin from saved state: the first one of a job, and every one that goes back.

All members read the newest snapshot or checkpoint (`tiers.py`), or make the seed state (step 0) where there is none;
the experts are placed afresh, and the ledger's lines after that step are set aside. Next: `recovery.py`, `jobs.py`.
"""

from __future__ import annotations

from orchestrator.core import checkpoints, generations, incidents, placement, roster, snapshots, stages, tiers
from orchestrator.core.actions import RollBackLedger
from orchestrator.core.decision import Decision
from orchestrator.core.escalation import Effort
from orchestrator.core.generations import Plan
from orchestrator.core.ids import IncidentId
from orchestrator.core.placement import Placement
from orchestrator.core.state import FIRST_STATE, Generation, GenerationKind, Member
from orchestrator.core.tiers import Tier
from orchestrator.core.words import count

FIRST_GENERATION = 1


def from_storage(
    decision: Decision,
    members: tuple[Member, ...],
    reason: str,
    *,
    first: bool = False,
    incident: IncidentId | None = None,
    effort: Effort | None = None,
) -> Generation:
    """Begin a generation from the newest saved state, or from the seed; `first` where nobody holds anything."""
    state = decision.state
    saved = tiers.newest(state)
    step = saved.step if saved else FIRST_STATE
    lost = max(0, state.committed - step)
    number = decision.next_number()
    incidents.rolled_back(decision, number, lost)
    if number > FIRST_GENERATION:
        # Also where no line is to be moved: it fences off what trainers of older generations may still report.
        decision.act(RollBackLedger(id=decision.action_id(), generation=number, step=step))
    if lost:
        decision.say(
            f"the ledger goes back to step {step}: {count(lost, 'committed step')} will be computed again"
        )
    snapshots.set_aside(decision, step)
    checkpoints.set_aside(decision, step)
    if saved is not None and saved.tier is Tier.MEMORY:
        decision.say(f"all members read {saved}", incident)
    state.committed = step
    state.reported_through = min(state.reported_through, step)
    members = stages.seated(members, decision.job.spec.pipeline.stages, roster.domains_of(state))
    placed = _place(decision, members)
    apart = stages.apart(placed, members, roster.domains_of(state))
    if apart:
        decision.say(f"replicas of an expert stand on different nodes, {apart}", incident)
    plan = Plan(
        kind=GenerationKind.INITIAL if first and saved is None else GenerationKind.RESTORE,
        members=members,
        placement=placed,
        reason=reason,
        incident=incident,
        restore_name=saved.name if saved else "",
        restore_step=step,
        restore_shards=saved.shards if saved else (),
        effort=effort or Effort(),
    )
    generation = generations.begin(decision, plan)
    state.memory.restored_by = generation
    return generation


def _place(decision: Decision, members: tuple[Member, ...]) -> Placement:
    """As the job lays replicas out, unless the last step's loads say that somebody would have far too much."""
    spec, loads = decision.job.spec, decision.state.memory.expert_load
    depth, experts = spec.pipeline.stages, spec.model.experts
    where = roster.domains_of(decision.state)
    regular = stages.fresh(members, depth, experts, spec.cluster, domains=where)
    if len(loads) != spec.all_experts or not sum(loads):
        return regular
    uneven = _imbalance(regular, len(members), loads)
    if uneven < decision.policy.load_imbalance:
        return regular
    packed = stages.fresh(members, depth, experts, spec.cluster, loads, where)
    better = _imbalance(packed, len(members), loads)
    if uneven < better * decision.policy.load_imbalance:
        return regular
    decision.say(
        f"experts are placed by their load: the regular layout would give one trainer {uneven:.2f} of a fair share, "
        f"this placement {better:.2f}"
    )
    return packed


def _imbalance(where: Placement, ranks: int, loads: tuple[int, ...]) -> float:
    """The highest expected load of a rank over the mean."""
    by_rank = placement.load_by_rank(where, ranks, loads)
    return max(by_rank) * ranks / sum(by_rank)
