"""What `kubectl kustomize` makes of an overlay, as far as ours use it: bases, resources, namespace, merge patches.

The failure suite installs through the real thing; here it is enough to look at what comes out, without any tool.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KNOWN = {"bases", "resources", "namespace", "patchesStrategicMerge"}
CLUSTER_WIDE = {
    "Namespace",
    "CustomResourceDefinition",
    "ClusterRole",
    "ClusterRoleBinding",
    "PriorityClass",
    "PersistentVolume",
}


def render(folder: Path) -> list[Object]:
    """The objects of an overlay. Raises AssertionError for what this does not know, or a patch of nothing."""
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(said) <= KNOWN, f"{folder}: {sorted(set(said) - KNOWN)}"
    found = [item for base in said.get("bases", ()) for item in render((folder / base).resolve())]
    found += [item for name in said.get("resources", ()) for item in documents(folder / name)]
    for name in said.get("patchesStrategicMerge", ()):
        for patch in documents(folder / name):
            targets = [item for item in found if _key(item) == _key(patch)]
            assert len(targets) == 1, f"{name} patches {_key(patch)}, of which there are {len(targets)}"
            _merge(targets[0], patch)
    if "namespace" in said:
        for item in found:
            if item["kind"] not in CLUSTER_WIDE:
                item["metadata"]["namespace"] = said["namespace"]
    return found


def documents(path: Path) -> Iterator[Object]:
    """The objects in a file."""
    yield from (each for each in yaml.safe_load_all(path.read_text()) if each)


def _key(item: Object) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


def _merge(target: Any, patch: Any) -> Any:  # trees of any shape
    """As a strategic merge does it: lists of things with names by name, null removes."""
    for key, value in patch.items():
        old = target.get(key)
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value)
        elif (
            isinstance(value, list)
            and isinstance(old, list)
            and all("name" in each for each in [*value, *old])
        ):
            by_name = {each["name"]: each for each in old}
            for each in value:
                if each["name"] in by_name:
                    _merge(by_name[each["name"]], each)
                else:
                    old.append(each)
        else:
            target[key] = value
    return target
