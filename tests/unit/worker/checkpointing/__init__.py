"""Tests of worker.checkpointing: real files, real sockets, real faults. `states` builds what they save and copy."""
