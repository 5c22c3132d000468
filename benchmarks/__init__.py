"""Measurements, each beside a baseline of the same run: recovery, overhead, checkpoints, the control plane.

Law of this package: a figure is printed with its spread and with what else the machine was doing. Nobody imports it.
What was measured, and how: `docs/BENCHMARKS.md`.
"""
