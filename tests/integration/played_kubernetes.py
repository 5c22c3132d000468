"""An API server that tests play: real HTTP on loopback, and of Kubernetes as much as Understudy uses.

Versions that grow, selectors, pages, merge patches with preconditions, status as a subresource, finalizers, pods that
end when their kubelet says so, watches with bookmarks, and an end of memory (410). Nobody schedules or runs anything:
a test is kubelet, scheduler and user (`write`, `remove`), and may have the server fail (`away`, `refusals`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

Object = dict[str, Any]
TOKEN = "a-token-of-a-person"
MERGE_PATCH = "application/merge-patch+json"
GRACE_SECONDS = 30
LOOK_SECONDS = 0.05
"""Between two looks of a watch at whether it is to end."""


class Refused(Exception):
    """The answer is a Status with this code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    body: Object


@dataclass(slots=True)
class PlayedKubernetes:
    """The objects, what befell them, and what is to go wrong. Everything under `changed`."""

    page: int = 500
    """Objects in one answer of a list, at most."""
    away: bool = False
    """Connections are closed without an answer."""
    refusals: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    """(method, end of a path) -> the code and the words of the answer."""
    asked: list[Asked] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    watches: int = 0
    _objects: dict[str, Object] = field(default_factory=dict)
    """By path."""
    _log: list[tuple[int, str, str, Object]] = field(default_factory=list)
    """(version, path, ADDED | MODIFIED | DELETED, object)"""
    _version: int = 100
    _forgotten: int = 0
    """Changes up to this version are not told any more."""
    _epoch: int = 0
    """Watches of an older one end."""

    # ---- for tests: kubelet, scheduler, user ----

    def write(self, path: str, change: Object) -> Object:
        """Merge a change into the object at a path, or make it; as somebody else than the program under test."""
        with self.changed:
            old = self._objects.get(path)
            new = merged(old or self._fresh(path), change)
            return self._store(path, new, "MODIFIED" if old else "ADDED")

    def remove(self, path: str) -> None:
        """It is gone, whatever it waited for."""
        with self.changed:
            self._gone(path)

    def read(self, path: str) -> Object | None:
        with self.changed:
            return self._objects.get(path)

    def below(self, path: str) -> dict[str, Object]:
        """Objects of a collection by name."""
        with self.changed:
            return {key.rpartition("/")[2]: item for key, item in self._objects.items() if _in(key, path)}

    def forget(self) -> None:
        """End all watches; whoever wants to go on from where they were is told that this lies too far back."""
        with self.changed:
            self._version += 1
            self._forgotten = self._version
            self._epoch += 1
            self.changed.notify_all()

    def end_watches(self) -> None:
        """As their time limit does it."""
        with self.changed:
            self._epoch += 1
            self.changed.notify_all()

    def count(self, method: str, end: str) -> int:
        """Requests of a method to paths with this end."""
        with self.changed:
            return sum(1 for each in self.asked if each.method == method and each.path.endswith(end))

    # ---- requests ----

    def answer(self, method: str, path: str, query: dict[str, str], kind: str, body: Object) -> Object:
        """Raises Refused."""
        with self.changed:
            self.asked.append(Asked(method=method, path=path, body=body))
            for (refused, end), (code, message) in self.refusals.items():
                if refused == method and path.endswith(end):
                    raise Refused(code, message)
            match method:
                case "GET":
                    found = self._objects.get(path)
                    return found if found is not None else self._list(path, query)
                case "POST":
                    return self._create(path, body)
                case "PATCH":
                    if kind != MERGE_PATCH:
                        raise Refused(415, f"the body is of type {kind!r}")
                    return self._patch(path, body)
                case "DELETE":
                    return self._delete(path, body)
                case _:
                    raise Refused(405, f"{method} is not understood")

    def tell(self, path: str, query: dict[str, str]) -> Iterator[Object]:
        """What a watch says, until it is to end."""
        with self.changed:
            since, epoch = int(query.get("resourceVersion") or self._version), self._epoch
            if since < self._forgotten:
                yield {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
                return
            self.watches += 1
        deadline = time.monotonic() + float(query.get("timeoutSeconds", "60"))
        try:
            while epoch == self._epoch and not self.away and time.monotonic() < deadline:
                with self.changed:
                    news = [each for each in self._log if each[0] > since]
                    if not news:
                        self.changed.wait(LOOK_SECONDS)
                for version, key, kind, item in news:
                    since = version
                    if _in(key, path) and selected(item, query):
                        yield {"type": kind, "object": item}
            yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(since)}}}
        finally:
            self.watches -= 1

    def _list(self, path: str, query: dict[str, str]) -> Object:
        if _is_one(path):
            raise Refused(404, f"{path} not found")
        keys = sorted(key for key, item in self._objects.items() if _in(key, path) and selected(item, query))
        begin, limit = int(query.get("continue", "0")), min(int(query.get("limit", "500")), self.page)
        onward = str(begin + limit) if begin + limit < len(keys) else ""
        return {
            "kind": "List",
            "metadata": {"resourceVersion": str(self._version), **({"continue": onward} if onward else {})},
            "items": [self._objects[key] for key in keys[begin : begin + limit]],
        }

    def _create(self, path: str, body: Object) -> Object:
        key = f"{path}/{body['metadata']['name']}"
        if key in self._objects:
            raise Refused(409, f"{key} already exists")
        return self._store(key, merged(self._fresh(key), body), "ADDED")

    def _patch(self, path: str, body: Object) -> Object:
        key, status = path.removesuffix("/status"), path.endswith("/status")
        old = self._there(key)
        version = (body.get("metadata") or {}).get("resourceVersion")
        if version not in (None, old["metadata"]["resourceVersion"]):
            raise Refused(409, "the object has been modified")
        if status:
            body = {"status": body.get("status")}
        elif "/moetrainingjobs/" in key:
            body = {name: value for name, value in body.items() if name != "status"}
        new = merged(old, body)
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            self._gone(key)
            return new
        return self._store(key, new, "MODIFIED")

    def _delete(self, path: str, body: Object) -> Object:
        old = self._there(path)
        uid = (body.get("preconditions") or {}).get("uid", "")
        if uid and uid != old["metadata"]["uid"]:
            raise Refused(409, f"the uid in the precondition ({uid}) is another one")
        spec, metadata = old.get("spec") or {}, old["metadata"]
        grace = 0
        if "/pods/" in path and spec.get("nodeName"):
            grace = int(
                body.get("gracePeriodSeconds", spec.get("terminationGracePeriodSeconds", GRACE_SECONDS))
            )
        if not grace and not metadata.get("finalizers"):
            self._gone(path)
            return {"kind": "Status", "status": "Success"}
        leaving = {"deletionTimestamp": stamp(time.time() + grace), "deletionGracePeriodSeconds": grace}
        return self._store(path, merged(old, {"metadata": leaving}), "MODIFIED")

    def _there(self, path: str) -> Object:
        if path not in self._objects:
            raise Refused(404, f"{path} not found")
        return self._objects[path]

    def _fresh(self, path: str) -> Object:
        metadata = {
            "name": path.rpartition("/")[2],
            "uid": f"uid-{self._version + 1}-0000",
            "creationTimestamp": stamp(time.time()),
            "generation": 0,
        }
        if "/namespaces/" in path:
            metadata["namespace"] = path.partition("/namespaces/")[2].partition("/")[0]
        return {"metadata": metadata}

    def _store(self, path: str, item: Object, kind: str) -> Object:
        old = self._objects.get(path)
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        if old is None or old.get("spec") != item.get("spec"):
            item["metadata"]["generation"] = int(item["metadata"].get("generation", 0)) + 1
        self._objects[path] = item
        self._log.append((self._version, path, kind, item))
        self.changed.notify_all()
        return item

    def _gone(self, path: str) -> None:
        item = merged(self._objects.pop(path), {})
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        self._log.append((self._version, path, "DELETED", item))
        self.changed.notify_all()


def merged(old: Object, change: Object) -> Object:
    """A JSON merge patch, on a copy."""
    new: Object = json.loads(json.dumps(old))
    for key, value in change.items():
        if value is None:
            new.pop(key, None)
        elif isinstance(value, dict):
            before = new.get(key)
            new[key] = merged(before if isinstance(before, dict) else {}, value)
        else:
            new[key] = value
    return new


def selected(item: Object, query: dict[str, str]) -> bool:
    """Selectors of equality, as far as they are used."""
    labels = item["metadata"].get("labels") or {}
    wanted = [each.split("=") for each in query.get("labelSelector", "").split(",") if each]
    fields = [each.split("=") for each in query.get("fieldSelector", "").split(",") if each]
    assert all(name == "metadata.name" for name, _ in fields)
    return all(labels.get(name) == value for name, value in wanted) and all(
        item["metadata"]["name"] == value for _, value in fields
    )


def stamp(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _in(key: str, collection: str) -> bool:
    return key.rpartition("/")[0] == collection


def _is_one(path: str) -> bool:
    """Whether a path names an object and not a collection: the kind stands at an even place below its group."""
    words = path.strip("/").split("/")[2 if path.startswith("/api/") else 3 :]
    return len(words) % 2 == 0


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    played: PlayedKubernetes

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        if self.played.away:
            self.close_connection = True
            return
        target = urlsplit(self.path)
        query = dict(parse_qsl(target.query))
        try:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refused(401, "Unauthorized")
            if query.get("watch") == "true":
                self._watch(target.path, query)
                return
            kind = self.headers.get("Content-Type", "")
            self._say(200, self.played.answer(self.command, target.path, query, kind, body))
        except Refused as refused:
            self._say(refused.code, {"kind": "Status", "code": refused.code, "message": str(refused)})

    do_GET = do_POST = do_PATCH = do_DELETE = _serve

    def _say(self, code: int, answer: Object) -> None:
        text = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _watch(self, path: str, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for each in self.played.tell(path, query):
                line = json.dumps(each).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # whoever watched has gone

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing is printed."""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[PlayedKubernetes, Path]]:
    """A server that nobody has asked yet, and the kubeconfig that leads to it, with the context `played`."""
    played = PlayedKubernetes()
    handler = type("Handler", (_Handler,), {"played": played})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    config = folder / "kubeconfig"
    address = f"http://127.0.0.1:{server.server_port}"
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "played",
                "clusters": [{"name": "here", "cluster": {"server": address}}],
                "users": [{"name": "ada", "user": {"token": TOKEN}}],
                "contexts": [{"name": "played", "context": {"cluster": "here", "user": "ada"}}],
            }
        )
    )
    try:
        yield played, config
    finally:
        played.away = True
        played.end_watches()
        server.shutdown()
        server.server_close()
        thread.join(5)
