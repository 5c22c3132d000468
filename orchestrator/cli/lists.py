"""The commands that show what a controller knows: lists, the generation, and the story of an incident.

Each is one question and one answer; columns are chosen here, printing is in `render.py`, field names in `rows.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from orchestrator.cli import rows
from orchestrator.cli import workdir as workdirs
from orchestrator.cli.colours import natural
from orchestrator.cli.connection import Admin, Target, is_gone
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.explain import story
from orchestrator.cli.incident_events import in_words
from orchestrator.cli.options import Whom, controller_options, output_option
from orchestrator.cli.render import Column, Output, clock, seconds, show, show_one, size, window
from orchestrator.cli.rows import Row
from protos import admin_pb2

_MOST_EVENTS = 5000
"""In one answer of the controller."""
_MOST_PAGES = 200


def _list(
    whom: Whom,
    output: str,
    ask: Callable[[Admin], Sequence[Row]],
    columns: Sequence[Column],
    empty: str,
    below: Callable[[Admin], Sequence[str]] = lambda admin: (),
) -> None:
    """`below`: sentences under a table."""
    console, chosen = Console(highlight=False), Output(output)
    with whom.ask() as admin:
        found = ask(admin)
        sentences = below(admin) if chosen is Output.TABLE else ()
    show(console, found, columns, chosen, empty)
    for sentence in sentences:
        console.print(Text(sentence), soft_wrap=True)


def _whom(options: dict[str, Any]) -> Whom:
    return Whom(**options)


@click.command(short_help="Nodes: state, seat, step, last heartbeat.")
@controller_options
@output_option
def nodes(output: str, **options: Any) -> None:
    """Show the nodes: state, seat, where in a step they are, and since when they were last heard.

    SCORE is the speed of a node's slowest trainer beside the members that do the same, from 0 to 1: half as fast is
    0.5. One that stays below recovery.straggler_score is checked beside a spare, which may take its seat.

    \b
    examples:
      understudy nodes --workdir understudy-runs/stdlib-moe-20260101-120000
      understudy nodes --controller 127.0.0.1:7400 -o json | jq -r '.[] | select(.state=="active") | .trainer_pids[]'
      watch -n1 understudy nodes

    \b
    fields of -o json (a list):
      id, state, cordoned, connected, labels, agent_pid, trainer_pids, heartbeat_age_seconds, step, reason,
      trainers (id, pid, ready, device_name, rank, generation, step, phase, silent_seconds, score)
    """

    def ask(admin: Admin) -> list[Row]:
        return [rows.node(each) for each in sorted(admin.nodes(), key=lambda each: natural(each.id))]

    columns = (
        Column(header="NODE", cell=lambda row: row["id"], keep=9),
        Column(header="STATE", cell=lambda row: row["state"], keep=8, state=True),
        Column(header="RANK", cell=_ranks, keep=6),
        Column(header="STEP", cell=lambda row: row["step"], right=True, keep=7),
        Column(header="PHASE", cell=lambda row: _joined(each["phase"] for each in row["trainers"]), keep=5),
        Column(
            header="HEARTBEAT", cell=lambda row: f"{row['heartbeat_age_seconds']:.1f} s", right=True, keep=4
        ),
        Column(header="SCORE", cell=_score, right=True, keep=4),
        Column(header="AGENT", cell=lambda row: row["agent_pid"] or None, right=True, keep=3),
        Column(header="TRAINERS", cell=lambda row: _joined(row["trainer_pids"]), keep=3),
        Column(header="CORDONED", cell=lambda row: row["cordoned"], keep=2),
        Column(
            header="LABELS", cell=lambda row: _joined(f"{k}={v}" for k, v in row["labels"].items()), keep=1
        ),
        Column(header="REASON", cell=lambda row: row["reason"], keep=4, elastic=True),
    )
    _list(_whom(options), output, ask, columns, "no nodes yet")


def _joined(values: Any) -> str:
    return ",".join(dict.fromkeys(str(each) for each in values))


def _score(row: Row) -> str | None:
    known = [each["score"] for each in row["trainers"] if each["score"] is not None]
    return f"{min(known):.2f}" if known else None


def _ranks(row: Row) -> str:
    return _joined(each["rank"] for each in row["trainers"] if each["rank"] is not None)


@click.command(short_help="Experts: who plays them, who stands by.")
@controller_options
@output_option
def experts(output: str, **options: Any) -> None:
    """Show the experts: who plays each one, who stands by, and how loaded it is.

    \b
    examples:
      understudy experts
      understudy experts -o json | jq '[.[] | select(.redundant | not) | .id]'   # those without a backup

    \b
    fields of -o json (a list):
      id, primary, backups, load_share (1.0 is a fair share of the last step's tokens), redundant,
      window_seconds (for how long it has stood on fewer replicas than asked for; null where it has all)
    """
    columns = (
        Column(header="EXPERT", cell=lambda row: row["id"], right=True, keep=9),
        Column(header="PRIMARY", cell=lambda row: row["primary"], keep=8),
        Column(header="BACKUPS", cell=lambda row: " ".join(row["backups"]), keep=7),
        Column(header="LOAD", cell=lambda row: f"{row['load_share']:.2f}", right=True, keep=5),
        Column(
            header="REDUNDANT", cell=lambda row: "yes" if row["redundant"] else "lost", keep=6, state=True
        ),
        Column(header="WINDOW", cell=lambda row: seconds(row["window_seconds"]), right=True, keep=4),
    )
    _list(
        _whom(options),
        output,
        lambda admin: [rows.expert(each) for each in admin.experts()],
        columns,
        "not placed yet",
    )


@click.command(short_help="The job: state and progress.")
@controller_options
@output_option
def jobs(output: str, **options: Any) -> None:
    """Show the job of the controller: state, progress, and why it is where it is.

    \b
    examples:
      understudy jobs
      understudy jobs -o json | jq -r '.[0].state'

    \b
    fields of -o json (a list):
      id, name, state, reason, step, steps, generation, submitted_at, started_at, ended_at, workdir,
      checkpoints (interval_seconds, next_at, why: how often one is taken, and why that often),
      snapshots (the same of those in host memory; null where they are switched off), steps_not_finite,
      timeouts (hang_seconds, lease_seconds, stall_seconds, why: how long is waited before somebody is given up)
    """
    columns = (
        Column(header="JOB", cell=lambda row: row["name"], keep=9),
        Column(header="STATE", cell=lambda row: row["state"], keep=8, state=True),
        Column(header="STEP", cell=lambda row: f"{row['step']}/{row['steps']}", right=True, keep=7),
        Column(header="GENERATION", cell=lambda row: row["generation"], right=True, keep=4),
        Column(header="STARTED", cell=lambda row: clock(row["started_at"])[:8], keep=3),
        Column(header="ENDED", cell=lambda row: clock(row["ended_at"])[:8], keep=2),
        Column(
            header="CHECKPOINT EVERY",
            cell=lambda row: seconds(row["checkpoints"]["interval_seconds"]),
            right=True,
            keep=2,
        ),
        Column(header="WORKDIR", cell=lambda row: row["workdir"], keep=1),
        Column(header="REASON", cell=lambda row: row["reason"], keep=5, elastic=True),
    )
    _list(
        _whom(options), output, lambda admin: [rows.job(each) for each in admin.jobs()], columns, "no job yet"
    )


@click.command(short_help="What failed, and how long recovery took.")
@controller_options
@output_option
def incidents(output: str, **options: Any) -> None:
    """Show what failed, how far each recovery has come, and how long its phases took.

    DETECT, DECIDE, REGROUP and COMMIT follow each other; TRAINING is their sum, from the first sign of the failure to
    the next committed step. REDUNDANT counts from the first sign until every expert had its replicas again; WINDOW is
    for how long experts stood on fewer replicas than asked for, `…` while they do, `!` where that was longer than
    recovery.window_alarm_seconds.

    \b
    examples:
      understudy incidents
      understudy incidents -o json | jq '.[] | {id, cause, phases}'
      understudy explain inc-0001               # the whole story of one

    \b
    fields of -o json (a list):
      id, kind, node, state (open, degraded, closed), cause, action, reasons, steps_lost, steps_redone, generation,
      first_sign_at, phases (detect_seconds, decide_seconds, regroup_seconds, first_commit_seconds,
      redundancy_restored_seconds; null while it has not come), window_seconds (null where no replica was missing),
      window_open, experts_exposed, alarmed
    """
    columns = (
        Column(header="INCIDENT", cell=lambda row: row["id"], keep=9),
        Column(header="STATE", cell=lambda row: row["state"], keep=8, state=True),
        Column(header="KIND", cell=lambda row: row["kind"], keep=6),
        Column(header="NODE", cell=lambda row: row["node"], keep=7),
        *(
            Column(header=header, cell=_phase(name), right=True, keep=keep)
            for header, name, keep in (
                ("DETECT", "detect", 3),
                ("DECIDE", "decide", 1),
                ("REGROUP", "regroup", 2),
                ("COMMIT", "first_commit", 3),
            )
        ),
        Column(header="TRAINING", cell=lambda row: seconds(rows.training_after(row)), right=True, keep=6),
        Column(header="REDUNDANT", cell=_phase("redundancy_restored"), right=True, keep=5),
        Column(header="WINDOW", cell=window, right=True, keep=4),
        Column(header="LOST", cell=lambda row: row["steps_lost"], right=True, keep=5),
        Column(header="CAUSE", cell=lambda row: row["cause"], keep=4, elastic=True),
    )
    _list(
        _whom(options),
        output,
        lambda admin: [rows.incident(each) for each in admin.incidents()],
        columns,
        "no incidents: nothing has failed",
    )


def _phase(name: str) -> Callable[[Row], str]:
    return lambda row: seconds(row["phases"][f"{name}_seconds"])


@click.command(short_help="The event log of the controller.")
@click.option(
    "--after",
    type=click.IntRange(min=0),
    metavar="N",
    help="The first events after this sequence number, instead of the newest.",
)
@click.option(
    "--limit", type=click.IntRange(1, _MOST_EVENTS), default=50, show_default=True, help="At most so many."
)
@click.option(
    "--kind", default="", metavar="KIND", help="Only events of this kind, for example NodeDisconnected."
)
@controller_options
@output_option
def events(after: int | None, limit: int, kind: str, output: str, **options: Any) -> None:
    """Show the newest events of the controller's log, in the order in which they were handled.

    \b
    examples:
      understudy events --limit 20
      understudy events --kind TrainerExited
      understudy events --after 120 -o json | jq '.[] | [.sequence, .kind]'

    \b
    fields of -o json (a list):
      sequence, at, kind, cause_id, detail (an object), reasons
    """
    columns = (
        Column(header="SEQ", cell=lambda row: row["sequence"], right=True, keep=7),
        Column(header="AT", cell=lambda row: clock(row["at"]), keep=6),
        Column(header="KIND", cell=lambda row: row["kind"], keep=5),
        Column(header="CAUSE", cell=lambda row: row["cause_id"], keep=1),
        Column(header="WHAT", cell=_what, keep=8, elastic=True),
    )

    def ask(admin: Admin) -> list[Row]:
        if after is None:
            return [rows.event(each) for each in _newest(admin, limit, kind)]
        return [rows.event(each) for each in admin.events(after=after, limit=limit, kind=kind)]

    _list(_whom(options), output, ask, columns, "no events")


def _newest(admin: Admin, limit: int, kind: str) -> list[admin_pb2.Event]:
    """The end of the log, which is read page by page from its beginning."""
    found: deque[admin_pb2.Event] = deque(maxlen=limit)
    sequence = 0
    for _ in range(_MOST_PAGES):
        page = admin.events(after=sequence, limit=_MOST_EVENTS, kind=kind)
        found.extend(page)
        if len(page) < _MOST_EVENTS:
            break
        sequence = page[-1].sequence
    return list(found)


def _what(row: Row) -> str:
    return "; ".join([in_words(row), *row["reasons"]])


@click.command(short_help="Checkpoints, and what became of them.")
@controller_options
@output_option
def checkpoints(output: str, **options: Any) -> None:
    """Show the checkpoints that were asked for, what became of them, and why they are taken as often as they are.

    \b
    examples:
      understudy checkpoints
      understudy checkpoint now                # take one
      understudy checkpoints -o json | jq -r 'map(select(.state=="sealed")) | last | .path'

    \b
    fields of -o json (a list):
      request, state, step, generation, path, bytes, seconds (from request to seal), reason,
      stall_seconds (that training stood still for it)
    """
    columns = (
        Column(header="REQUEST", cell=lambda row: row["request"], keep=7),
        Column(header="STATE", cell=lambda row: row["state"], keep=9, state=True),
        Column(header="STEP", cell=lambda row: row["step"] or None, right=True, keep=8),
        Column(
            header="SIZE", cell=lambda row: size(row["bytes"]) if row["bytes"] else None, right=True, keep=4
        ),
        Column(header="TOOK", cell=lambda row: seconds(row["seconds"]), right=True, keep=3),
        Column(header="STALL", cell=lambda row: seconds(row["stall_seconds"]), right=True, keep=4),
        Column(header="REASON", cell=lambda row: row["reason"], keep=5, elastic=True),
        Column(header="PATH", cell=lambda row: row["path"], keep=6),
    )
    _list(
        _whom(options),
        output,
        lambda admin: [rows.checkpoint(each) for each in admin.checkpoints()],
        columns,
        "no checkpoints yet",
        below=lambda admin: [each.checkpoints.why for each in admin.jobs() if each.checkpoints.why],
    )


@click.command(short_help="Who trains, and who holds what.")
@controller_options
@output_option
def generation(output: str, **options: Any) -> None:
    """Show the generation in force: who is a member, who holds which expert, who computes which microbatch.

    \b
    examples:
      understudy generation
      understudy generation -o json | jq '.members[] | {rank, trainer, experts}'

    \b
    fields of -o json (an object):
      number, kind, reason, created_at, planned (number of the generation that waits for its boundary, or null),
      members (rank, trainer, stage, experts, microbatches, joined)
    """
    with _whom(options).ask() as admin:
        found = rows.generation(admin.generation())
    console, chosen = Console(highlight=False), Output(output)
    if chosen is not Output.TABLE:
        show_one(console, found, chosen)
        return
    if not found["number"]:
        console.print("no generation yet: it begins when enough nodes are ready", soft_wrap=True)
        return
    waiting = f"; generation {found['planned']} waits for its boundary" if found["planned"] else ""
    reason = f": {found['reason']}" if found["reason"] else ""
    console.print(Text(f"generation {found['number']} ({found['kind']}){reason}{waiting}"), soft_wrap=True)
    columns = (
        Column(header="RANK", cell=lambda row: row["rank"], right=True, keep=9),
        Column(header="TRAINER", cell=lambda row: row["trainer"], keep=8),
        Column(header="STAGE", cell=lambda row: row["stage"], keep=5),
        Column(header="JOINED", cell=lambda row: row["joined"], keep=5),
        Column(header="EXPERTS", cell=lambda row: _joined(row["experts"]), keep=7, elastic=True),
        Column(header="MICROBATCHES", cell=lambda row: _joined(row["microbatches"]), keep=6, elastic=True),
    )
    show(console, found["members"], columns, chosen, "no members")


@click.command(short_help="The story of one incident, in words.")
@click.argument("incident")
@controller_options
@output_option
def explain(incident: str, output: str, **options: Any) -> None:
    """Tell the story of an incident: what happened when, what was decided and why, what moved, what it cost.

    Works after the end of a run too: the stories are kept in its work directory.

    \b
    examples:
      understudy incidents                     # which there are
      understudy explain inc-0001
      understudy explain inc-0001 --workdir understudy-runs/stdlib-moe-20260101-120000

    \b
    fields of -o json (an object):
      incident (as in `understudy incidents -o json`), events (as in `understudy events -o json`)
    """
    whom = _whom(options)
    told = _kept_or_asked(whom.target(), whom, incident)
    console, chosen = Console(highlight=False), Output(output)
    if chosen is Output.TABLE:
        console.print(story(told, console.width if console.is_terminal else None), soft_wrap=True)
    else:
        show_one(console, told, chosen)


def _kept_or_asked(target: Target, whom: Whom, incident: str) -> Row:
    """From the living controller, or from the work directory of one that has ended."""
    directory: Path | None = target.workdir
    if directory is None or not is_gone(target):
        with whom.ask() as admin:
            return rows.explanation(admin.explain(incident))
    told = workdirs.read_story(directory, incident)
    if told is None:
        known = workdirs.stories(directory)
        there = (
            f"there {'is' if len(known) == 1 else 'are'} {', '.join(known)}"
            if known
            else "it had no incident"
        )
        raise CliError(
            f"no story of {incident!r} in {directory}: {there}",
            remedy="name one of its incidents" if known else f"the run is over: see {directory}",
            exit_code=ExitCode.FAILED,
        )
    return told


@click.command(short_help="Who commanded what, and what came of it.")
@click.option(
    "--after",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="The first commands after this sequence number, instead of the newest.",
)
@click.option(
    "--limit", type=click.IntRange(1, _MOST_EVENTS), default=50, show_default=True, help="At most so many."
)
@controller_options
@output_option
def audit(after: int, limit: int, output: str, **options: Any) -> None:
    """Show every command that people gave, also the refused ones: who, when, what, from where, and what came of it.

    \b
    examples:
      understudy audit
      understudy audit -o json | jq '.[] | select(.result=="refused")'

    \b
    fields of -o json (a list):
      sequence, at, command, arguments (an object), by, identity (what proved who it was), role, peer,
      claimed (the name the caller gave itself), result (done, unchanged, refused), words, event (its sequence number)
    """
    columns = (
        Column(header="SEQ", cell=lambda row: row["sequence"], right=True, keep=6),
        Column(header="AT", cell=lambda row: clock(row["at"]), keep=6),
        Column(header="COMMAND", cell=lambda row: row["command"], keep=8),
        Column(
            header="ARGUMENTS",
            cell=lambda row: _joined(f"{k}={v}" for k, v in row["arguments"].items()),
            keep=7,
        ),
        Column(header="BY", cell=lambda row: row["by"], keep=9),
        Column(header="PROOF", cell=lambda row: row["identity"], keep=3),
        Column(header="ROLE", cell=lambda row: row["role"], keep=2),
        Column(header="PEER", cell=lambda row: row["peer"], keep=1),
        Column(header="RESULT", cell=lambda row: row["result"], keep=8, state=True),
        Column(header="WORDS", cell=lambda row: row["words"], keep=5, elastic=True),
    )
    _list(
        _whom(options),
        output,
        lambda admin: [rows.audit_entry(each) for each in admin.audit(after=after, limit=limit)],
        columns,
        "no commands yet",
    )


LISTS: tuple[click.Command, ...] = (
    nodes,
    experts,
    jobs,
    incidents,
    events,
    checkpoints,
    generation,
    explain,
    audit,
)
