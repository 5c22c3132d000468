"""`python -m orchestrator`: read the settings, run the controller, end with its status. Next: `app.py`."""

from __future__ import annotations

import logging
import os
import sys

from orchestrator import app, settings


def main() -> int:
    """The whole process; returns its exit status."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    # Every job of APScheduler would be a line a few times a second.
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    try:
        return app.run(settings.read(sys.argv[1:], os.environ))
    except settings.SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return settings.ExitCode.BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
