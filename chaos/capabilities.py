"""What this machine lets us break, found out once; what it does not is said, with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile

from chaos import postgres
from chaos.kinds import TRAITS, Kind, Need
from chaos.network import can_make_namespaces


def met() -> frozenset[Need]:
    """The needs that this machine meets."""
    found = set()
    if can_make_namespaces():
        found.add(Need.NAMESPACES)
    if _can_mount():
        found.add(Need.TMPFS)
    if postgres.is_installed():
        found.add(Need.POSTGRES)
    return frozenset(found)


def missing(kind: Kind, machine: frozenset[Need]) -> str:
    """Why a kind cannot be played here; empty if it can."""
    return ", ".join(sorted(need.value for need in TRAITS[kind].needs - machine))


def _can_mount() -> bool:
    if os.geteuid() != 0 or not all(shutil.which(each) for each in ("mount", "umount")):
        return False
    with tempfile.TemporaryDirectory(prefix="understudy-chaos-mount-") as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "understudy-chaos", folder],
            capture_output=True,
            check=False,
        )
        if mounted.returncode != 0:
            return False
        subprocess.run(["umount", folder], capture_output=True, check=True)
    return True
