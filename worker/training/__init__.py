"""The training loop: a step is all or nothing, and a trainer that leaves the vote commits.

No parameter is written before the vote, and nothing that needs a collective comes after it; hence a step that is
abandoned leaves the last whole state, and recovery needs no rollback. Next: `loop.py`, then `step.py`.
"""
