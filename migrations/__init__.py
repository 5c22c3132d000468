"""Steps from one database schema to the next. Applied by `orchestrator.store.schema.migrate` when a controller starts.

A new step is a file `versions/NNNN_verb_noun.py` and one more entry in `revisions.py`. Steps that were released are
never edited. The tables as they should be are in `orchestrator/store/tables.py`; a test compares them with what the
steps make of an empty database.
"""
