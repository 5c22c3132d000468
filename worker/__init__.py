"""The worker: the agent of a node, and the trainers that it supervises. Tensors live here and stay here.

The agent (`worker.agent`) runs without torch, so that it is small, starts at once and outlives what torch can do to a
process. A trainer is `training` over `model`, `checkpointing` and `parallel`. Never imports `orchestrator`: the two
programs meet on the wire. Next: `worker/training/__init__.py` or `worker/agent/__init__.py`.
"""
