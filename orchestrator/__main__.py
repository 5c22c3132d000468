"""`python -m orchestrator`: read the settings, run the controller, end with its status. Next: `app.py`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from orchestrator import settings

_PASSING = (settings.ExitCode.STORE_FAILED, settings.ExitCode.LEASE_HELD)
"""After which one that stands by begins again: the database will be back, or another one is in charge now."""
_PAUSE_SECONDS = 1.0


def main() -> int:
    """The whole process; returns its exit status."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    # A line for each firing of a timer, and for each plugin: neither says anything about the job.
    for talkative in ("apscheduler", "alembic"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)
    # What gRPC's own library would print about a taken port, we say ourselves, with a remedy.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # One thread polls all connections instead of a pool that hands each arrival on: a fifth less for each message. A
    # version of gRPC that does not know the name any more goes without.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    # As the first process of a container it would not hear SIGTERM before it serves.
    signal.signal(signal.SIGTERM, _leave)
    try:
        if sys.argv[1:2] == ["operator"]:
            from orchestrator import operate

            return operate.run(sys.argv[2:], os.environ)
        if sys.argv[1:2] == ["wandb"]:
            from orchestrator.loggers import wandb_process

            return wandb_process.main(sys.stdin.buffer)
        read = settings.read(sys.argv[1:], os.environ)
        # A second of imports that --help and a bad command line do without.
        from orchestrator import app, collector

        collector.set_limits()
        code = app.run(read)
        if read.standby and code in _PASSING:
            _begin_again()
        return code
    except settings.SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return settings.ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted before it served", file=sys.stderr)
        return settings.ExitCode.INTERRUPTED


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Told to end before there is anything to end in order."""
    del number, frame
    raise SystemExit(settings.ExitCode.OK)


def _begin_again() -> NoReturn:
    """A fresh process in place of this one: nothing of what it held in memory is to be trusted, and a container that
    ends would be started again with longer and longer pauses."""
    time.sleep(_PAUSE_SECONDS)
    os.execv(sys.executable, [sys.executable, "-m", "orchestrator", *sys.argv[1:]])


def _is_news(record: logging.LogRecord) -> bool:
    """A peer that is gone before it could be told how its call ended is none: the end of its stream is told."""
    return not record.getMessage().startswith("ExecuteBatchError")


if __name__ == "__main__":
    sys.exit(main())
