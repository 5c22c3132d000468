"""The API server, as few calls on plain mappings: get, list, create, patch, delete, watch. Every wait has a limit.

The only module that imports the Kubernetes client, which finds the server, its authority and our token (those of the
pod that we run in, or a kubeconfig). Nothing is tried again here. Next: `watching.py`, which follows objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlencode

from urllib3.exceptions import HTTPError

Object: TypeAlias = dict[str, Any]
"""An object of Kubernetes, as JSON holds it: what is in it depends on its kind, hence `Any`."""

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 10.0
WATCH_SECONDS = 60
"""After which the server ends a watch, and we begin another one."""
WATCH_SILENCE_SECONDS = 90.0
"""A watch on which nothing comes for so long, not even its end, is given up."""
LINE_LIMIT_BYTES = 4_000_000
JOBS = "/apis/understudy.dev/v1alpha1"
MERGE_PATCH = "application/merge-patch+json"


class ApiError(Exception):
    """The API server refused, or nobody answered (status 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the API server answered {status}: {message}" if status else message)
        self.status = status

    @property
    def absent(self) -> bool:
        """There is no such object (any more)."""
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """It exists already, or has changed since it was read."""
        return self.status == 409

    @property
    def expired(self) -> bool:
        """What was asked for lies too far back: list again."""
        return self.status == 410


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a watch tells about one object."""

    kind: str
    """ADDED | MODIFIED | DELETED | BOOKMARK"""
    object: Object


class Api(Protocol):
    """What the rest of this package needs of an API server. Every call raises ApiError."""

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Object: ...

    def create(self, path: str, body: Object) -> Object: ...

    def patch(self, path: str, body: Object) -> Object:
        """A JSON merge patch: null removes, lists are replaced whole."""
        ...

    def delete(self, path: str, *, grace_seconds: int | None = None, uid: str = "") -> None:
        """With `uid`, only this very object. 0 seconds: the object is gone at once, whatever its host does."""
        ...

    def watch(self, path: str, query: Mapping[str, str]) -> Iterator[Change]:
        """Changes as they come, until the server ends the watch."""
        ...


def pods(namespace: str, name: str = "") -> str:
    """The path of the pods of a namespace, or of one."""
    return core(namespace, "pods", name)


def core(namespace: str, kind: str, name: str = "") -> str:
    """The path of objects of the core group, such as services, secrets, events."""
    return f"/api/v1/namespaces/{namespace}/{kind}" + (f"/{name}" if name else "")


def jobs(namespace: str, name: str = "") -> str:
    """The path of the training jobs of a namespace, or of one."""
    return f"{JOBS}/namespaces/{namespace}/moetrainingjobs" + (f"/{name}" if name else "")


def deployments(namespace: str, name: str = "") -> str:
    """The path of the deployments of a namespace, or of one."""
    return f"/apis/apps/v1/namespaces/{namespace}/deployments" + (f"/{name}" if name else "")


def leases(namespace: str, name: str = "") -> str:
    """The path of the leases of a namespace, or of one."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases" + (f"/{name}" if name else "")


class KubeApi:
    """`Api` over HTTPS. May be used by several threads."""

    def __init__(self, context: str = "") -> None:
        """In a pod: its service account; elsewhere a kubeconfig, with the context that is named or its current one.

        Raises ApiError where neither is there.
        """
        from kubernetes.client.api_client import ApiClient
        from kubernetes.client.configuration import Configuration
        from kubernetes.config import (
            ConfigException,
            load_incluster_config,
            load_kube_config,
        )

        settings = Configuration()
        try:
            if context:
                load_kube_config(context=context, client_configuration=settings)  # type: ignore[no-untyped-call] # has no types
            else:
                try:
                    load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call] # the same
                except ConfigException:
                    load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call] # the same
        except ConfigException as error:
            raise ApiError(
                0, f"no cluster: neither a pod's service account nor a kubeconfig ({error})"
            ) from error
        settings.retries = False
        self._client = ApiClient(settings)
        self._host = str(settings.host)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        return self._ask("GET", path, query=query)

    def create(self, path: str, body: Object) -> Object:
        return self._ask("POST", path, body=body)

    def patch(self, path: str, body: Object) -> Object:
        return self._ask("PATCH", path, body=body, content_type=MERGE_PATCH)

    def delete(self, path: str, *, grace_seconds: int | None = None, uid: str = "") -> None:
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if uid:
            options["preconditions"] = {"uid": uid}
        self._ask("DELETE", path, body=options)

    def watch(self, path: str, query: Mapping[str, str]) -> Iterator[Change]:
        asked = {
            **query,
            "watch": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            "allowWatchBookmarks": "true",
        }
        response = self._send("GET", path, asked, None, "", (CONNECT_SECONDS, WATCH_SILENCE_SECONDS))
        try:
            for line in _lines(response):
                said = json.loads(line)
                if said["type"] == "ERROR":
                    raise ApiError(int(said["object"].get("code", 0)), str(said["object"].get("message", "")))
                yield Change(kind=said["type"], object=said["object"])
        except (HTTPError, OSError, ValueError, KeyError) as error:
            raise ApiError(0, f"the watch on {path} broke: {error}") from error
        finally:
            response.close()

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        response = self._send(method, path, query, body, content_type, (CONNECT_SECONDS, ANSWER_SECONDS))
        try:
            answer = json.loads(response.read())
        except (HTTPError, OSError, ValueError) as error:
            raise ApiError(0, f"{method} {path}: the answer broke off: {error}") from error
        finally:
            response.release_conn()
        if not isinstance(answer, dict):
            raise ApiError(0, f"{method} {path}: the answer is no object")
        return answer

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Object | None,
        content_type: str,
        seconds: tuple[float, float],
    ) -> Any:  # a response of urllib3, by way of an untyped library
        headers = {"Accept": "application/json", "User-Agent": "understudy"}
        if body is not None:
            headers["Content-Type"] = content_type
        self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = f"{self._host}{path}" + (f"?{urlencode(query)}" if query else "")
        text = None if body is None else json.dumps(body)
        from kubernetes.client.exceptions import ApiException

        try:
            response = self._client.rest_client.pool_manager.request(
                method,
                url,
                body=text,
                headers=headers,
                preload_content=False,
                timeout=_timeout(seconds),
                retries=False,
            )
        except (HTTPError, OSError, ApiException) as error:
            raise ApiError(0, f"{method} {path}: the API server does not answer: {error}") from error
        if not 200 <= response.status < 300:
            said = response.read().decode(errors="replace")
            response.release_conn()
            raise ApiError(response.status, _message(said))
        return response


def _timeout(seconds: tuple[float, float]) -> Any:  # of urllib3
    from urllib3 import Timeout

    return Timeout(connect=seconds[0], read=seconds[1])


def _message(said: str) -> str:
    """What a Status object says, else the beginning of whatever came."""
    try:
        return str(json.loads(said)["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(said.split())[:200]


def _lines(response: Any) -> Iterator[bytes]:
    """Lines of a response of urllib3 as they come. Raises ValueError for one that never ends."""
    kept = b""
    for chunk in response.stream(amt=None, decode_content=False):
        kept += chunk
        *whole, kept = kept.split(b"\n")
        yield from (line for line in whole if line.strip())
        if len(kept) > LINE_LIMIT_BYTES:
            raise ValueError(f"a line of more than {LINE_LIMIT_BYTES} bytes")
