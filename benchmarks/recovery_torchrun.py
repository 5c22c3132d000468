"""torchrun elastic with torch.distributed.checkpoint: one agent, four workers, all restarted when one dies.

It is given the easier failure: a worker is killed, its agent lives and sees the death within 0.1 s. With one agent
per node, and a whole node lost, the rendezvous would first have to time out. Next: `baseline_torchrun.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks import process_family
from benchmarks.baseline_torchrun import COMMITS_FILE
from benchmarks.commit_log import CommitLog, NoProgress
from benchmarks.recovery_system import RECOVER_SECONDS, START_SECONDS, Bout, Moments, Result, victims

ROOT = Path(__file__).resolve().parents[1]
WORLD = 4
CHECKPOINT_STEPS = 10
_WORKERS = tuple(str(rank) for rank in range(WORLD))


class Torchrun:
    """See the module's docstring."""

    name = "torchrun + DCP"
    setting = (
        f"SIGKILL of one of {WORLD} workers, its agent lives; all restart from the last checkpoint "
        f"(every {CHECKPOINT_STEPS} steps), --monitor-interval 0.1"
    )

    def run(self, bout: Bout) -> Result:
        """See `System`."""
        job_file = bout.folder / "job.json"
        job_file.write_text(json.dumps(bout.job))
        log_file = bout.folder / "torchrun.log"
        with log_file.open("ab") as output:
            process = subprocess.Popen(
                _command(bout, job_file),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                start_new_session=True,
            )

        def alive() -> None:
            if process.poll() is not None:
                raise NoProgress(f"torchrun ended with {process.returncode}:\n{log_file.read_text()[-2000:]}")

        try:
            return self._fail(bout, CommitLog(bout.folder / COMMITS_FILE, alive))
        finally:
            process_family.end(process)
            for file in bout.folder.glob("worker-*.pid"):  # workers lead sessions of their own
                process_family.end_session(int(file.read_text()))

    def _fail(self, bout: Bout, log: CommitLog) -> Result:
        moments, result = Moments(bout), Result()
        for rank in victims(_WORKERS, bout):
            log.wait(lambda each: each.step > CHECKPOINT_STEPS, START_SECONDS, "checkpoint")
            step_seconds = moments.wait(log)
            pid = int((bout.folder / f"worker-{rank}.pid").read_text())
            fail = partial(os.kill, pid, signal.SIGKILL)
            result.recoveries.append(log.strike(fail, step_seconds, RECOVER_SECONDS))
        return result


def _command(bout: Bout, job_file: Path) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={WORLD}"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    torchrun += [f"--max-restarts={bout.failures + 1}", "--monitor-interval=0.1"]
    script = ["-m", "benchmarks.baseline_torchrun", "--job", str(job_file), "--workdir", str(bout.folder)]
    return [*torchrun, *script, "--every", str(CHECKPOINT_STEPS)]


def _environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        # Without it the workers of a restart find the keys of the groups that died, and never meet.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
