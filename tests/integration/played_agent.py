"""A real agent in a process of its own, whose trainers are played: `python -m ... NODE HOST:PORT WORKDIR PART`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.integration.played_trainer import command
from worker.agent.driver import Driver, Place
from worker.agent.machine import Machine


async def main(node: str, address: str, workdir: str, part: str) -> int:
    machine = Machine(
        node=node,
        incarnation=str(os.getpid()),
        labels={},
        agent_pid=os.getpid(),
        workdir=workdir,
        devices=None,
        at=asyncio.get_running_loop().time(),
    )
    place = Place(
        controller=address,
        token="",
        host="127.0.0.1",
        workdir=Path(workdir),
        trainer_command=command(part),
    )
    return await Driver(machine, place).run()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
