"""When a run has got over a strike: training goes on, nothing is under way, every expert has its replicas.

Pure but for the waiting. What it must have cost is judged in `laws.py`.
"""

from __future__ import annotations

from chaos.kinds import Aftermath
from chaos.stage import Stage
from chaos.strikes import Deed, Scene
from chaos.waiting import NeverCame
from protos import admin_pb2

REST_SECONDS = 150.0
STEPS_OF_REST = 2


def unrest(view: admin_pb2.JobView) -> str:
    """What is not as it should be, in words; empty when a run is at rest."""
    if view.job.state != "running":
        return f"the job is {view.job.state}: {view.job.reason}"
    pending = [each.id for each in view.incidents if each.state != "closed"]
    if pending:
        return f"{', '.join(pending)} not closed"
    thin = [str(each.id) for each in view.experts if not each.redundant]
    if thin:
        return f"experts {', '.join(thin)} lack a replica"
    return ""


def await_rest(scene: Scene, deed: Deed) -> None:
    """Wait until the run has recovered. Raises NeverCame, which says what is missing."""
    stage = scene.stage
    last = "no view"

    def at_rest() -> bool:
        nonlocal last
        view = stage.view()
        if view is None:
            last = "no controller answers"
            return False
        last = unrest(view)
        if not last and deed.aftermath is Aftermath.INCIDENT and not scene.incidents():
            last = "no incident has been opened"
        return not last

    try:
        stage.expect(at_rest, what=f"rest after {scene.strike.kind.value}", seconds=REST_SECONDS)
        stage.reach(stage.step() + STEPS_OF_REST)
    except NeverCame as error:
        raise NeverCame(f"{error}; missing: {last}") from error
    if not stage.struck(scene.name):
        stage.retract(scene.name)


def start(stage: Stage, nodes: int) -> None:
    """Wait until a run trains on all its nodes."""
    stage.reach(1)
    stage.expect(
        lambda: (view := stage.view()) is not None and view.job.state == "running" and len(view.experts) > 0,
        what=f"a job that runs on {nodes} nodes",
    )
