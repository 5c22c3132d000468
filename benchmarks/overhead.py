"""What fault tolerance costs while nothing fails: our full step against a plain loop over the same model.

    python -m benchmarks.overhead [--quick] [--json FILE]

Four gloo ranks on this machine. Each process runs blocks of steps of three loops in turns, so that all meet the same
noise: our full step (vote, waits that can be abandoned, reports, beats); a plain loop with the experts laid out as
expert parallel 2 times data parallel 2, which holds and computes as much as ours; and a plain loop with expert parallel
4 and one copy of each expert, which shows what redundancy itself costs. Ratios are taken round by round.

The agent's end of every channel is played here. What agent and controller cost beside it is in `recovery.py`, which
runs the real ones. Next: `overhead_rank.py`, `plain_loop.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.noise import Spread, conditions, machine, machine_text, table
from benchmarks.overhead_rank import ARMS, LOOPBACK, OURS, PLAIN, SINGLE, Schedule
from orchestrator.core import placement
from orchestrator.core.deal import deal
from orchestrator.core.ids import NodeId
from orchestrator.core.spec import ReplicaLayout
from orchestrator.core.spec_mapping import to_mapping
from orchestrator.jobfile import load_job_file
from worker.agent.channel import AgentSide, pair
from worker.agent.messages import Assignment, Configure, Member, Ready, Report, TakeSeat, TrainerRefused

ROOT = Path(__file__).resolve().parents[1]
WORLD = 4
GOAL = 1.01
RANK_SECONDS = 600.0
"""For everything that a rank does."""
END_SECONDS = 10.0
SECTIONS = ("compute", "dispatch", "reduce", "compare", "vote", "optimizer", "report")
SAME_STEPS = 8
LOSS_TOLERANCE = 1e-3
"""Relative: over the first steps the losses of the arms differ by rounding only."""


class Launcher:
    """Starts the ranks, plays their agents, ends them."""

    def __init__(self, config: dict[str, Any], workdir: Path, schedule: Schedule) -> None:
        self._config, self._workdir, self._schedule = config, workdir, schedule
        self._ready: dict[int, Ready] = {}
        self._sides: list[AgentSide] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._seated = False
        self.refused = ""

    async def run(self) -> list[dict[str, Any]]:
        """What each rank measured. Raises RuntimeError when one fails."""
        try:
            for rank in range(WORLD):
                self._start(rank)
            async with asyncio.timeout(RANK_SECONDS):
                codes = await asyncio.gather(*(asyncio.to_thread(each.wait) for each in self._processes))
        except TimeoutError as error:
            raise RuntimeError(f"the ranks were not done after {RANK_SECONDS:.0f} s") from error
        finally:
            self._end()
        if any(codes):
            logs = "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in self._logs())
            raise RuntimeError(f"ranks ended with {codes} {self.refused}\n{logs}")
        return [json.loads((self._workdir / f"rank-{rank}.json").read_text()) for rank in range(WORLD)]

    def _logs(self) -> list[Path]:
        return sorted(self._workdir.glob("rank-*.log"))

    def _start(self, rank: int) -> None:
        mine, theirs = pair()
        command = [sys.executable, "-m", "benchmarks.overhead_rank", "--fd", str(theirs.fileno())]
        command += ["--rank", str(rank), "--world", str(WORLD), "--workdir", str(self._workdir)]
        command += ["--schedule", json.dumps(asdict(self._schedule))]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": str(ROOT),
        }
        with (self._workdir / f"rank-{rank}.log").open("ab") as output:
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdout=output, stderr=output, env=environment
            )
        theirs.close()
        self._processes.append(process)
        side = AgentSide(mine, on_report=lambda report: self._hear(rank, report), on_end=lambda _reason: None)
        self._sides.append(side)
        trainer = f"node-{rank + 1}/0"
        config = json.dumps(self._config)
        side.send(
            Configure(config=config, trainer=trainer, start=1, workdir=str(self._workdir), copy_token="-")
        )

    def _hear(self, rank: int, report: Report) -> None:
        if isinstance(report, TrainerRefused):
            self.refused = report.reason
        if isinstance(report, Ready):
            self._ready[rank] = report
            if len(self._ready) == WORLD and not self._seated:
                self._seated = True
                for each in range(WORLD):
                    self._sides[each].send(TakeSeat(assignment=self._assignment(each)))

    def _assignment(self, rank: int) -> Assignment:
        nodes = [NodeId(f"node-{each + 1}") for each in range(WORLD)]
        cluster, experts = self._config["cluster"], self._config["model"]["experts"]
        members = tuple(
            Member(
                trainer=f"node-{each + 1}/0",
                start=1,
                rank=each,
                store_address=self._ready[each].store_address,
                peer_address=self._ready[each].peer_address,
            )
            for each in range(WORLD)
        )
        return Assignment(
            number=1,
            kind="initial",
            rank=rank,
            members=members,
            placement=placement.fresh(
                nodes, experts, cluster["replicas"], layout=ReplicaLayout(cluster["replica_layout"])
            ),
            deal=deal(self._config["batch"]["microbatches"], WORLD),
            restore_name="",
            restore_step=0,
            restore_shards=(),
            reason="the overhead is measured",
        )

    def _end(self) -> None:
        for side in self._sides:
            side.close()
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def analyse(ranks: list[dict[str, Any]], schedule: Schedule) -> dict[str, Any]:
    """Step times, ratios round by round, and sections, from what the ranks measured."""
    _same_work(ranks)
    seconds = {
        arm: [each["seconds"] / schedule.block_steps for each in ranks[0]["blocks"][arm]] for arm in ARMS
    }
    cpu = {
        arm: [
            sum(rank["blocks"][arm][number]["cpu_seconds"] for rank in ranks) / schedule.block_steps
            for number in range(schedule.blocks)
        ]
        for arm in ARMS
    }
    return {
        "step_seconds": {arm: _mapping(seconds[arm]) for arm in ARMS},
        "step_cpu_seconds": {arm: _mapping(cpu[arm]) for arm in ARMS},
        "ratios": {
            f"{over} / {under}": {
                "seconds": _mapping(_ratios(seconds[over], seconds[under])),
                "cpu_seconds": _mapping(_ratios(cpu[over], cpu[under])),
            }
            for over, under in ((OURS, PLAIN), (OURS, SINGLE), (PLAIN, SINGLE))
        },
        "sections": {
            arm: {
                name: {key: _mean(rank["sections"][arm][name][key] for rank in ranks) for key in each}
                for name, each in ranks[0]["sections"][arm].items()
            }
            for arm in ARMS
        },
        "final_losses": {arm: ranks[0]["losses"][arm][-1] for arm in ARMS},
    }


def _same_work(ranks: list[dict[str, Any]]) -> None:
    """The arms train the same model on the same text: their losses must agree, or the comparison means nothing.

    Only at the beginning: the arms add up in different orders, and training amplifies that.
    """
    losses = ranks[0]["losses"]
    for arm in (PLAIN, SINGLE):
        pairs = zip(losses[OURS], losses[arm], strict=True)
        for step, (ours, theirs) in enumerate(islice(pairs, SAME_STEPS), 1):
            if abs(ours - theirs) > LOSS_TOLERANCE * abs(ours):
                raise RuntimeError(f"step {step}: loss {ours} of the full step, {theirs} of {arm}")


def _ratios(over: list[float], under: list[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def _mapping(values: list[float]) -> dict[str, float]:
    spread = Spread.of(values)
    assert spread is not None, "every arm has blocks"
    return spread.mapping()


def show(report: dict[str, Any]) -> str:
    """The figures as tables."""
    steps = [
        [arm, _milliseconds(report["step_seconds"][arm]), _milliseconds(report["step_cpu_seconds"][arm])]
        for arm in ARMS
    ]
    ratios = [
        [name, _ratio(each["seconds"]), _ratio(each["cpu_seconds"])]
        for name, each in report["ratios"].items()
    ]
    sections = [[name, *_by_arm(report, [name])] for name in SECTIONS]
    sections.append(["sum", *_by_arm(report, SECTIONS)])
    cost = report["ratios"][f"{OURS} / {PLAIN}"]["seconds"]["median"]
    verdict = "within" if cost <= GOAL else "MORE than"
    return "\n".join(
        [
            "a step, median (lowest to highest block)",
            table(["loop", "clock, ms", "processor time of all ranks, ms"], steps),
            "",
            "ratio of neighbouring blocks, median (quartiles; lowest to highest)",
            table(["", "clock", "processor time"], ratios),
            "",
            "where a step spends its time: mean of a rank, ms by the clock (and of processor time)",
            table(["section", *ARMS], sections),
            "",
            f"fault tolerance costs {cost - 1:+.2%} of a plain step ({verdict} the goal of {GOAL - 1:.0%})",
        ]
    )


def _by_arm(report: dict[str, Any], names: Sequence[str]) -> list[str]:
    cells = []
    for arm in ARMS:
        found = [report["sections"][arm][name] for name in names]
        clock, cpu = (1000 * sum(each[key] for each in found) for key in ("seconds", "cpu_seconds"))
        cells.append(f"{clock:.2f} ({cpu:.2f})")
    return cells


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _milliseconds(spread: dict[str, float]) -> str:
    return f"{1000 * spread['median']:.1f} ({1000 * spread['low']:.1f} to {1000 * spread['high']:.1f})"


def _ratio(spread: dict[str, float]) -> str:
    return (
        f"{spread['median']:.4f} ({spread['quarter']:.3f} to {spread['three_quarters']:.3f}; "
        f"{spread['low']:.3f} to {spread['high']:.3f})"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The cost of fault tolerance while nothing fails.")
    parser.add_argument("--quick", action="store_true", help="a minute instead of several")
    parser.add_argument("--blocks", type=int, help="blocks of each loop")
    parser.add_argument("--block-steps", type=int, default=5)
    parser.add_argument(
        "--compare-every", type=int, help="steps between two comparisons of replicas; 0: never"
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no rank is left behind
    blocks = given.blocks or (6 if given.quick else 24)
    schedule = Schedule(
        blocks=blocks, block_steps=given.block_steps, parts_blocks=max(2, blocks // 3), warm_steps=3
    )
    steps = (blocks + schedule.parts_blocks) * schedule.block_steps + schedule.warm_steps
    changes = [f"steps={steps}"]
    if given.compare_every is not None:
        changes.append(f"integrity.interval_steps={given.compare_every}")
    spec = load_job_file(str(ROOT / "examples" / "stdlib-moe.yaml"), changes)
    before = conditions()
    with tempfile.TemporaryDirectory(prefix="understudy-overhead-") as folder:
        config = to_mapping(spec)
        ranks = asyncio.run(Launcher(config, Path(folder), schedule).run())
    report = analyse(ranks, schedule) | {"machine": machine(before), "schedule": asdict(schedule)}
    print(machine_text(report["machine"]))
    print(
        f"{WORLD} ranks on {LOOPBACK}, {blocks} blocks of {schedule.block_steps} steps of each loop, in turns\n"
    )
    print(show(report))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
