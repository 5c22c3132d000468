"""`python -m simulation`: one seed told in full, or many on all processors."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from simulation.seeds import run_seed
from simulation.sweep import sweep, tell, work


def main() -> int:
    """Status 1 when a law was broken."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone and tell its whole story")
    parser.add_argument("--seeds", type=int, default=1000, help="how many to run (default: 1000)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (default: 1)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a processor")
    parser.add_argument("--work", type=int, nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what the controller logs is in the timeline
    if given.work is not None:
        work(given.work)
        return 0
    if given.seed is not None:
        verdict = run_seed(given.seed)
        tell(verdict)
        return 1 if verdict.failure else 0
    return 1 if sweep(range(given.first, given.first + given.seeds), given.processes) else 0


if __name__ == "__main__":
    sys.exit(main())
