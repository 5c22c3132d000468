"""The orchestrator: decides what happens to a job whose machines fail. Control data only; no tensor passes here.

`core` decides, `controller` drives it (decide, remember, act), `service`, `timers` and `cli` are how the world reaches
it, `store` and `cluster` are how it reaches the world. It never imports `worker`: the two programs meet on the wire.
Which package may import which is in `.importlinter`; start reading at `orchestrator/core/__init__.py`.
"""
