"""Following a job over what comes between: a database that is away passes, a token that is wrong does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from orchestrator.cli.connection import Admin, Target
from orchestrator.cli.watch import Sighting, Watch
from protos import admin_pb2 as pb
from tests.integration.played_controller import PlayedAdmin, serving
from tests.unit.orchestrator.cli import views
from tests.waiting import wait_until


class Refusing(PlayedAdmin):
    """Says no for as long as it is told to."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(views.healthy())
        self.code: grpc.StatusCode | None = code
        self.asked = 0

    def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> Iterator[pb.JobView]:  # noqa: N802
        self.asked += 1
        if self.code is not None:
            context.abort(self.code, "cannot read the database: connection refused")
        yield self.view


def test_a_database_that_is_away_does_not_end_the_watch() -> None:
    """Seen in a chaos run: the database was restarted, and the session ended a job that trained on."""
    refusing = Refusing(grpc.StatusCode.INTERNAL)
    with serving(refusing) as address, Admin(Target(address=address, origin="test")) as admin:
        watch = Watch(admin, 0.05)
        try:
            wait_until(lambda: refusing.asked >= 2, within_seconds=20, what="another attempt")
            assert watch.look().refused is None
            assert watch.look().away_since is not None
            refusing.code = None
            assert _seen(watch).view is not None
        finally:
            watch.close()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_a_refusal_that_lasts_is_told(code: grpc.StatusCode) -> None:
    with serving(Refusing(code)) as address, Admin(Target(address=address, origin="test")) as admin:
        watch = Watch(admin, 0.05)
        try:
            wait_until(lambda: watch.look().refused, within_seconds=20, what="the refusal")
        finally:
            watch.close()


def _seen(watch: Watch) -> Sighting:
    wait_until(lambda: watch.look().view is not None, within_seconds=20, what="a view")
    return watch.look()
