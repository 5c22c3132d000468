"""Puts the two programs of a node together; the only module that sees the agent and the trainer.

The agent must start fast and stay small, so torch is imported only in `run_trainer`, and for `offline` commands. Next:
`agent/driver.py` for the agent, `training/trainer.py` for the trainer.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence

from worker.settings import AgentSettings, SettingsError, TrainerSettings, parse

EXIT_USAGE = 2
EXIT_NO_AGENT = 3
OFFLINE = ("checkpoint", "generate", "evaluate", "import", "affinity")
"""Programs that work on a checkpoint alone."""
DATA = "data"
"""Prepares and inspects data."""
LOOPBACK = "127.0.0.1"

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run the program that the command line names; gives its exit code."""
    if arguments and arguments[0] == DATA:
        from worker.offline import data_commands

        return data_commands.main(arguments)
    if arguments and arguments[0] in OFFLINE:
        from worker.offline import commands

        return commands.main(arguments)
    try:
        settings = parse(arguments, os.environ)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    if isinstance(settings, AgentSettings):
        return run_agent(settings)
    return run_trainer(settings)


def run_agent(settings: AgentSettings) -> int:
    """A node's agent, until the job is over."""
    _log_to_stderr(settings.node)
    return asyncio.run(_agent(settings))


async def _agent(settings: AgentSettings) -> int:
    from worker.agent.client import TlsFiles
    from worker.agent.driver import Driver, Place
    from worker.agent.machine import Machine
    from worker.agent.memory import HostMemory

    host = settings.host or _address_towards(settings.controller)
    memory: HostMemory | None = None
    try:
        memory = HostMemory(node=settings.node, host=host)
    except OSError as error:
        log.warning("nobody can listen on %s (%s): no snapshots are held here", host, error.strerror)
    machine = Machine(
        node=settings.node,
        incarnation=f"{settings.node}-{os.getpid()}-{time.time_ns()}",
        labels=dict(settings.labels),
        agent_pid=os.getpid(),
        workdir=str(settings.workdir),
        devices=settings.devices,
        at=asyncio.get_running_loop().time(),
        memory_address=memory.address if memory is not None else "",
    )
    files = (settings.tls_ca, settings.tls_certificate, settings.tls_key)
    place = Place(
        controller=settings.controller,
        token=settings.token,
        host=host,
        workdir=settings.workdir,
        tls=TlsFiles(ca=files[0], certificate=files[1], key=files[2]) if files[0] is not None else None,
    )
    return await Driver(machine, place, memory).run()


def run_trainer(settings: TrainerSettings) -> int:
    """One trainer, until its agent is gone or tells it to end."""
    from worker.agent.parentage import ParentGone, die_with_parent

    try:
        die_with_parent(settings.parent)
    except ParentGone as gone:
        print(f"error: {gone}", file=sys.stderr)
        return EXIT_NO_AGENT
    from worker.agent.channel import TrainerChannel

    _log_to_stderr(f"{settings.trainer} start {settings.start}")
    tell_stacks_when_asked()
    channel = TrainerChannel(socket.socket(fileno=settings.fd))
    # What an import makes stays: to look for garbage in it costs a tenth of the start, and then in every later look.
    gc.disable()
    from worker.training import trainer

    gc.freeze()
    gc.enable()
    return trainer.run(channel, settings)


def tell_stacks_when_asked() -> None:
    """SIGUSR1 writes the stacks of all threads to stderr, also while the main thread waits inside a library.

    A thread does it that holds the interpreter's lock: the signal handler of `faulthandler` reads the frames of running
    threads without, and has ended a trainer with a segmentation fault.
    """
    asked, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    threading.Thread(target=_tell_stacks, args=(asked, wakeup), name="stacks", daemon=True).start()
    signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
    signal.siginterrupt(signal.SIGUSR1, False)
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)


def _tell_stacks(asked: socket.socket, _wakeup: socket.socket) -> None:
    while signals := asked.recv(64):
        if signal.SIGUSR1 not in signals:
            continue
        names = {each.ident: each.name for each in threading.enumerate()}
        for thread, frame in sys._current_frames().items():
            print(f"thread {names.get(thread, thread)}:", file=sys.stderr)
            traceback.print_stack(frame, file=sys.stderr)
        sys.stderr.flush()


def _address_towards(controller: str) -> str:
    """This machine's own address on the way to the controller. Sends nothing; loopback when there is no way."""
    host, _, port = controller.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        log.warning("no way to %s (%s): other nodes' trainers are expected on %s", host, error, LOOPBACK)
        return LOOPBACK


def _log_to_stderr(name: str) -> None:
    form = f"%(asctime)s.%(msecs)03d {name} %(levelname)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", stream=sys.stderr)
