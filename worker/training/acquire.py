"""Background copies of parts from living trainers: how a spare learns its part, or a survivor another one.

An order names donors and parts. The parts are copied into staging tensors while the donors train on, then every
commit of the donors is replayed from its reduced gradients, so that a staged part is bitwise the donor's. Seating
(`regroup.py`) takes what has caught up. Transport and verification are in `worker/checkpointing/fetch.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from worker.agent.messages import AcquireParts, AcquisitionFailed, PartsAcquired, Report
from worker.checkpointing.errors import PeerError, StandingOnly
from worker.checkpointing.fetch import DonorShare, FetchLimits, PeerFetch, PeerIdentity, ReplayEntry
from worker.checkpointing.parts import PartTensors
from worker.training.optimizer import AdamW
from worker.training.state import TrainingState

_FINISH_SECONDS = 5.0
_LIMITS = FetchLimits()


class Acquisitions:
    """The newest background copy of this trainer; an older one is given up when a new order comes."""

    def __init__(
        self,
        *,
        trainer: str,
        job: str,
        token: str,
        state: TrainingState,
        optimizer: AdamW,
        report: Callable[[Report], None],
        acquire_seconds: float,
        on_copied: Callable[[int], None],
    ) -> None:
        self._trainer, self._job, self._token = trainer, job, token
        self._state, self._optimizer = state, optimizer
        self._report = report
        self._acquire_seconds = acquire_seconds
        self._on_copied = on_copied
        self._lock = threading.Lock()
        self._replaying = threading.Lock()
        """The optimizer has one scratch buffer; donors' threads take turns."""
        self._fetch: PeerFetch | None = None
        self._abandoned = threading.Event()
        self._staging: dict[str, PartTensors] = {}

    def begin(self, order: AcquireParts) -> None:
        """Start copying (reader thread); progress is reported."""
        threading.Thread(
            target=self._copy, args=(order,), name=f"acquire-{order.acquisition}", daemon=True
        ).start()

    def _copy(self, order: AcquireParts) -> None:
        shares = [
            DonorShare(donor=donor.trainer, address=_address(donor.peer_address), parts=donor.parts)
            for donor in order.donors
            if donor.parts
        ]
        state = self._state
        number = state.numbers.number
        staging = {name: state.empty_part(number(name)) for share in shares for name in share.parts}
        abandoned = threading.Event()
        fetch = PeerFetch(
            identity=PeerIdentity(
                job=self._job, token=self._token, generation=order.generation, newcomer=self._trainer
            ),
            staging=staging,
            apply=lambda entry: self._replay(staging[entry.part], entry),
            limits=_LIMITS,
            abandoned=abandoned,
        )
        self.clear()
        with self._lock:
            self._fetch, self._staging, self._abandoned = fetch, staging, abandoned
        try:
            fetch.begin(shares)
            versions = fetch.await_snapshots(self._acquire_seconds)
        except (PeerError, OSError) as error:
            if not abandoned.is_set():
                failed = AcquisitionFailed(
                    acquisition=order.acquisition,
                    reason=str(error),
                    standing_only=isinstance(error, StandingOnly),
                )
                self._report(failed)
            return
        version = min(versions.values())
        self._on_copied(version)
        self._report(PartsAcquired(acquisition=order.acquisition, version=version))

    def _replay(self, part: PartTensors, entry: ReplayEntry) -> None:
        if part.frozen:
            return  # every version of it is the same
        state = self._state.optimized(self._state.numbers.number(entry.part), part)
        with self._replaying:
            self._optimizer.update(state, entry.gradient, step=entry.version, clip=entry.clip)

    def catch_up(self, version: int, seconds: float) -> None:
        """Follow the donors up to `version`, as far as they let us; what stays behind is copied whole later."""
        with self._lock:
            fetch = self._fetch
        if fetch is None:
            return
        try:
            fetch.advance_to(version, seconds)
        except (PeerError, OSError):
            return  # the second exchange of standings shows what is behind

    def versions(self) -> dict[int, int]:
        """Part -> version, of what has been copied."""
        with self._lock:
            fetch = self._fetch
        if fetch is None:
            return {}
        return {
            self._state.numbers.number(name): version
            for name, version in fetch.progress().versions.items()
            if version is not None
        }

    def staged(self, version: int) -> dict[int, PartTensors]:
        """The staged parts that stand at exactly `version`."""
        name = self._state.numbers.name
        return {part: self._staging[name(part)] for part, at in self.versions().items() if at == version}

    def clear(self) -> None:
        """Give up what is being copied and forget what was staged."""
        with self._lock:
            fetch, self._fetch = self._fetch, None
            self._abandoned.set()
        if fetch is not None:
            fetch.finish(_FINISH_SECONDS)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
