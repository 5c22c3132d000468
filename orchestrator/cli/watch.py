"""The newest view of a job, kept fresh by a thread across controller restarts.

One stream at a time, opened again when it breaks; training does not need the controller, so neither does a watcher
give up. Nothing is drawn here. Next: `session.py`, which looks at what was seen.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import grpc

from orchestrator.cli.connection import Admin, ViewStream, is_lasting, remote_error
from orchestrator.cli.errors import CliError
from protos import admin_pb2

INTERVAL_SECONDS = 0.25
_AGAIN_SECONDS = 0.2
"""Pause before a broken stream is opened again."""
_JOIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What is known of the job."""

    view: admin_pb2.JobView | None
    away_since: float | None
    """Monotonic time since when no controller has answered; None while one does."""
    refused: CliError | None
    """A controller answered, and will never show the job."""


class Watch:
    """A daemon thread; `close` ends it."""

    def __init__(self, admin: Admin, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._admin = admin
        self._interval_seconds = interval_seconds
        self._fresh = threading.Condition()
        self._sighting = Sighting(view=None, away_since=time.monotonic(), refused=None)
        self._stream: ViewStream | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def look(self) -> Sighting:
        """The newest sighting."""
        with self._fresh:
            return self._sighting

    def wait(self, timeout_seconds: float) -> Sighting:
        """The next sighting, or the newest after `timeout_seconds`."""
        with self._fresh:
            before = self._sighting
            self._fresh.wait_for(lambda: self._sighting is not before, timeout_seconds)
            return self._sighting

    def close(self) -> None:
        """End the stream and the thread."""
        self._closing.set()
        with self._fresh:
            if self._stream is not None:
                self._stream.cancel()
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._follow()
            except grpc.RpcError as error:
                self._broken(error)
            self._closing.wait(_AGAIN_SECONDS)

    def _follow(self) -> None:
        with self._fresh:
            if self._closing.is_set():
                return
            stream = self._stream = self._admin.watch(self._interval_seconds)
        for view in stream:
            self._publish(Sighting(view=view, away_since=None, refused=None))

    def _broken(self, error: grpc.RpcError) -> None:
        if self._closing.is_set():
            return
        seen = self.look()
        refused = remote_error(self._admin.target, error) if is_lasting(error) else None
        self._publish(
            Sighting(view=seen.view, away_since=seen.away_since or time.monotonic(), refused=refused)
        )

    def _publish(self, sighting: Sighting) -> None:
        with self._fresh:
            self._sighting = sighting
            self._fresh.notify_all()
