"""How Python's collector of cyclic garbage works in a controller: seldom, and not through what never goes.

The state of a cluster of thousands of nodes is about a million values without a cycle: reference counts free what a
decision replaces. With Python's own limits the collector goes through young values sixty times in one decision for
10,000 nodes, and in every third one through everything, while all heartbeats wait. What does form cycles (calls that
end, errors with their stacks) is little and dies young. Next: `__main__.py`, which calls this before it serves.
"""

from __future__ import annotations

import gc

NEW_VALUES = 50_000
"""More than a decision for ten thousand nodes makes, so that it waits for one look at most."""
YOUNG_LOOKS = 20
FULL_LOOKS = 10
"""Before everything is looked through: after ten million more values were made than freed."""


def set_limits() -> None:
    """Call when everything is imported: modules and their classes are not looked through any more."""
    gc.set_threshold(NEW_VALUES, YOUNG_LOOKS, FULL_LOOKS)
    gc.collect()
    gc.freeze()
