"""What can be done with a checkpoint when nothing runs: look at it, verify it, export it, sample and measure its model.

One process, one copy of everything, no generation, no group. Start at `commands.py`; `opened.py` finds and loads.
"""
