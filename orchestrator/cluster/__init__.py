"""Where nodes come from: adapters of the Cluster port that start and end agents. The only door to Kubernetes.

Actions here are idempotent, for the controller performs them again after a restart, and they return at once: what came
of them arrives as events. Nothing in here knows what an expert is. Next: the `Cluster` port in `controller/ports.py`.
"""
