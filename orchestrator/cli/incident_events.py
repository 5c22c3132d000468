"""One sentence for each kind of event of the controller's log. Pure; a kind that is not known is told by its name.

Next: `explain.py`, which puts the sentences in order.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import Any

from orchestrator.cli.render import seconds
from orchestrator.cli.rows import Row

Detail = dict[str, Any]


def in_words(event: Row) -> str:
    """What happened, without when."""
    detail = event["detail"] if isinstance(event["detail"], dict) else {}
    tell = _SENTENCES.get(event["kind"])
    if tell is None:
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", event["kind"]).lower() + _about(detail)
    return tell(_Known(detail))


def shortened(text: object, most: int = 140) -> str:
    """The beginning of a message: what libraries add to their errors is in the logs."""
    words = " ".join(str(text).split())
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


class _Known(dict[str, Any]):
    """A detail in which what is missing reads `?`: a log of another version is still a story."""

    def __missing__(self, key: str) -> str:
        return "?"


def _about(detail: Detail) -> str:
    who = detail.get("trainer") or detail.get("node")
    return f": {who}" if who else ""


def _exited(detail: Detail) -> str:
    number, code = detail.get("signal"), detail.get("exit_code")
    if isinstance(number, int) and number > 0:
        how = f"was ended by {_signal_name(number)}"
    else:
        how = f"ended with exit code {code}"
    then = "; its agent starts another" if detail.get("will_restart") is True else ""
    return f"trainer {detail['trainer']} {how}{then}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _joined(detail: Detail) -> str:
    extra = ""
    if detail.get("completed_held") is True:
        extra = ", having completed the step in flight from gradients it held"
    elif detail.get("redoes") is True:
        extra = ", and computes the step in flight again"
    return (
        f"{detail['trainer']} joined generation {detail['generation']} at step {detail['committed']}{extra}"
    )


def _committed(detail: Detail) -> str:
    record = detail.get("record")
    step = record.get("step", "?") if isinstance(record, dict) else "?"
    return f"step {step} was committed"


def _silent(detail: Detail) -> str:
    quiet = detail.get("silent_seconds")
    length = seconds(quiet) if isinstance(quiet, int | float) else "?"
    return f"trainer {detail['trainer']} gave no sign of life for {length} (stopped or stuck)"


def _ended(detail: Detail) -> str:
    how = "all steps done" if detail.get("finished") is True else "stopped at a boundary"
    if detail.get("unreadable"):
        how = f"it cannot read its data: {detail['unreadable']}"
    return f"{detail['trainer']} left the training loop at step {detail['step']}: {how}"


_SENTENCES: dict[str, Callable[[Detail], str]] = {
    "NodeRegistered": lambda d: f"the agent of {d['node']} registered (pid {d['agent_pid']})",
    "NodeDisconnected": lambda d: f"the stream of {d['node']} broke: {d['reason']}",
    "TrainerBecameReady": lambda d: f"trainer {d['trainer']} is ready for a seat",
    "TrainerExited": _exited,
    "TrainerFellSilent": _silent,
    "CommunicationFailed": lambda d: (
        f"{d['trainer']} lost its peers after step {d['step']}: {shortened(d['detail'])}"
    ),
    "GenerationJoined": _joined,
    "StepCommitted": _committed,
    "Validated": lambda _: "the held-out windows were measured",
    "PartsAcquired": lambda d: f"{d['trainer']} holds copies of its parts, up to step {d['version']}",
    "AcquisitionFailed": lambda d: f"{d['trainer']} could not copy its parts: {d['reason']}",
    "CheckpointFailed": lambda d: f"{d['trainer']} could not write a checkpoint: {d['reason']}",
    "CheckpointSealed": lambda d: f"checkpoint {d['name']} was sealed",
    "CheckpointBegun": lambda d: f"checkpoint {d['name']} is copied, and written while training goes on",
    "ShardWritten": lambda d: f"rank {d['rank']} wrote its share of checkpoint {d['name']}",
    "RestoreFailed": lambda d: f"{d['trainer']} refused checkpoint {d['name']}: {d['reason']}",
    "StateRefused": lambda d: f"{d['trainer']} refused its state at step {d['step']}: {d['reason']}",
    "ReplicasDiffered": lambda d: (
        f"{d['trainer']} compared replicas with all members at step {d['step']}: they differ"
    ),
    "StepRedone": lambda d: (
        f"step {d['step']} was computed again, since its numbers were not finite the first time"
    ),
    "TrainingEnded": _ended,
    "TrainerRefused": lambda d: f"{d['trainer']} cannot run this job: {d['reason']}",
    "LeasesDue": lambda _: "the controller looked for silent nodes",
    "CheckpointDue": lambda _: "the controller looked whether a checkpoint is due",
    "RedundancyScanDue": lambda _: (
        "the controller compared replicas as they are with replicas as they should be"
    ),
    "ControllerStarted": lambda _: "the controller started again and gave every lease a fresh grace period",
    "DrainRequested": lambda d: f"{d['by']} asked to drain {d['node']}",
    "CordonRequested": lambda d: f"{d['by']} cordoned {d['node']}",
    "UncordonRequested": lambda d: f"{d['by']} gave {d['node']} back",
    "ResizeRequested": lambda d: f"{d['by']} asked for {d['nodes']} nodes and {d['spares']} spares",
    "NodeEnded": lambda d: f"the cluster saw the end of {d['node']}: {d['reason']}",
    "NodeRemarked": lambda d: f"the cluster says of {d['node']}: {d['remark']}",
    "StopRequested": lambda d: f"{d['by']} asked to stop the job",
    "CheckpointRequested": lambda d: f"{d['by']} asked for a checkpoint",
    "ShutdownRequested": lambda d: f"{d['by']} asked to end nodes and controller",
    "CommandRefused": lambda d: f"{d['by']} asked for {d['command']} and was refused",
}
