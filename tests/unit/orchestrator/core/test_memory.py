"""The arithmetic of memory: the lengths are those that trainers use, and each switch saves what it says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from orchestrator.core import memory, spec_rules
from orchestrator.core.spec import AffinitySpec, JobSpec, Recompute
from orchestrator.core.spec_mapping import from_mapping, to_mapping
from worker.model.config import ModelConfig
from worker.model.parts import dense_layout, expert_layout
from worker.model.stages import Stages


def job(**changes: Any) -> JobSpec:
    mapping: dict[str, Any] = {"name": "plan", "data": {"path": "stdlib"}}
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            mapping.setdefault(section, {})[field] = value
        else:
            mapping[section] = value
    return from_mapping(mapping)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "model__width": 24,
            "model__heads": 2,
            "model__kv_heads": 1,
            "model__expert_width": 10,
            "model__layers": 5,
        },
    ],
)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_state_is_what_a_trainer_allocates(precision: str, changes: dict[str, Any]) -> None:
    spec = job(precision=precision, cluster__nodes=1, cluster__replicas=1, **changes)
    config = ModelConfig.from_mapping(to_mapping(spec)["model"], precision)
    elements = dense_layout(config).length + config.experts * expert_layout(config).length
    width = config.precision.parameter_dtype.itemsize
    (device,) = memory.plan(spec).devices
    assert device.parameters == device.gradients == elements * width
    assert (
        0 <= device.optimizer - 2 * elements * width <= memory.SCRATCH_ELEMENTS[spec.cluster.device] * width
    )
    assert memory.plan(spec).checkpoint == 3 * elements * width
    assert device.communication == 0 and device.backups == 0


def test_a_second_replica_costs_the_experts_once_more() -> None:
    one, two = (memory.plan(job(cluster__replicas=count)) for count in (1, 2))
    held = sum(device.experts * device.trainers for device in two.devices)
    assert held == 2 * 16 and sum(device.backups * device.trainers for device in two.devices) == 16
    assert one.replicas == 0
    experts = sum((device.parameters + device.gradients) * device.trainers for device in two.devices)
    experts -= sum((device.parameters + device.gradients) * device.trainers for device in one.devices)
    assert two.replicas == 2 * experts
    assert one.checkpoint == two.checkpoint


def test_recomputing_saves_activations_and_nothing_else() -> None:
    kept = {
        recompute: memory.plan(job(compute__recompute=recompute.value)).devices[0] for recompute in Recompute
    }
    for recompute in (Recompute.ATTENTION, Recompute.EXPERTS):
        assert (
            kept[Recompute.ALL].activations
            < kept[recompute].activations
            < kept[Recompute.NOTHING].activations
        )
    assert len({device.state for device in kept.values()}) == 1


def test_frozen_parts_have_weights_alone() -> None:
    whole = job(init__checkpoint="/base")
    some = dataclasses.replace(whole, trainable=dataclasses.replace(whole.trainable, experts=(3, 7)))
    before, after = memory.plan(whole), memory.plan(some)
    assert {device.parameters for device in after.devices} == {before.devices[0].parameters}
    assert max(device.optimizer for device in after.devices) < before.devices[0].optimizer / 3
    assert after.checkpoint < before.checkpoint / 7
    assert after.dense_gradient == 0


def test_while_affinity_has_not_chosen_the_most_that_it_can_choose_is_counted() -> None:
    whole = job(init__checkpoint="/base")

    def trained(**changes: Any) -> memory.MemoryPlan:
        return memory.plan(
            dataclasses.replace(whole, trainable=dataclasses.replace(whole.trainable, **changes))
        )

    asked = AffinitySpec(sample="stdlib", threshold=0.2)
    bound = trained(affinity=asked)
    assert bound.trained == 4 and whole.model.experts == 16
    assert bound.dense_gradient == 0
    for experts in ((0, 1, 2, 3), (3, 7, 11), (15,)):
        chosen = trained(affinity=asked, experts=experts)
        assert chosen.trained == len(experts)
        for name in ("peak", "checkpoint", "replicas", "node_held"):
            assert getattr(chosen, name) <= getattr(bound, name), (name, experts)
    assert bound.peak < memory.plan(whole).peak


def test_snapshots_that_outlive_a_trainer_are_counted_unless_there_are_none() -> None:
    """Two slots for a node's own share, and two for that of the node whose buddy it is."""
    alone = memory.plan(job(cluster__nodes=1, cluster__replicas=1, cluster__spares=0))
    two = memory.plan(job(cluster__nodes=2, cluster__spares=0))
    assert alone.node_held == 2 * alone.node_snapshot
    assert two.node_held == 4 * two.node_snapshot
    assert memory.plan(job(snapshot__enabled=False)).node_held == 0


@pytest.mark.parametrize(
    "text, size",
    [
        ("80GB", 80 * 10**9),
        ("24 GiB", 24 << 30),
        ("1.5mb", 1_500_000),
        ("4096", 4096),
        ("", None),
        ("much", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert memory.read_size(text) == size


def test_a_job_that_does_not_fit_its_devices_is_refused_with_a_remedy() -> None:
    (problem,) = spec_rules.problems(job(cluster__device_memory="10MB"))
    assert problem.field == "cluster.device_memory" and "compute.recompute" in problem.remedy
    assert spec_rules.problems(job(cluster__device_memory="1GB")) == ()
    (problem,) = spec_rules.problems(job(cluster__device_memory="plenty"))
    assert "80GB" in problem.remedy


@pytest.mark.parametrize("stages, chunks", [(2, 1), (3, 1), (2, 2)])
def test_a_stage_holds_what_its_trainers_allocate(stages: int, chunks: int) -> None:
    schedule = "interleaved" if chunks > 1 else "1f1b"
    pipeline = {"pipeline__stages": stages, "pipeline__chunks": chunks, "pipeline__schedule": schedule}
    spec = job(cluster__nodes=stages, cluster__replicas=1, model__layers=7, **pipeline)
    config = ModelConfig.from_mapping(to_mapping(spec)["model"], "float32")
    devices = sorted(memory.plan(spec).devices, key=lambda device: device.stage)
    assert [device.stage for device in devices] == list(range(stages))
    for device in devices:
        share = Stages(layers=7, count=stages, chunks=chunks).share(device.stage)
        experts = config.experts * expert_layout(config, share).length
        assert device.parameters == 4 * (dense_layout(config, share).length + experts)


def test_the_first_stage_holds_more_microbatches_than_the_last() -> None:
    found = memory.stages(job(pipeline__stages=4, model__layers=4, cluster__nodes=8))
    assert [stage.in_flight for stage in found] == [4.0, 3.0, 2.0, 1.0]
    (everything, _) = memory.stages(
        job(pipeline__stages=2, pipeline__schedule="gpipe", model__layers=4, cluster__nodes=4)
    )
    assert everything.in_flight == 6.0, "twelve microbatches over two seats"
