"""Tests by kind of proof, one folder each.

Rules and functions (`unit`), decisions as transcripts (`scenarios`), parts together (`integration`), whole jobs under
fire (`chaos`), and the house itself (`architecture`). Shared tools: `waiting.py` (bounded waits on conditions) and
`leaks.py` (processes that a test left behind).
"""
