"""Checkpoints and copies of the training state: what a trainer saves, reads back, and hands to a newcomer.

Laws of this package:

* Nothing is trusted unverified: each byte that is read from a file or a socket is hashed before it is used.
* Nothing here stops training: a save that fails is a value handed to a callback, never an exception in the loop.
* Each wait, queue and buffer has a bound and a name; the bounds are the `*Limits` dataclasses.
* No pickle, in files or on the wire: safetensors, JSON and raw floats only.

It knows parts (see `names`) and flat tensors (see `parts`), and neither the model, the agent nor the loop.

Where to start: `manifest` and `plan` are pure and say what a checkpoint is; `writer` and `sealing` make one;
`reader` reads one; `donation`, `peer` and `fetch` copy live state between trainers while training goes on.
"""
