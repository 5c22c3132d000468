"""Makes things go wrong, at the rates of the seed: every kind of fault, and what ends it again.

Each fault is one line of the timeline. What a fault means for processes, links and disks is in the modules that
simulate them; the chances that depend on an occasion (a commit, a shard) are drawn there. Next: `options.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeVar

from orchestrator.core import events
from simulation.agent import AgentProcess
from simulation.controllers import Controllers
from simulation.database import Database
from simulation.ground import Ground
from simulation.nodes import Nodes

LOOK_SECONDS = 0.25
MEMORY_ROTS = 0.5
"""Of all damage to saved state, that share hits the memory of an agent."""

T = TypeVar("T")


class Nemesis:
    """The source of all trouble in a world, until it rests."""

    def __init__(
        self,
        ground: Ground,
        random: Random,
        *,
        nodes: Nodes,
        controllers: Controllers,
        database: Database,
        racks: int,
    ) -> None:
        self._ground = ground
        self._random = random
        self._nodes = nodes
        self._controllers = controllers
        self._database = database
        self._racks = racks
        self._resting = False
        self._flapping: set[str] = set()
        self._kinds: tuple[tuple[str, Callable[[], None]], ...] = (
            ("trainer_crash_rate", self._crash_trainer),
            ("agent_crash_rate", self._crash_agent),
            ("node_crash_rate", self._crash_node),
            ("rack_loss_rate", self._lose_rack),
            ("mass_failure_rate", self._fail_massively),
            ("flapping_rate", self._flap),
            ("freeze_rate", self._freeze),
            ("slow_rate", self._slow_down),
            ("stream_break_rate", self._break_stream),
            ("delay_rate", self._congest),
            ("cut_rate", self._cut),
            ("collective_break_rate", self._break_collective),
            ("not_finite_rate", self._poison),
            ("controller_crash_rate", self._crash_controller),
            ("controller_freeze_rate", self._freeze_controller),
            ("second_controller_rate", self._second_controller),
            ("database_outage_rate", self._refuse_database),
            ("ledger_full_rate", self._fill_ledger),
            ("disk_full_rate", self._fill_disk),
            ("rot_rate", self._rot),
            ("human_rate", self._human),
        )
        ground.scheduler.every(LOOK_SECONDS, self._look)

    def rest(self) -> None:
        """Nothing new goes wrong, and everything that can end is ended."""
        self._resting = True
        self._flapping.clear()
        ground = self._ground
        ground.network.mend_all()
        ground.network.congested = ground.ledger_full = ground.disk.full = False
        self._database.refusal = ""
        for node in self._nodes.all:
            self._nodes.slow_down(node, 1.0)
        for process in self._controllers.living:
            process.wake()
        for agent in self._nodes.living():
            self._thaw(agent)

    def _look(self) -> bool:
        if self._resting:
            return False
        for name, strike in self._kinds:
            if self._random.random() < getattr(self._ground.faults, name) * LOOK_SECONDS:
                strike()
        return True

    # ---- what to hit ----

    def _any(self, things: list[T]) -> T | None:
        return self._random.choice(things) if things else None

    def _seconds(self, *choices: float) -> float:
        """About one of these."""
        return self._random.choice(choices) * self._random.uniform(0.5, 1.5)

    def _tell(self, text: str) -> None:
        self._ground.timeline.say("fault", text)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        """Unless everything has been mended by then."""
        self._ground.scheduler.after(seconds, lambda: None if self._resting else action())

    # ---- processes and machines ----

    def _crash_trainer(self) -> None:
        trainer = self._any(list(self._nodes.trainers()))
        if trainer is not None:
            self._tell(f"{trainer.name} is killed")
            self._nodes.agents[trainer.place].kill_trainer(trainer)

    def _crash_agent(self) -> None:
        agent = self._any(self._nodes.living())
        if agent is not None:
            self._tell(f"the agent of {agent.place} is killed")
            agent.kill()
            self._later(self._seconds(0.5, 3.0, 20.0), lambda: self._nodes.return_agent(agent.place))

    def _crash_node(self) -> None:
        agent = self._any(self._nodes.living())
        if agent is not None:
            self._break(agent.place)

    def _break(self, node: str) -> None:
        silently = self._random.random() < 0.5
        for_good = self._random.random() < self._ground.faults.node_lost_chance
        seconds = None if for_good else self._seconds(2.0, 10.0, 30.0)
        self._tell(
            f"{node} goes down {'without a word' if silently else 'with its connections reset'}, "
            f"{'for good' if seconds is None else f'for {seconds:.1f} s'}"
        )
        self._nodes.break_machine(node, silently=silently, repair_seconds=seconds)

    def _lose_rack(self) -> None:
        rack = self._random.randrange(self._racks)
        self._tell(f"rack {rack} loses power")
        for index, node in enumerate(self._nodes.all):
            if index % self._racks == rack and node not in self._nodes.broken:
                self._break(node)

    def _fail_massively(self) -> None:
        share = self._random.choice((0.5, 0.8, 1.0))
        self._tell(f"a mass failure takes {share:.0%} of all nodes")
        for node in self._nodes.all:
            if self._random.random() < share and node not in self._nodes.broken:
                self._break(node)

    def _flap(self) -> None:
        node = self._random.choice(self._nodes.all)
        if node in self._flapping:
            self._flapping.discard(node)
            self._tell(f"{node} stops flapping")
        else:
            self._flapping.add(node)
            self._tell(f"{node} begins to come and go")
            self._down_and_up(node)

    def _down_and_up(self, node: str) -> None:
        if node not in self._flapping or node in self._nodes.lost:
            return
        seconds = self._seconds(1.0, 3.0)
        if node not in self._nodes.broken:
            self._tell(f"{node} flaps")
            self._nodes.break_machine(node, silently=False, repair_seconds=seconds)
        self._later(seconds + self._seconds(2.0, 6.0), lambda: self._down_and_up(node))

    def _freeze(self) -> None:
        agent = self._any(self._nodes.living())
        if agent is None:
            return
        what = self._random.choice(("node", "node", "agent", "trainer"))
        trainers = [each for each in agent.trainers.values() if each.alive]
        if what == "trainer":
            trainers = trainers[:1]
        if what != "agent":
            for trainer in trainers:
                trainer.stop()
        if what != "trainer":
            agent.stop()
        seconds = self._seconds(0.5, 2.5, 5.0, 20.0)
        self._tell(f"{what} of {agent.place} is stopped for {seconds:.1f} s")
        self._later(seconds, lambda: self._thaw(agent))

    def _thaw(self, agent: AgentProcess) -> None:
        if not agent.alive:
            return
        for trainer in agent.trainers.values():
            if trainer.stopped:
                trainer.wake()
        if agent.stopped:
            agent.wake()

    def _slow_down(self) -> None:
        node, factor = self._random.choice(self._nodes.all), self._random.choice((2.0, 4.0, 12.0))
        self._tell(f"{node} becomes {factor:g} times slower")
        self._nodes.slow_down(node, factor)
        self._later(self._seconds(5.0, 30.0), lambda: self._nodes.slow_down(node, 1.0))

    # ---- the network ----

    def _break_stream(self) -> None:
        agent = self._any(self._nodes.living())
        if agent is not None and agent.stream is not None and agent.stream.open:
            self._tell(f"the stream of {agent.place} breaks")
            agent.stream.snap("connection reset by peer")

    def _congest(self) -> None:
        self._tell("the network is congested")
        self._ground.network.congested = True

        def clear() -> None:
            self._ground.network.congested = False

        self._later(self._seconds(1.0, 4.0), clear)

    def _cut(self) -> None:
        places = [*self._nodes.all, *(each.place for each in self._controllers.living)]
        one = self._random.choice(places)
        others = [each for each in places if each != one]
        if not others:
            return
        kind = self._random.choice(("pair", "pair", "one way", "island"))
        targets = others if kind == "island" else [self._random.choice(others)]
        links = [(one, other) for other in targets]
        if kind != "one way":
            links += [(other, one) for other in targets]
        seconds = self._seconds(1.0, 4.0, 20.0)
        self._tell(f"links are cut for {seconds:.1f} s: {one} -- {', '.join(targets)} ({kind})")
        for link in links:
            self._ground.network.cut(*link)

        def mend() -> None:
            for link in links:
                self._ground.network.mend(*link)

        self._later(seconds, mend)

    def _break_collective(self) -> None:
        trainer = self._any([each for each in self._nodes.trainers() if each.seated])
        if trainer is not None:
            self._tell(f"a collective of {trainer.name} raises")
            trainer.break_collective()

    def _poison(self) -> None:
        trainer = self._any([each for each in self._nodes.trainers() if each.seated])
        if trainer is not None:
            self._tell(f"the next loss of {trainer.name} is not a number")
            trainer.not_finite = True

    # ---- the controller and what it writes to ----

    def _crash_controller(self) -> None:
        process = self._any(self._controllers.living)
        if process is not None:
            self._tell(f"{process.place} is killed")
            process.kill("SIGKILL")

    def _freeze_controller(self) -> None:
        process = self._any([each for each in self._controllers.living if each.awake])
        if process is not None:
            seconds = self._seconds(0.5, 3.0, 10.0)
            self._tell(f"{process.place} is stopped for {seconds:.1f} s")
            process.stop()
            self._later(seconds, process.wake)

    def _second_controller(self) -> None:
        if len(self._controllers.living) < 3:
            self._tell("another controller is started")
            self._controllers.launch()

    def _refuse_database(self) -> None:
        refusal = self._random.choice(
            ("database is locked", "database or disk is full", "unable to open database file")
        )
        seconds = self._seconds(0.3, 2.0, 8.0)
        self._tell(f"the database refuses for {seconds:.1f} s: {refusal}")
        self._database.refusal = refusal

        def relent() -> None:
            self._database.refusal = ""

        self._later(seconds, relent)

    def _fill_ledger(self) -> None:
        self._tell("the disk of the ledger is full")
        self._ground.ledger_full = True

        def make_room() -> None:
            self._ground.ledger_full = False

        self._later(self._seconds(1.0, 5.0), make_room)

    # ---- checkpoints and people ----

    def _fill_disk(self) -> None:
        self._tell("the disk of the checkpoints is full")
        self._ground.disk.full = True

        def make_room() -> None:
            self._ground.disk.full = False

        self._later(self._seconds(1.0, 5.0), make_room)

    def _rot(self) -> None:
        agent = self._any(self._nodes.living())
        if agent is not None and self._random.random() < MEMORY_ROTS:
            shard = agent.memory.rot(self._random.randrange(1 << 16))
            if shard:
                self._tell(f"{shard} rots in the memory of {agent.place}")
            return
        disk = self._ground.disk
        sealed = [name for name in disk.list_folder("") if "." in name and not name.endswith("l")]
        name = self._any(sealed)
        files = list(disk.list_folder(name)) if name else []
        file = self._any(files)
        if name and file:
            self._tell(f"{name}/{file} rots")
            disk.tear(f"{name}/{file}")

    def _human(self) -> None:
        process = self._controllers.serving
        if process is None:
            return
        node = self._random.choice(self._nodes.all)
        kind = self._random.choice(
            (
                events.DrainRequested,
                events.CordonRequested,
                events.UncordonRequested,
                events.UncordonRequested,
                events.CheckpointRequested,
            )
        )
        about = {} if kind is events.CheckpointRequested else {"node": node}
        self._tell(f"a human asks: {kind.__name__} {about.get('node', '')}".rstrip())
        process.say(kind, by="ada", **about)
