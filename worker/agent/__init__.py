"""The process of a node: registers, heartbeats, starts trainers and tells them what the controller wants. No torch.

What to do is decided by a pure machine; sockets, processes and gRPC are thin shells around it. An agent outlives its
controller and reconnects to the next one; a trainer never outlives its agent. Next: `messages.py`.
"""
