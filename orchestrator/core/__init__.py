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

Read `events`, `actions`, `state`, then `machine`. One topic each:

- who is there: `membership` (registrations, losses), `heartbeats` (what they tell besides), `limits` (waits that run
  out), `greeting` (what an agent is told), `roster` (questions), `takeover` (a controller starts)
- what is done: `recovery` (failures to generations: the action ladder), `repair` (redundancy and seats come back),
  `refusals` (state that is not used), `generations` (made, sent, joined), `restore` (begun from storage), `upkeep` (the
  order of what is level-triggered)
- who does what: `placement` (experts to ranks), `deal` (microbatches to ranks)
- the job: `jobs` (to its first generation, and its end), `endings` (finish, stop), `commands` (humans), `checkpoints`,
  `progress` (commits), `incidents` (what is recorded), `stragglers` (who makes others wait)
- the frame: `decision` (the only way to write), `lifecycle` (transition tables), `policy` (every threshold),
  `invariants` (what is always true), `words` (how reasons are put), `spec`, `spec_rules`, `spec_mapping` (the job)
"""
