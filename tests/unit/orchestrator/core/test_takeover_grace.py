"""A new controller that is hard to find gives its nodes longer than a lease to find it."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.policy import Policy
from orchestrator.core.state import NodeState
from tests.unit.orchestrator.core.told import NODE_4, MakeWorld


def test_grace_of_a_takeover_is_the_lease_unless_the_job_says_longer(make_training: MakeWorld) -> None:
    """Where agents are processes of this machine, nothing has to be found."""
    world = make_training(nodes=3, spares=0)
    timeouts = world.spec.timeouts
    assert Policy.from_timeouts(timeouts).takeover_seconds == timeouts.lease_seconds
    longer = replace(timeouts, takeover_seconds=15.0)
    assert Policy.from_timeouts(longer).takeover_seconds == 15.0
    shorter = replace(timeouts, takeover_seconds=1.0)
    assert Policy.from_timeouts(shorter).takeover_seconds == timeouts.lease_seconds


def test_node_that_looks_for_the_new_controller_is_not_given_up_before_the_grace_ends(
    make_training: MakeWorld,
) -> None:
    """A service has to lead to it first."""
    world = make_training(nodes=3, spares=1)
    assert world.state.job is not None
    timeouts = replace(world.state.job.spec.timeouts, takeover_seconds=15.0)
    stored = replace(world.state.job, spec=replace(world.state.job.spec, timeouts=timeouts))
    world.disk.store(replace(world.last, changes=(stored,), actions=(), reasons=()))
    world.stop_controller()
    world.agents.alive[NODE_4].cut = True
    world.start_controller()
    world.run(12.0)
    assert world.state.nodes[NODE_4].state is not NodeState.DEAD
    world.run(8.0)
    assert world.state.nodes[NODE_4].state is NodeState.DEAD
