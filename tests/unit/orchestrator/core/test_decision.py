"""One event's decision: what changed is listed once, ids never repeat, names sort as people count."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.decision import Decision, in_order, natural
from orchestrator.core.ids import JobId, NodeId, TrainerId
from orchestrator.core.policy import Policy
from orchestrator.core.spec import DataSpec, JobSpec
from orchestrator.core.state import ClusterState, Job, JobState, NodeState
from tests.unit.orchestrator.core.told import NODE_1, MakeWorld


def test_entity_that_changes_twice_is_stored_once_as_it_is_at_the_end(make_training: MakeWorld) -> None:
    """The store upserts by key, so only the last version counts."""
    world = make_training()
    decision = Decision(world.state, Policy.of(world.spec), 9.0)
    node = world.state.nodes[NODE_1]
    decision.put(replace(node, cordoned=True))
    decision.put(replace(node, cordoned=True, reason="twice"))
    assert decision.outcome().changes == (world.state.nodes[NODE_1],)
    assert world.state.nodes[NODE_1].reason == "twice"
    decision.put(node)


def test_outcome_of_nothing_is_empty() -> None:
    """A plain heartbeat must not reach the database."""
    spec = JobSpec(name="a", data=DataSpec(path="stdlib"))
    assert Decision(ClusterState(), Policy.of(spec), 0.0).outcome().empty


def test_job_that_stays_as_it_is_is_no_change() -> None:
    """Answering one failure after the other writes the job only when its words change."""
    spec = JobSpec(name="a", data=DataSpec(path="stdlib"))
    state = ClusterState()
    decision = Decision(state, Policy.of(spec), 0.0)
    decision.put(_job(spec))
    assert decision.works()
    assert state.job is not None and state.job.state is JobState.PENDING


def test_action_ids_do_not_repeat_over_controller_starts(make_training: MakeWorld) -> None:
    """The second controller begins to count anew under its own prefix; the world checks every id of both."""
    world = make_training()
    world.stop_controller()
    world.start_controller()
    world.kill_node(NODE_1)
    world.run(5.0)
    prefixes = {action.id.rpartition("-")[0] for action in world.actions}
    assert prefixes == {"a-1", "a-2"}


def test_node_2_comes_before_node_10() -> None:
    """Seats go to the first nodes by name, as a person would number them."""
    names = ["node-10", "node-2", "node-1", "gpu-3"]
    assert sorted(names, key=natural) == ["gpu-3", "node-1", "node-2", "node-10"]
    trainers = [TrainerId("node-10/0"), TrainerId("node-2/1"), TrainerId("node-2/0")]
    assert sorted(trainers, key=in_order) == ["node-2/0", "node-2/1", "node-10/0"]


def test_every_node_state_is_written_through_the_table(make_training: MakeWorld) -> None:
    """A move carries its reason and its time."""
    world = make_training()
    world.stop_node(NodeId("node-2"))
    world.run(2.0)
    node = world.state.nodes[NodeId("node-2")]
    assert node.state is NodeState.SUSPECT
    assert "no heartbeat" in node.reason
    assert node.changed_at > 4.0


def _job(spec: JobSpec) -> Job:
    return Job(id=JobId("a"), spec=spec, state=JobState.PENDING, reason="", submitted_at=0.0)
