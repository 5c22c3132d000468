"""Clockwork: each timer submits an event and does nothing else. The only door to APScheduler.

What is due, and whether anything should happen then, is decided by the core. A timer that fires late or twice is
harmless by design of the events it sends. Next: the `...Due` events in `core/events.py`.
"""
