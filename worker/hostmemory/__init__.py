"""Snapshots in the host memory of agents: memory that outlives a trainer, and the way in which shards travel. No torch.

An agent owns the memory and treats shards as bytes; a trainer fills it and, in a restore, reads what agents hold. Which
snapshot is taken, kept or restored is decided by the controller (`orchestrator/core/snapshots.py`).
"""
