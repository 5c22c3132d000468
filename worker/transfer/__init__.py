"""Bytes between processes: framed connections with bounded waits, and a limit on bytes per second. No torch here.

What the messages mean is known by whoever uses this: `checkpointing` for copies of live state, `hostmemory` for
snapshots that agents hold.
"""
