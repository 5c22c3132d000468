"""The admin CLI: a gRPC client of the controller, and the launcher of a job on this machine. Nothing is decided here.

Read `main` (the commands), `run` and `session` (a job on this machine from start to report), `connection` (how a
controller is found and asked), `live` and `plain` (a view of the job as a picture or as lines), `render` (tables,
JSON, YAML), `explain` (an incident in words). Of the orchestrator only the job spec and the job file are known here.
"""
