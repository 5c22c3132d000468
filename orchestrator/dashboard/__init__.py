"""What a controller shows without being asked by name: metrics for Prometheus, and a probe. Read-only.

Nothing here changes the state or decides; figures are read between two events. Next: `metrics.py`, `web.py`.
"""
