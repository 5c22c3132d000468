"""The decision core: events in; changes, actions and reasons out.

Theory of operation. Everything that Understudy decides is decided here, by one mutating entry point,
`machine.Machine.handle(event) -> Outcome`. The laws of this package:

1. Pure. No IO, no clock, no randomness, no logging, no await. Time is a field of the event (`at`).
2. One owner. `state.ClusterState` is changed in place by the functions of this package and by nobody else.
3. Deterministic. Whatever is iterated is ordered (by id); the same events give the same outcome.
4. Durable first. An `Outcome` lists the entities that changed; the controller stores them before it performs a
   single action. Actions are idempotent and may be performed again after a restart.
5. Level-triggered where it can be. Repairs are planned from the state as it is, not from the message that came.
6. Every decision says why, in words (`Outcome.reasons`), and an incident keeps its reasons.

Read `events`, `actions`, `state`, then `machine`; one topic each: `membership` (leases, suspicion), `recovery`
(failures to generations), `placement` (experts to trainers), `deal` (microbatches to ranks), `checkpoints`,
`lifecycle` (transition tables), `stragglers`, `invariants`, `policy` (every threshold), `spec` (the job as asked for).
"""
