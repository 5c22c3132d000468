"""Random real faults on real processes: runs drawn from a seed, broken on purpose, and judged by the laws.

Law of this package: it drives `understudy run` from outside, as a person with root and bad intentions would, and
judges by what a run leaves behind. It imports the command line's client and nothing else of the orchestrator; nobody
imports it. Begin with `player.py`.
"""
