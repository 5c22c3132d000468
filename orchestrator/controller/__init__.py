"""The controller: one event at a time through decide, remember, act. The order is the law of this package.

An event is handled by the core, what changed is stored in one transaction, and only then are its actions performed.
A commit that fails ends the process, since memory and database would disagree. Whatever the controller needs from the
world is a Protocol in `ports`; no adapter is imported here, and nothing here decides anything about a job.
Next: `ports.py`, then `controller.py`.
"""
