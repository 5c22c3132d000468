"""`python -m worker agent|trainer ...`, or a command of `offline`.

Next: `settings.py` for the arguments, `app.py` for what they start.
"""

from __future__ import annotations

import sys

from worker.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
