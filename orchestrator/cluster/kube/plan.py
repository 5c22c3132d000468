"""What is to be done about pods: the pods there are, compared with what the core wants and thinks. Pure but for memory.

Level-triggered: nothing depends on having seen an event. A node that is wanted has one pod; a pod that has ended, or
whose node the core has given up, is removed and made anew, on another machine if this one is silent. A pod that
somebody else deletes, or whose machine is about to go, is emptied first, and ended when others have taken over.
Next: `pods.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator.cluster.kube.sightings import CoreSeen, MachineSeen, NodeSeen, PodSeen
from orchestrator.core.ids import NodeId
from orchestrator.core.state import NodeState

SETTLE_SECONDS = 2.0
"""After the core has given a node up: how long its kubelet may take to say that the pod has ended."""
SILENT_MACHINE_SECONDS = 60.0
"""How long no pod goes to a machine on which one fell silent; by then Kubernetes has noticed as well."""
REGISTER_SECONDS = 180.0
"""For the agent of a pod that runs to register; beyond it the pod is made anew."""
CREATE_SECONDS = 5.0
"""After which a pod that was created and never seen is created again."""
FAILURE_WINDOW_SECONDS = 600.0
FIRST_PAUSE_SECONDS = 1.0
"""Before the second pod in a row that does not last; doubles with each further one."""
LAST_PAUSE_SECONDS = 60.0
REMARK_SECONDS = 60.0
"""Between two remarks about a node that say something else; the same is said once."""
ENDED_GRACE_SECONDS = 5
"""For the pods of a job that is over, whose agents have been told."""
MEMORY_LIMIT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """Create the pod of a node."""

    node: NodeId
    avoid: tuple[str, ...]
    give_back: bool
    """The node is cordoned: its new pod may have a seat again, since it stands somewhere else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete this very pod. Without grace it is gone at once, whatever its machine does."""

    name: str
    uid: str
    grace_seconds: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TellEnd:
    """Tell the core that the pod of a node has ended."""

    node: NodeId
    pod: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Tell the core something about a node."""

    node: NodeId
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Empty:
    """Have the core hand a node's part on."""

    node: NodeId
    why: str


Order: TypeAlias = Create | Delete | TellEnd | Remark | Empty


class Planner:
    """`orders` from one thread. What it remembers it can do without: a new one only asks or says something twice."""

    def __init__(self) -> None:
        self._ended: dict[str, None] = {}
        """Uids of pods whose end was told."""
        self._emptied: dict[str, None] = {}
        """Uids of pods that are being emptied."""
        self._created: dict[NodeId, float] = {}
        self._failures: dict[NodeId, tuple[float, ...]] = {}
        self._silent: dict[str, float] = {}
        """Machine -> until when no pod goes there."""
        self._remarks: dict[NodeId, tuple[float, str]] = {}

    def orders(
        self, core: CoreSeen, pods: Mapping[str, PodSeen], machines: Mapping[str, MachineSeen], now: float
    ) -> list[Order]:
        """What is to be done now, in this order."""
        by_node: dict[NodeId, PodSeen] = {}
        for pod in sorted(pods.values(), key=lambda each: (each.node, each.created_at)):
            by_node[pod.node] = pod
        found: list[Order] = []
        wanted = core.wanted if core.works else ()
        for node in wanted:
            found += self._about(node, core.nodes.get(node), by_node.get(node), machines, now)
        keep = set(wanted)
        for node, pod in by_node.items():
            if node not in keep and not pod.over and not pod.leaving:
                why = "its node is not wanted any more"
                found.append(Delete(name=pod.name, uid=pod.uid, grace_seconds=ENDED_GRACE_SECONDS, why=why))
        self._forget(now)
        return found

    def creation_failed(self, node: NodeId, now: float, why: str) -> Remark | None:
        """The API server did not take the pod (quota, admission): later, and more rarely each time."""
        self._created.pop(node, None)
        self._fail(node, now)
        return self._remark(node, f"its pod cannot be created: {why}", now)

    def _about(
        self,
        node: NodeId,
        seen: NodeSeen | None,
        pod: PodSeen | None,
        machines: Mapping[str, MachineSeen],
        now: float,
    ) -> Iterator[Order]:
        if pod is None:
            yield from self._create(node, seen, machines, now)
            return
        self._created.pop(node, None)
        if pod.over:
            yield from self._bury(pod, now)
        elif pod.leaving:
            why = f"pod {pod.name} is being deleted or evicted"
            yield from self._hand_over(pod, seen, why)
        elif seen is not None and self._given_up(seen, pod, now):
            if pod.machine:
                self._silent[pod.machine] = now + SILENT_MACHINE_SECONDS
            yield Delete(
                name=pod.name, uid=pod.uid, grace_seconds=0, why=f"{node} is lost, its pod is made anew"
            )
        elif self._never_came(seen, pod, now):
            self._fail(node, now)
            why = f"its agent did not register within {REGISTER_SECONDS:g} s"
            yield Delete(name=pod.name, uid=pod.uid, grace_seconds=0, why=why)
        else:
            yield from self._watch_over(pod, seen, machines.get(pod.machine), now)
            if not pod.machine and pod.avoids and not set(pod.avoids) & self._unwanted(machines, now):
                why = f"it waits for a machine, and {', '.join(pod.avoids)} need not be avoided any more"
                yield Delete(name=pod.name, uid=pod.uid, grace_seconds=0, why=why)

    def _unwanted(self, machines: Mapping[str, MachineSeen], now: float) -> set[str]:
        """Machines on which no new pod is put."""
        silent = {name for name, until in self._silent.items() if until > now}
        return silent | {each.name for each in machines.values() if each.leaving or not each.ready}

    def _create(
        self, node: NodeId, seen: NodeSeen | None, machines: Mapping[str, MachineSeen], now: float
    ) -> Iterator[Create]:
        if now - self._created.get(node, 0.0) < CREATE_SECONDS or now < self._not_before(node, now):
            return
        self._created[node] = now
        silent = {name for name, until in self._silent.items() if until > now}
        going = {each.name for each in machines.values() if each.leaving}
        yield Create(
            node=node,
            avoid=tuple(sorted(silent | going)),
            give_back=seen is not None and seen.cordoned,
        )

    def _bury(self, pod: PodSeen, now: float) -> Iterator[Order]:
        """It has ended, and its kubelet says so: the machine is not to blame for silence."""
        if pod.uid not in self._ended:
            self._ended[pod.uid] = None
            self._fail(pod.node, now)
            how = pod.last_words or pod.phase.lower()
            yield TellEnd(node=pod.node, pod=pod.uid, reason=f"its pod {pod.name} has ended ({how})")
        yield Delete(name=pod.name, uid=pod.uid, grace_seconds=0, why="it has ended")

    def _hand_over(self, pod: PodSeen, seen: NodeSeen | None, why: str) -> Iterator[Order]:
        """Others take over before it goes, as long as its grace period lasts."""
        if seen is not None and seen.seated and seen.pod == pod.uid and seen.state is not NodeState.DEAD:
            if pod.uid not in self._emptied:
                self._emptied[pod.uid] = None
                yield Empty(node=pod.node, why=why)
            return
        yield Delete(name=pod.name, uid=pod.uid, grace_seconds=0, why=f"{pod.node} has no seat, {why}")

    def _given_up(self, seen: NodeSeen, pod: PodSeen, now: float) -> bool:
        """The core has lost the node whose pod this is, and that was not just now; it may want it anew already."""
        lost = seen.state in (NodeState.DEAD, NodeState.REQUESTED)
        return lost and seen.pod == pod.uid and now - seen.changed_at >= SETTLE_SECONDS

    def _never_came(self, seen: NodeSeen | None, pod: PodSeen, now: float) -> bool:
        return (
            pod.phase == "Running"
            and (seen is None or seen.pod != pod.uid)
            and now - pod.created_at >= REGISTER_SECONDS
            and not pod.unfit
        )

    def _watch_over(
        self, pod: PodSeen, seen: NodeSeen | None, machine: MachineSeen | None, now: float
    ) -> Iterator[Order]:
        """It is there: say what it waits for, and what threatens it."""
        if machine is not None and machine.leaving:
            why = f"machine {machine.name} is about to go ({machine.leaving})"
            yield from self._hand_over(pod, seen, why)
            return
        words = ""
        if pod.waits_for:
            words = f"pod {pod.name} does not run: {pod.waits_for}"
        elif machine is not None and not machine.ready:
            words = f"machine {machine.name} is not ready, says Kubernetes"
        elif machine is not None and machine.unschedulable:
            words = f"machine {machine.name} is cordoned: it takes no new pods"
        remark = self._remark(pod.node, words, now)
        if remark is not None:
            yield remark

    def _remark(self, node: NodeId, text: str, now: float) -> Remark | None:
        said_at, said = self._remarks.get(node, (-REMARK_SECONDS, ""))
        if text == said:
            return None
        if not text:
            del self._remarks[node]
            return None
        # The same kind of trouble in other numbers ("0/3 nodes", "0/4 nodes") is said again, but not at once.
        if said and now - said_at < REMARK_SECONDS and text.split(":")[:2] == said.split(":")[:2]:
            return None
        self._remarks[node] = (now, text)
        return Remark(node=node, text=text)

    def _fail(self, node: NodeId, now: float) -> None:
        recent = [at for at in self._failures.get(node, ()) if now - at < FAILURE_WINDOW_SECONDS]
        self._failures[node] = (*recent, now)[-16:]

    def _not_before(self, node: NodeId, now: float) -> float:
        """When the next pod may be created: the first one that fails is replaced at once."""
        recent = [at for at in self._failures.get(node, ()) if now - at < FAILURE_WINDOW_SECONDS]
        if len(recent) < 2:
            return 0.0
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** (len(recent) - 2), LAST_PAUSE_SECONDS)
        return recent[-1] + pause

    def _forget(self, now: float) -> None:
        self._silent = {machine: until for machine, until in self._silent.items() if until > now}
        for memory in (self._ended, self._emptied):
            while len(memory) > MEMORY_LIMIT:
                del memory[next(iter(memory))]
