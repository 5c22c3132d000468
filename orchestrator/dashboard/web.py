"""A small HTTP server: `/metrics` for Prometheus, `/healthz` for probes. A thread for each call, few at a time.

`/healthz` says that this process serves, whether it leads or stands by: which one leads is not a matter of health.
Next: `metrics.py`.
"""

from __future__ import annotations

import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import CollectorRegistry

from orchestrator.dashboard.metrics import Metrics

log = logging.getLogger(__name__)

CALL_SECONDS = 5.0
"""For a caller to say what it wants and to take the answer."""
CALLS_AT_ONCE = 8
STOP_SECONDS = 2.0


class WebError(Exception):
    """The address cannot be listened on."""


class Web:
    """`start`, then `stop` once. `metrics.inspect` may be set at any time in between."""

    def __init__(self, host: str, port: int) -> None:
        """Raises WebError."""
        self.metrics = Metrics()
        registry = CollectorRegistry()
        registry.register(self.metrics)
        try:
            self._server = _Server((host, port), registry)
        except OSError as error:
            raise WebError(f"{error.strerror}: name another address") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the server; calls under way end by their time limit."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(STOP_SECONDS)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry) -> None:
        self.registry = registry
        self.calls = threading.BoundedSemaphore(CALLS_AT_ONCE)
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CALL_SECONDS

    def do_GET(self) -> None:
        """Answer, unless too many are being answered."""
        if not self.server.calls.acquire(blocking=False):
            self._answer(503, b"busy\n", "text/plain")
            return
        try:
            if self.path == "/healthz":
                self._answer(200, b"ok\n", "text/plain")
            elif self.path == "/metrics":
                self._answer(200, generate_latest(self.server.registry), CONTENT_TYPE_PLAIN_0_0_4)
            else:
                self._answer(404, b"there are /metrics and /healthz\n", "text/plain")
        finally:
            self.server.calls.release()

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds: not worth a line each."""
        log.debug(format, *args)
