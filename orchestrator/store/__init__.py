"""Durable state: the only door to SQL. Changes, event log and outbox of one event go into one transaction.

The core never sees a row and a row never leaves this package: the repository turns rows into core values and back.
Heartbeats write nothing here. A new column is a change of `tables.py` and a migration in `migrations/versions`.
Next: `tables.py`, then `repository.py`.
"""
