"""Loggers: curves of a job for people, in TensorBoard's files and at Weights & Biases. Followers of the ledger.

The law: nobody waits for a logger, and nothing is believed that a logger has written. What a logger says follows from
the file of committed steps, the file of validations and the closed incidents, so it can be said again at any time:
after a restart a logger compares and goes on, after a roll-back it takes back what is no longer true, after an error
it waits and compares again. It writes neither to the ledger nor to the database.
"""
