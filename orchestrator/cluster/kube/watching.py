"""Follows the objects at one path: listed, then watched, and listed again whenever the watch does not lead on.

One thread for each path. Who follows is told that something has changed and looks at all there is (`Watcher.objects`):
what matters is how things are, not what happened on the way. Next: `pods.py` and `operator.py`, which follow.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from orchestrator.cluster.kube.api import Api, ApiError, Object

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LAST_PAUSE_SECONDS = 5.0
PAGE = "500"
"""Objects in one answer of a list."""
GONE_LIMIT = 1024
"""Uids of objects that were seen to go."""


class Watcher:
    """`start`, then `objects` from any thread; `changed` is called on the watcher's thread."""

    def __init__(
        self, api: Api, path: str, changed: Callable[[], None], query: Mapping[str, str] | None = None
    ) -> None:
        self._api = api
        self._path = path
        self._changed = changed
        self._query = dict(query or {})
        self._guard = threading.Lock()
        self._objects: dict[str, Object] = {}
        self._gone: dict[str, None] = {}
        self._stopping = threading.Event()
        self.listed = threading.Event()
        """Set once everything there was has been seen."""
        self._thread = threading.Thread(target=self._run, name=f"watch {path}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end; it does so when its watch tells something or ends, and is not waited for."""
        self._stopping.set()

    def objects(self) -> dict[str, Object]:
        """All objects by name, as they were last seen. They are shared: nobody changes them."""
        with self._guard:
            return dict(self._objects)

    def is_gone(self, uid: str) -> bool:
        """The object with this uid was seen to go."""
        with self._guard:
            return uid in self._gone

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        version = ""
        while not self._stopping.is_set():
            try:
                if not version:
                    version = self._list()
                    self._changed()
                version = self._watch(version)
                pause = FIRST_PAUSE_SECONDS
            except ApiError as error:
                if not error.expired:
                    log.warning("%s, trying again in %.1f s", error, pause)
                    self._stopping.wait(pause)
                    pause = min(2 * pause, LAST_PAUSE_SECONDS)
                version = ""

    def _list(self) -> str:
        found: dict[str, Object] = {}
        query = {**self._query, "limit": PAGE}
        while True:
            answer = self._api.get(self._path, query)
            for item in answer.get("items") or ():
                found[item["metadata"]["name"]] = item
            onward = answer["metadata"].get("continue")
            if not onward:
                break
            query["continue"] = onward
        with self._guard:
            kept = {item["metadata"]["uid"] for item in found.values()}
            for known in self._objects.values():
                if known["metadata"]["uid"] not in kept:
                    self._note_gone(known)
            self._objects = found
        self.listed.set()
        return str(answer["metadata"]["resourceVersion"])

    def _watch(self, version: str) -> str:
        for change in self._api.watch(self._path, {**self._query, "resourceVersion": version}):
            version = str(change.object["metadata"]["resourceVersion"])
            if change.kind != "BOOKMARK":
                self._take(change.kind, change.object)
                self._changed()
            if self._stopping.is_set():
                break
        return version

    def _take(self, kind: str, item: Object) -> None:
        name = item["metadata"]["name"]
        with self._guard:
            known = self._objects.get(name)
            if kind == "DELETED":
                self._note_gone(item)
                if known is not None and known["metadata"]["uid"] == item["metadata"]["uid"]:
                    del self._objects[name]
                return
            if known is not None and known["metadata"]["uid"] != item["metadata"]["uid"]:
                self._note_gone(known)
            self._objects[name] = item

    def _note_gone(self, item: Object) -> None:
        self._gone[item["metadata"]["uid"]] = None
        while len(self._gone) > GONE_LIMIT:
            del self._gone[next(iter(self._gone))]
