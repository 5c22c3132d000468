"""The whole cluster under virtual time, from one seed: how the promises of the README are put to the test.

The law of this package: what decides is real, what it decides about is simulated. Real are the core, the controller
with its inbox and ledger, the SQL repository with its lease, the conversion of every message, the agent's machine, a
trainer's order book, its vote, the resume rule and the sharing out of a checkpoint. Simulated are time, the network,
machines and processes, collectives, weights (a digest per part) and the disk of checkpoints. Nothing here reads a
clock or draws a number that the seed does not give, so a seed is a story that can be told again word for word.

Read `options` (what may go wrong), `world` (how it is put together), `laws` (what must hold), then `seeds` (one seed
from start to verdict); `python -m simulation --help` runs it. `planning` is something else: months of failures of a
large cluster, costed. Production never imports this package, but for the command that runs `planning`.
"""
