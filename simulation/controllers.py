"""Who keeps a controller running: starts it, starts it again when it has died, and may start a second one.

Agents reach the controllers through one address, behind which any process that serves may answer. Next:
`controller_process.py`.
"""

from __future__ import annotations

from simulation.controller_process import ControllerProcess
from simulation.database import Database
from simulation.ground import Ground
from simulation.laws import Laws
from simulation.nodes import Nodes

RESTART_SECONDS = (0.2, 4.0)


class Controllers:
    """All controller processes of a world, the living and the dead."""

    def __init__(self, ground: Ground, database: Database, laws: Laws) -> None:
        self.nodes: Nodes | None = None
        self.ended_job: str | None = None
        """What the controller said when the job was over; None while it is not."""
        self.succeeded = False
        self._ground = ground
        self._database = database
        self._laws = laws
        self._living: list[ControllerProcess] = []
        self._dead: set[str] = set()
        self._count = 0

    @property
    def living(self) -> list[ControllerProcess]:
        return list(self._living)

    @property
    def serving(self) -> ControllerProcess | None:
        """The one that holds the lease, as far as it is awake."""
        found = [each for each in self._living if each.serving and each.awake]
        return found[-1] if found else None

    def launch(self) -> ControllerProcess:
        """Start a process; whether it gets to be the controller is up to the lease."""
        assert self.nodes is not None
        self._count += 1
        name = f"control-{self._count}"
        self._ground.timeline.say(name, "starts")
        process = ControllerProcess(
            self._ground, name, database=self._database, nodes=self.nodes, laws=self._laws, supervisor=self
        )
        self._living.append(process)
        return process

    def dial(self, node: str) -> ControllerProcess | None:
        """A process that serves and is reached both ways, as an agent on `node` finds it."""
        network = self._ground.network
        found = [
            each
            for each in self._living
            if each.serving and network.reaches(node, each.place) and network.reaches(each.place, node)
        ]
        return self._ground.random.choice(found) if found else None

    # ---- the processes' supervisor ----

    def ended(self, process: ControllerProcess, reason: str) -> None:
        """A process is gone; the last one is started again after a while."""
        self._living.remove(process)
        self._dead.add(process.place)
        self._ground.scheduler.after(self._ground.between(*RESTART_SECONDS), self.ensure)

    def ensure(self) -> None:
        """Have a process, if there is none."""
        if not self._living:
            self.launch()

    def is_gone(self, name: str) -> bool:
        return self._ground.one_host and name in self._dead

    def job_ended(self, succeeded: bool, reason: str) -> None:
        if self.ended_job is None:
            self._ground.timeline.say("job", f"has ended: {reason}")
        self.ended_job, self.succeeded = reason, succeeded
