"""A world: machines, agents and trainers, a network, controllers on one database, a nemesis, and the laws.

Put together here and nowhere else; everything random comes from the seed, each part with dice of its own. Next:
`seeds.py`, which lets one run; `options.py` for what may go wrong in it.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from simulation.controllers import Controllers
from simulation.database import Database
from simulation.disk import Disk
from simulation.ground import Ground
from simulation.laws import Laws
from simulation.nemesis import Nemesis
from simulation.network import Network
from simulation.nodes import Nodes
from simulation.options import Options
from simulation.scheduler import Scheduler
from simulation.timeline import Timeline
from simulation.truth import Truth

BEGIN = 1_000_000.0
"""Seconds since the epoch at which every world begins."""


class World:
    """One seed's world in a folder of its own; it begins when time is let pass."""

    def __init__(self, options: Options, seed: str, folder: Path) -> None:
        self.options = options
        self.began = BEGIN
        self.scheduler = Scheduler(BEGIN)
        self.timeline = Timeline(self.scheduler, folder)
        batch = options.spec.batch
        self.truth = Truth(batch.microbatches * batch.microbatch_size)
        self.ground = Ground(
            spec=options.spec,
            faults=options.faults,
            scheduler=self.scheduler,
            timeline=self.timeline,
            network=Network(self.scheduler, Random(f"{seed}/network")),
            disk=Disk(),
            truth=self.truth,
            random=Random(f"{seed}/ground"),
            folder=folder,
            one_host=options.one_host,
            racks=options.racks,
        )
        self.laws = Laws(options.spec, self.truth, self.timeline)
        self.database = Database(folder, lambda: self.scheduler.now)
        self.controllers = Controllers(self.ground, self.database, self.laws)
        self.nodes = Nodes(self.ground, self.controllers.dial)
        self.controllers.nodes = self.nodes
        self.nemesis = Nemesis(
            self.ground,
            Random(f"{seed}/nemesis"),
            nodes=self.nodes,
            controllers=self.controllers,
            database=self.database,
            racks=options.racks,
        )
        self.controllers.launch()

    def check_processes(self) -> list[str]:
        """Law L9 for the agents."""
        return [text for agent in self.nodes.living() for text in agent.check_bounds()]

    def close(self) -> None:
        """End the processes, which hold files."""
        for process in self.controllers.living:
            process.kill("the simulation is over")
