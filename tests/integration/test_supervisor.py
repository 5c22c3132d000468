"""The supervisor with real processes and real signals: nobody is left behind, and every end is told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.played_trainer import command
from tests.waiting import wait_until
from worker.agent.messages import Beat, Configure, Ready, Report
from worker.agent.supervisor import SpawnError, Supervisor

WAIT_SECONDS = 10.0
TRAINER = "node-1/0"


@dataclass
class Heard:
    """Everything the supervisor told, and a condition to wait on."""

    reports: list[tuple[int, Report]] = field(default_factory=list)
    exits: list[tuple[str, int, int | None, int | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_report(self, trainer: str, start: int, report: Report) -> None:
        assert trainer == TRAINER
        self.reports.append((start, report))
        self.changed.set()

    def on_exit(self, trainer: str, start: int, exit_code: int | None, signal_number: int | None) -> None:
        self.exits.append((trainer, start, exit_code, signal_number))
        self.changed.set()

    def on_note(self, text: str) -> None:
        self.notes.append(text)
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def ended(self, times: int) -> None:
        await self.until(lambda: len(self.exits) >= times)

    async def ready(self, start: int = 1) -> None:
        await self.until(lambda: any(isinstance(r, Ready) and s == start for s, r in self.reports))


@asynccontextmanager
async def supervising(
    tmp_path: Path, line: Sequence[str], **environment: str
) -> AsyncIterator[tuple[Supervisor, Heard]]:
    heard = Heard()
    supervisor = Supervisor(
        listener=heard,
        workdir=tmp_path,
        host="127.0.0.1",
        command=line,
        environment=dict(os.environ) | environment,
    )
    try:
        yield supervisor, heard
    finally:
        await supervisor.end_all(0.0)


def begin(supervisor: Supervisor, tmp_path: Path, start: int = 1) -> int:
    """A process that has been told the job."""
    pid = supervisor.start(TRAINER, start, 0)
    configure = Configure(
        config="{}", trainer=TRAINER, start=start, workdir=str(tmp_path), copy_token="s3cret"
    )
    supervisor.send(TRAINER, start, configure)
    return pid


def told(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def script(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def log_of(tmp_path: Path) -> str:
    return (tmp_path / "logs" / "node-1.0.log").read_text(encoding="utf-8")


def alive(pid: int) -> bool:
    """A process of that number that is no corpse."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_death_by_signal_is_told_with_its_number(tmp_path: Path, blow: signal.Signals) -> None:
    """Whoever sent it."""

    async def story() -> None:
        async with supervising(tmp_path, command()) as (supervisor, heard):
            pid = begin(supervisor, tmp_path)
            await heard.ready()
            os.kill(pid, blow)
            await heard.until(lambda: heard.exits)
            assert heard.exits == [(TRAINER, 1, None, blow)]
            assert heard.notes == []

    told(story)


def test_last_words_come_before_the_end(tmp_path: Path) -> None:
    """A process says something and is gone: first the report, then its exit code."""

    async def story() -> None:
        async with supervising(tmp_path, command("dies")) as (supervisor, heard):
            for start in range(1, 6):
                begin(supervisor, tmp_path, start)
                await heard.ended(start)
                assert any(s == start and isinstance(r, Ready) for s, r in heard.reports)
                assert heard.exits[-1] == (TRAINER, start, 7, None)

    told(story)


def test_a_stopped_process_is_killed_all_the_same(tmp_path: Path) -> None:
    """SIGTERM would wait for SIGCONT; SIGKILL does not."""

    async def story() -> None:
        async with supervising(tmp_path, command()) as (supervisor, heard):
            pid = begin(supervisor, tmp_path)
            await heard.ready()
            os.kill(pid, signal.SIGSTOP)
            supervisor.kill(TRAINER, 1)
            await heard.until(lambda: heard.exits)
            assert heard.exits == [(TRAINER, 1, None, signal.SIGKILL)]

    told(story)


def test_orders_and_kills_for_an_earlier_process_hit_nobody(tmp_path: Path) -> None:
    """They name the start."""

    async def story() -> None:
        async with supervising(tmp_path, command()) as (supervisor, heard):
            pid = begin(supervisor, tmp_path, start=2)
            await heard.ready(start=2)
            supervisor.kill(TRAINER, 1)
            supervisor.kill("node-1/9", 1)
            seen = len(heard.reports)
            await heard.until(lambda: len(heard.reports) > seen and isinstance(heard.reports[-1][1], Beat))
            assert alive(pid) and not heard.exits

    told(story)


def test_ending_all_asks_first_and_wakes_the_stopped(tmp_path: Path) -> None:
    """SIGTERM and SIGCONT: an orderly end does not need the whole grace."""

    async def story() -> None:
        async with supervising(tmp_path, command()) as (supervisor, heard):
            pid = begin(supervisor, tmp_path)
            await heard.ready()
            os.kill(pid, signal.SIGSTOP)
            await supervisor.end_all(WAIT_SECONDS)
            assert heard.exits == [(TRAINER, 1, None, signal.SIGTERM)]
            assert not alive(pid)

    told(story)


def test_ending_all_kills_who_does_not_listen(tmp_path: Path) -> None:
    """Bounded by the grace."""

    async def story() -> None:
        async with supervising(tmp_path, command("stubborn")) as (supervisor, heard):
            begin(supervisor, tmp_path)
            await heard.ready()
            await supervisor.end_all(0.1)
            assert heard.exits == [(TRAINER, 1, None, signal.SIGKILL)]

    told(story)


def test_the_children_of_a_trainer_end_with_it(tmp_path: Path) -> None:
    """A process that a library started, for example to compile kernels."""
    text = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )

    async def story() -> None:
        async with supervising(tmp_path, script(text)) as (supervisor, heard):
            pid = supervisor.start(TRAINER, 1, 0)
            await asyncio.to_thread(
                wait_until,
                lambda: log_of(tmp_path).strip(),
                within_seconds=WAIT_SECONDS,
                what="the child's pid",
            )
            child = int(log_of(tmp_path))
            os.kill(pid, signal.SIGKILL)
            await heard.until(lambda: heard.exits)
            await asyncio.to_thread(
                wait_until,
                lambda: not alive(child),
                within_seconds=WAIT_SECONDS,
                what="the end of the child",
            )

    told(story)


def test_a_trainer_that_closes_its_end_and_stays_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a channel it can neither report nor obey."""
    monkeypatch.setattr("worker.agent.supervisor.DEAF_SECONDS", 0.05)
    text = "import os, sys, time; os.close(int(sys.argv[sys.argv.index('--fd') + 1])); time.sleep(600)"

    async def story() -> None:
        async with supervising(tmp_path, script(text)) as (supervisor, heard):
            supervisor.start(TRAINER, 1, 0)
            await heard.until(lambda: heard.exits)
            assert heard.exits == [(TRAINER, 1, None, signal.SIGKILL)]
            assert "closed" in heard.notes[0]

    told(story)


def test_output_goes_to_a_log_of_its_own_and_is_kept_over_restarts(tmp_path: Path) -> None:
    """What the last process said before it died is what people look for."""

    async def story() -> None:
        async with supervising(tmp_path, script("import sys; print('out'); sys.exit('err')")) as (
            supervisor,
            heard,
        ):
            for start in (1, 2):
                supervisor.start(TRAINER, start, 0)
                await heard.ended(start)
        assert sorted(log_of(tmp_path).split()) == ["err", "err", "out", "out"]

    told(story)


def test_one_thread_unless_the_environment_says_otherwise(tmp_path: Path) -> None:
    """Many trainers share a machine."""
    text = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])"

    async def story() -> None:
        async with supervising(tmp_path, script(text), OMP_NUM_THREADS="4") as (supervisor, heard):
            supervisor.start(TRAINER, 1, 0)
            await heard.until(lambda: heard.exits)
        assert log_of(tmp_path).split() == ["4", "1"]

    told(story)


def test_a_program_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    """And leaves nothing open."""

    async def story() -> None:
        async with supervising(tmp_path, ("/nowhere/python",)) as (supervisor, heard):
            with pytest.raises(SpawnError, match="/nowhere/python"):
                supervisor.start(TRAINER, 1, 0)
            assert not heard.exits

    told(story)


def test_a_trainer_whose_agent_died_before_it_looked_ends_at_once(tmp_path: Path) -> None:
    """The kernel was told too late; the parent's number tells."""
    words = ["--fd", "0", "--trainer", TRAINER, "--start", "1", "--workdir", str(tmp_path)]
    more = ["--bind-host", "127.0.0.1", "--parent", str(os.getpid() + 1)]
    done = subprocess.run(
        [sys.executable, "-m", "worker", "trainer", *words, *more],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert (done.returncode, "is gone" in done.stderr) == (3, True)
