"""`python -m orchestrator`: read the settings, run the controller, end with its status. Next: `app.py`."""

from __future__ import annotations

import logging
import os
import sys

from orchestrator import settings


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
    try:
        read = settings.read(sys.argv[1:], os.environ)
        from orchestrator import app  # a second of imports that --help and a bad command line do without

        return app.run(read)
    except settings.SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return settings.ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted before it served", file=sys.stderr)
        return settings.ExitCode.INTERRUPTED


def _is_news(record: logging.LogRecord) -> bool:
    """A peer that is gone before it could be told how its call ended is none: the end of its stream is told."""
    return not record.getMessage().startswith("ExecuteBatchError")


if __name__ == "__main__":
    sys.exit(main())
