"""The language model: single-device code that knows nothing of ranks, steps or files.

Start with `config.py` (sizes), then `transformer.py` (the whole model on one screen), `moe.py` (router, dispatch,
experts, weighted sum) and `parts.py` (how weights lie in flat buffers). Who computes what is decided elsewhere: the
model meets other ranks only through the `Dispatcher` of `worker.parallel.dispatch`.
"""
