"""GPUs of one machine among the nodes on it: one for each trainer, or none for anybody."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.devices import VISIBLE, check, gpus, share_devices
from orchestrator.core.ids import NodeId
from orchestrator.core.spec import ClusterSpec, Device
from orchestrator.settings import SettingsError


@pytest.mark.parametrize(
    "visible, found",
    [
        ("0,1", ("0", "1")),
        ("3, 5", ("3", "5")),
        ("GPU-aa,GPU-bb", ("GPU-aa", "GPU-bb")),
        ("0,-1,1", ("0",)),
        ("-1", ()),
        ("", ()),
    ],
)
def test_what_is_left_visible_is_handed_out_as_cuda_reads_it(
    visible: str, found: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "nvidia0").touch()
    assert gpus({VISIBLE: visible}, tmp_path) == found


def test_else_the_files_of_the_driver_are_counted(tmp_path: Path) -> None:
    for name in ("nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert gpus({}, tmp_path) == ("0", "1")
    assert gpus({}, tmp_path / "none") == ()


@given(st.integers(1, 6), st.integers(0, 3), st.integers(1, 3), st.integers(0, 12))
def test_no_gpu_is_shown_to_two_nodes_and_all_train_on_the_same_kind(
    nodes: int, spares: int, each: int, there: int
) -> None:
    cluster = ClusterSpec(nodes=nodes, spares=spares, devices_per_node=each)
    shares = share_devices(cluster, tuple(map(str, range(there))))
    shown = {node: [name for name in value.split(",") if name] for node, value in shares.visible.items()}
    handed_out = [name for names in shown.values() for name in names]
    assert len(shown) == nodes + spares and len(handed_out) == len(set(handed_out))
    assert {len(names) for names in shown.values()} in ({each}, {0})
    suffices = there >= (nodes + spares) * each
    assert bool(handed_out) == suffices
    assert bool(shares.why) == (there > 0 and not suffices), "a machine without GPUs is nothing to speak of"


def test_a_job_for_the_cpu_sees_no_gpu() -> None:
    shares = share_devices(ClusterSpec(device=Device.CPU), ("0", "1", "2", "3", "4", "5"))
    assert shares.environment(NodeId("node-1")) == {VISIBLE: ""} and not shares.why


def test_a_job_that_insists_on_gpus_is_refused_where_they_are_too_few() -> None:
    cluster = ClusterSpec(nodes=2, spares=1, device=Device.CUDA)
    with pytest.raises(SettingsError, match=r"cluster\.device: cuda: 3 trainers .* shows 2: use fewer"):
        check(cluster, "job.yaml", ("0", "1"))
    check(cluster, "job.yaml", ("0", "1", "2"))
    check(ClusterSpec(), "job.yaml", ())
