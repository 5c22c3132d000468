"""The versions of the schema that this code knows: read on every start, without loading Alembic.

Next: the steps themselves, in `versions/`; a test compares this list with them.
"""

from __future__ import annotations

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
"""Oldest first."""
HEAD = REVISIONS[-1]
"""The version that this code needs."""
