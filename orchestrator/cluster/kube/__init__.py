"""Nodes as pods: what a MoETrainingJob object asks for becomes pods, and what befalls pods becomes events of the core.

Objects of Kubernetes are plain mappings here, as the API server sends them; the client library is used for reaching the
server alone (`api.py`). What is decided about pods is decided in pure modules (`plan.py`, `manifests.py`, `status.py`).
Reading order: `moejob.py`, `manifests.py`, `plan.py`, `pods.py`; `operator.py` is the program before all of them.
"""
