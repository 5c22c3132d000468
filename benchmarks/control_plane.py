"""What the control plane costs, from 16 to 10,000 agents: one real controller process, real gRPC streams, real SQLite.

For each size: all agents register, the first generation is sent, then for a while everybody sends a heartbeat a second
and the first two ranks report a step a second. Measured: the round trip of a heartbeat (sent by the agent, taken in by
the controller, `heartbeat_heard` read by the agent; one in five asks for that), the controller's processor time and
memory, what it writes to its database. Then a node dies: its connection breaks and two peers report a broken
collective; measured until the last survivor has read the new assignment, and again until the last one has read that a
spare is seated.

The controller is pinned to one core and all agents to another (`--cores`), for on one machine both sides compete;
agents are Python too, and their own delays count as round trip. `--agents` names the sizes, `--json` keeps the figures.
The table comes within `--minutes`, whatever happens: a size that takes too long is given up, said, and shown as far as
it got.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks import noise

START_SECONDS = 300.0
ANSWER_SECONDS = 120.0
DEATHS = 3
_POLL_SECONDS = 0.02


class GivenUp(Exception):
    """A size did not get where it should, or not within its time."""


class Deadline:
    """When the whole run is to be over."""

    def __init__(self, minutes: float) -> None:
        self._at = time.monotonic() + 60.0 * minutes

    @property
    def left(self) -> float:
        """Seconds, not below 0."""
        return max(0.0, self._at - time.monotonic())


@dataclass(slots=True, kw_only=True)
class Figures:
    """One size. Seconds, bytes, shares of one core."""

    agents: int
    round_trip_p50: float = 0.0
    round_trip_p99: float = 0.0
    round_trip_max: float = 0.0
    sent_late_p99: float = 0.0
    """How late agents were to send, for want of processor time on their own side."""
    heartbeats_per_second: float = 0.0
    controller_cores: float = 0.0
    agents_cores: float = 0.0
    memory_bytes: int = 0
    rows_per_second: float = 0.0
    written_bytes_per_second: float = 0.0
    start_seconds: float = 0.0
    """From the first connection until all agents have the first generation."""
    death: list[float] = field(default_factory=list)
    """From a node's death until the last survivor has the new assignment."""
    seated: list[float] = field(default_factory=list)
    """From the death until the last one knows that a spare has the seat."""
    lost_streams: list[str] = field(default_factory=list)
    given_up: str = ""
    """What did not come in time; the figures are those until then."""


class Fleet:
    """One process full of agents, on the other end of a pipe."""

    def __init__(self, address: str, job: dict[str, Any], cores: str) -> None:
        sizes = [str(job["batch"]["microbatches"]), str(job["model"]["experts"])]
        command = [sys.executable, "-m", "benchmarks.control_plane_fleet", address, *sizes]
        self._process = subprocess.Popen(
            ["taskset", "-c", cores, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise GivenUp("a process of agents ended early; its words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


class Agents:
    """All processes of agents together."""

    def __init__(self, fleets: Sequence[Fleet]) -> None:
        self._fleets = fleets

    def ask(self, **order: Any) -> list[dict[str, Any]]:
        """The same order to all; their answers."""
        for fleet in self._fleets:
            fleet.tell(order)
        return [fleet.answer() for fleet in self._fleets]

    def open(self, numbers: Sequence[int]) -> None:
        for index, fleet in enumerate(self._fleets):
            fleet.tell({"do": "open", "numbers": list(numbers[index :: len(self._fleets)])})
        for fleet in self._fleets:
            fleet.answer()

    def told(self, generation: int) -> tuple[int, float]:
        """How many agents have been told a generation, and when the last of them was."""
        answers = self.ask(do="state")
        key = str(generation)
        return (
            sum(each["told"].get(key, 0) for each in answers),
            max((each["last"].get(key, 0.0) for each in answers), default=0.0),
        )

    def alive(self) -> int:
        return sum(each["alive"] for each in self.ask(do="state"))

    def newest(self) -> int:
        return max(int(each["newest"]) for each in self.ask(do="state"))

    def lost(self) -> list[str]:
        return [words for each in self.ask(do="state") for words in each["lost"]]


class Controller:
    """A real controller process in a folder of its own."""

    def __init__(self, folder: Path, job: dict[str, Any], options: argparse.Namespace) -> None:
        self.workdir = folder / "run"
        self.workdir.mkdir()
        job_file = folder / "job.yaml"
        job_file.write_text(yaml.safe_dump(job))
        program = [*options.wrap, sys.executable, "-m", "orchestrator", "--workdir", str(self.workdir)]
        arguments = ["--job", str(job_file), "--agents", "elsewhere"]
        self.log = (folder / "controller.log").open("w")
        self.process = subprocess.Popen(
            ["taskset", "-c", options.cores[0], *program, *arguments],
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        record = self.workdir / "controller.json"
        try:
            _wait(record.exists, options.deadline.left, "the controller serves", self._alive)
        except GivenUp:
            self.process.kill()
            self.process.wait()
            raise
        said = json.loads(record.read_text())
        self.address: str = said["address"]
        self.pid: int = said["pid"]

    def _alive(self) -> None:
        if self.process.poll() is not None:
            raise GivenUp(f"the controller ended with {self.process.returncode}: {self.log.name}")

    def processor_seconds(self) -> float:
        after_name = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Resident now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def written_bytes(self) -> int:
        lines = Path(f"/proc/{self.pid}/io").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("wchar")))

    def rows(self) -> int:
        """Rows of event log and outbox, by their running numbers; everything else is updated in place."""
        connection = sqlite3.connect(f"file:{self.workdir / 'controller.db'}?mode=ro", uri=True, timeout=30)
        try:
            counts = [
                connection.execute(f"SELECT coalesce(max(sequence), 0) FROM {table}").fetchone()[0]
                for table in ("events", "outbox")
            ]
        finally:
            connection.close()
        return int(sum(counts))

    def end(self) -> None:
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.kill(self.pid, signal.SIGKILL)
                self.process.wait()
        self.log.close()


def _wait(
    condition: Callable[[], bool], seconds: float, what: str, check: Callable[[], None] = lambda: None
) -> None:
    """Raises GivenUp."""
    limit = time.monotonic() + seconds
    while not condition():
        check()
        if time.monotonic() > limit:
            raise GivenUp(f"not within {seconds:.0f} s: {what}")
        time.sleep(_POLL_SECONDS)


def job_of(agents: int) -> dict[str, Any]:
    """A job for so many agents, spares among them; enough experts for everybody to hold one."""
    spares = max(1, agents // 64)
    nodes = agents - spares
    return {
        "name": "control-plane",
        "steps": 1_000_000,
        "data": {"path": "stdlib"},
        "cluster": {"nodes": nodes, "spares": spares, "replicas": 2},
        "batch": {"microbatches": nodes, "microbatch_size": 1},
        "model": {"experts": -(-nodes // 2)},
        "checkpoint": {"interval_seconds": 86_400},
        "timeouts": {
            "heartbeat_seconds": 1.0,
            "lease_seconds": 15.0,
            "hang_seconds": 15.0,
            "start_seconds": START_SECONDS,
        },
    }


def measure(agents: int, options: argparse.Namespace, folder: Path) -> Figures:
    """One size from an empty folder to the end, or as far as its time lasts."""
    job, figures = job_of(agents), Figures(agents=agents)
    with ExitStack() as ends:
        try:
            controller = Controller(folder, job, options)
            ends.callback(controller.end)
            fleets = [Fleet(controller.address, job, options.cores[1]) for _ in range(options.processes)]
            for fleet in fleets:
                ends.callback(fleet.end)
            everybody = Agents(fleets)
            _start(figures, everybody, options.deadline)
            time.sleep(options.settle)
            _steady(figures, controller, everybody, options.seconds)
            for _ in range(options.deaths):
                _death(figures, everybody, options.deadline)
                time.sleep(options.settle)
            figures.lost_streams = everybody.lost()
        except GivenUp as late:
            figures.given_up = str(late)
    return figures


def _start(figures: Figures, everybody: Agents, deadline: Deadline) -> None:
    """Until all agents train."""
    began = time.monotonic()
    everybody.open(range(1, figures.agents + 1))
    limit = min(START_SECONDS, deadline.left)
    _wait(lambda: everybody.alive() >= figures.agents, limit, "all agents are welcome")
    _say(f"all welcome after {time.monotonic() - began:.1f} s")
    limit = min(START_SECONDS, deadline.left)
    _wait(lambda: everybody.told(1)[0] >= figures.agents, limit, "the first generation is known to all")
    figures.start_seconds = everybody.told(1)[1] - began
    _say(f"first generation after {figures.start_seconds:.1f} s")


def _say(words: str) -> None:
    print(f"  {words}", file=sys.stderr, flush=True)


def _steady(figures: Figures, controller: Controller, agents: Agents, seconds: float) -> None:
    rows, written = controller.rows(), controller.written_bytes()
    used, before = controller.processor_seconds(), agents.ask(do="measure")
    began = time.monotonic()
    time.sleep(seconds)
    after = agents.ask(do="measured")
    elapsed = time.monotonic() - began
    figures.controller_cores = (controller.processor_seconds() - used) / elapsed
    figures.agents_cores = (
        sum(new["cpu"] - old["cpu"] for old, new in zip(before, after, strict=True)) / elapsed
    )
    figures.rows_per_second = (controller.rows() - rows) / elapsed
    figures.written_bytes_per_second = (controller.written_bytes() - written) / elapsed
    figures.memory_bytes = controller.memory_bytes()
    trips = sorted(trip for each in after for trip in each["round_trips"])
    late = sorted(each for answer in after for each in answer["lateness"])
    figures.sent_late_p99 = late[int(0.99 * len(late))] if late else 0.0
    figures.heartbeats_per_second = sum(each["heartbeats"] for each in after) / elapsed
    if len(trips) > 1:
        percent = statistics.quantiles(trips, n=100, method="inclusive")
        figures.round_trip_p50, figures.round_trip_p99 = percent[49], percent[98]
        figures.round_trip_max = trips[-1]


def _death(figures: Figures, agents: Agents, deadline: Deadline) -> None:
    """One member dies; two others report it, as its peers in a collective would. Raises GivenUp."""
    members: dict[str, int] = agents.ask(do="members")[0]["members"]
    if not members:
        raise GivenUp("the newest generation has no members: too many nodes were lost")
    by_rank = {rank: trainer for trainer, rank in members.items()}
    rank = len(members) // 2
    before, alive = agents.newest(), agents.alive()
    died = max(each["at"] for each in agents.ask(do="die", trainers=[by_rank[rank]]))
    agents.ask(do="complain", trainers=[by_rank[rank - 1], by_rank[rank + 1]])
    _wait(
        lambda: agents.told(before + 1)[0] >= alive - 1,
        min(ANSWER_SECONDS, deadline.left),
        "all survivors have the new assignment",
    )
    figures.death.append(agents.told(before + 1)[1] - died)
    _say(f"a node died: all knew after {figures.death[-1]:.2f} s")
    _wait(
        lambda: agents.told(before + 2)[0] >= alive - 1,
        min(ANSWER_SECONDS, deadline.left),
        "all know of the spare that is seated",
    )
    figures.seated.append(agents.told(before + 2)[1] - died)


HEAD = (
    "agents", "heartbeats/s", "p50 ms", "p99 ms", "max ms", "late ms", "cores", "MB", "rows/s", "KB/s", "death s",
    "seated s", "start s", "agents' cores",
)  # fmt: skip


def row(figures: Figures) -> list[str]:
    """One line of the table; a dash for what was not measured."""
    milli, measured = 1000.0, figures.heartbeats_per_second > 0.0
    steady = [
        f"{figures.heartbeats_per_second:.0f}",
        f"{figures.round_trip_p50 * milli:.1f}",
        f"{figures.round_trip_p99 * milli:.1f}",
        f"{figures.round_trip_max * milli:.1f}",
        f"{figures.sent_late_p99 * milli:.1f}",
        f"{figures.controller_cores:.2f}",
        f"{figures.memory_bytes / 1e6:.0f}",
        f"{figures.rows_per_second:.2f}",
        f"{figures.written_bytes_per_second / milli:.1f}",
    ]
    return [
        str(figures.agents),
        *(steady if measured else ["-"] * len(steady)),
        f"{statistics.median(figures.death):.3f}" if figures.death else "-",
        f"{statistics.median(figures.seated):.3f}" if figures.seated else "-",
        f"{figures.start_seconds:.1f}" if figures.start_seconds else "-",
        f"{figures.agents_cores:.2f}" if measured else "-",
    ]


def main() -> None:
    """Measures every size that was asked for, in a fresh folder each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", default="16,128,1024,4096,10000", help="sizes, by comma")
    parser.add_argument("--seconds", type=float, default=15.0, help="of steady heartbeats")
    parser.add_argument("--minutes", type=float, default=8.0, help="until the table is there")
    parser.add_argument("--settle", type=float, default=3.0, help="seconds of rest before a measurement")
    parser.add_argument("--deaths", type=int, default=DEATHS)
    parser.add_argument("--processes", type=int, default=1, help="that the agents are spread over")
    parser.add_argument("--cores", default="0:1", help="CONTROLLER:AGENTS, each as for taskset -c")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here too")
    parser.add_argument("--keep", type=Path, default=None, help="folder for the controllers' files")
    parser.add_argument("--wrap", default="", help="a program to run the controller under, a profiler say")
    options = parser.parse_args()
    options.cores, options.wrap = options.cores.split(":"), options.wrap.split()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options.deadline = Deadline(options.minutes)
    before, found = noise.conditions(), []
    for agents in (int(size) for size in options.agents.split(",")):
        print(f"{agents} agents", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="control-plane-") as folder:
            found.append(measure(agents, options, options.keep or Path(folder)))
    described = noise.machine(before)
    print(noise.machine_text(described))
    print(noise.table(HEAD, [row(each) for each in found]))
    for each in found:
        if each.given_up:
            print(f"{each.agents} agents: given up, {each.given_up}")
        if each.lost_streams:
            print(f"{each.agents} agents: streams were lost, for example {each.lost_streams[0]}")
    if options.json is not None:
        figures = {"machine": described, "sizes": [asdict(each) for each in found]}
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
