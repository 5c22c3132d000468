"""A job as lines: one per event and one per ten steps, `HH:MM:SS word key=value ...`, made to be grepped.

Pure: successive views in, lines out; what a line says is what changed between two views. Next: `screen.py`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence

from orchestrator.cli import rows
from orchestrator.cli.live import ENDED
from protos import admin_pb2

STEPS_PER_LINE = 10
_BARE = re.compile(r"[\w./:,+-]+")


class Narrator:
    """Remembers what has been said already."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], object] = {}
        self._recent: list[str] = []
        self._next_step = 1

    def tell(self, view: admin_pb2.JobView) -> list[str]:
        """Lines for what is new in a view, in the order of cause and effect."""
        lines = [
            *self._job(view),
            *self._generation(view),
            *self._nodes(view),
            *self._incidents(view),
            *self._why(view),
            *self._redundancy(view),
            *self._checkpoints(view),
            *self._steps(view),
            *self._validation(view),
        ]
        stamp = time.strftime("%H:%M:%S", time.localtime(view.at))
        return [f"{stamp} {each}" for each in lines]

    def _changed(self, topic: str, name: str, value: object) -> bool:
        if self._said.get((topic, name)) == value:
            return False
        self._said[topic, name] = value
        return True

    def _job(self, view: admin_pb2.JobView) -> Iterator[str]:
        job = view.job
        if job.state and self._changed("job", job.id, (job.state, job.reason)):
            yield fields(
                "job", job=job.name, state=job.state, step=job.step, steps=job.steps, reason=job.reason
            )

    def _generation(self, view: admin_pb2.JobView) -> Iterator[str]:
        number = view.job.generation
        if number and self._changed("generation", "", number):
            members = {each for expert in view.experts for each in (expert.primary, *expert.backups) if each}
            yield fields("generation", generation=number, step=view.job.step, members=len(members))

    def _nodes(self, view: admin_pb2.JobView) -> Iterator[str]:
        for node in view.nodes:
            if self._changed("node", node.id, (node.state, node.cordoned, node.agent_pid)):
                pids = ",".join(str(each.pid) for each in node.trainers if each.pid)
                cordoned = "true" if node.cordoned else None
                yield fields(
                    "node",
                    node=node.id,
                    state=node.state,
                    cordoned=cordoned,
                    agent_pid=node.agent_pid or None,
                    trainer_pids=pids,
                    reason=node.reason,
                )

    def _incidents(self, view: admin_pb2.JobView) -> Iterator[str]:
        for message in view.incidents:
            incident = rows.incident(message)
            if self._changed("incident", message.id, (message.state, message.action)):
                shown = (
                    "kind",
                    "node",
                    "state",
                    "cause",
                    "action",
                    "generation",
                    "steps_lost",
                    "steps_redone",
                )
                yield fields("incident", incident=message.id, **{name: incident[name] for name in shown})
            for phase in rows.PHASES:
                took = incident["phases"][f"{phase}_seconds"]
                if took is not None and self._changed("phase", f"{message.id}.{phase}", took):
                    yield fields("phase", incident=message.id, phase=phase, seconds=took)
            for reason in message.reasons:
                if self._changed("reason", f"{message.id}.{reason}", reason):
                    yield fields("why", incident=message.id, reason=reason)

    def _why(self, view: admin_pb2.JobView) -> Iterator[str]:
        """What has come to the end of the controller's reasons, but for those that an incident told."""
        recent = list(view.recent_reasons)
        told = {reason for incident in view.incidents for reason in incident.reasons}
        fresh = recent[_overlap(self._recent, recent) :]
        self._recent = recent
        for reason in fresh:
            if reason not in told:
                yield fields("why", reason=reason)

    def _redundancy(self, view: admin_pb2.JobView) -> Iterator[str]:
        if not view.experts:
            return
        redundant = sum(expert.redundant for expert in view.experts)
        if self._changed("redundancy", "", redundant):
            bare = ",".join(str(expert.id) for expert in view.experts if not expert.redundant)
            yield fields("redundancy", experts=len(view.experts), redundant=redundant, missing=bare)

    def _checkpoints(self, view: admin_pb2.JobView) -> Iterator[str]:
        for message in view.checkpoints:
            if self._changed("checkpoint", message.request, (message.state, message.reason)):
                row = rows.checkpoint(message)
                shown = ("request", "state", "step", "bytes", "seconds", "path", "reason")
                yield fields("checkpoint", **{name: row[name] or None for name in shown})

    def _validation(self, view: admin_pb2.JobView) -> Iterator[str]:
        measured = view.validation
        if view.HasField("validation") and self._changed("validation", "", (measured.step, measured.loss)):
            yield fields(
                "validation",
                step=measured.step,
                loss=f"{measured.loss:.6g}",
                perplexity=f"{measured.perplexity:.6g}",
                bits_per_byte=f"{measured.bits_per_byte:.6g}",
            )

    def _steps(self, view: admin_pb2.JobView) -> Iterator[str]:
        step = view.job.step
        last = view.job.state in ENDED
        rolled_back = step + STEPS_PER_LINE < self._next_step
        if not view.recent_losses or not (step >= self._next_step or last or rolled_back):
            return
        self._next_step = (step // STEPS_PER_LINE + 1) * STEPS_PER_LINE
        if self._changed("step", "", step):
            yield fields(
                "step",
                step=step,
                steps=view.job.steps,
                loss=f"{view.loss:.6g}",
                tokens_per_second=f"{view.tokens_per_second:.0f}",
                step_seconds=f"{view.step_seconds:.3f}",
                goodput=f"{view.goodput:.4f}",
                generation=view.job.generation,
            )


def _overlap(before: Sequence[str], now: Sequence[str]) -> int:
    """How much of the beginning of `now` is the end of `before`: both are windows on one growing list."""
    longest = min(len(before), len(now))
    return next(
        length
        for length in range(longest, -1, -1)
        if list(before[len(before) - length :]) == list(now[:length])
    )


def fields(word: str, **values: object) -> str:
    """`word key=value key="several words"`; what is None or empty is left out."""
    shown = {key: str(value) for key, value in values.items() if value is not None and value != ""}
    return " ".join([word, *(f"{key}={_quoted(value)}" for key, value in shown.items())])


def _quoted(value: str) -> str:
    return value if _BARE.fullmatch(value) else json.dumps(" ".join(value.split()), ensure_ascii=False)
