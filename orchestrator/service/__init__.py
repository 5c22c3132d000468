"""The controller's gRPC side: agents on one service, people and their tools on the other.

`server` owns sockets and limits, `worker_api` the streams of agents (and the Messenger port), `admin_api` what
humans ask for, `views` what they see, `wire` the only conversion between protobuf and the core, `interceptors`
who may call. Nothing here decides anything about a job: it submits events and shows state.
"""
