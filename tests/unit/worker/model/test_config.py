"""Settings arrive whole and are read strictly; counts follow from sizes."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from orchestrator.core import spec
from tests.unit.worker.model.models import bound_model, model_mapping, small_config
from worker.model.config import ModelConfig, Precision
from worker.model.fields import FieldError, read_fields


def test_the_controller_and_the_worker_mean_the_same_fields() -> None:
    ours = {field.name for field in fields(ModelConfig)}
    assert ours == {field.name for field in fields(spec.ModelSpec)} | {"precision"}
    assert {p.value for p in Precision} == {p.value for p in spec.Precision}


def test_reading_keeps_every_value() -> None:
    config = ModelConfig.from_mapping(model_mapping(rope_theta=500), "bfloat16")
    assert config.rope_theta == 500.0 and isinstance(config.rope_theta, float)
    assert config.precision is Precision.BFLOAT16
    assert {name: getattr(config, name) for name in model_mapping()} == model_mapping(rope_theta=500)


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"width": "24"}, "model.width"),
        ({"width": True}, "model.width"),
        ({"width": 24.0}, "model.width"),
        ({"width": 0}, "model.width"),
        ({"width": 28}, "model.width"),
        ({"norm_eps": float("nan")}, "model.norm_eps"),
        ({"norm_eps": 0.0}, "model.norm_eps"),
        ({"aux_loss": -0.1}, "model.aux_loss"),
        ({"router_noise": None}, "model.router_noise"),
        ({"router_temperature": 0}, "model.router_temperature"),
        ({"top_k": 6}, "model.top_k"),
        ({"kv_heads": 3}, "model.kv_heads"),
        ({"vocabulary": 255}, "model.vocabulary"),
        ({"depth": 3}, "model.depth"),
    ],
)
def test_errors_name_the_field_and_the_value(changes: dict[str, object], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        small_config(**changes)
    assert caught.value.field == field
    assert field in str(caught.value) and repr(*changes.values()) in str(caught.value)


def test_the_precision_is_the_jobs_and_not_the_models() -> None:
    with pytest.raises(FieldError, match=r"model\.precision is 'float32'"):
        ModelConfig.from_mapping(model_mapping(precision="float32"), "float32")


def test_a_missing_setting_is_no_default() -> None:
    values = model_mapping()
    del values["top_k"]
    with pytest.raises(FieldError, match=r"model\.top_k.*missing"):
        ModelConfig.from_mapping(values, "float32")


def test_an_unknown_precision_lists_the_known_ones() -> None:
    with pytest.raises(FieldError, match="float32, bfloat16, float64"):
        ModelConfig.from_mapping(model_mapping(), "float16")


def test_a_section_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(FieldError, match="mapping"):
        read_fields(ModelConfig, [1, 2], "model")


def test_counts_are_those_of_the_tensors() -> None:
    config = small_config(layers=3, heads=6, kv_heads=3, experts=4)
    model = bound_model(config).model
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    in_experts = sum(size for name, size in sizes.items() if ".experts." in name)
    assert config.expert_parameters() * config.experts == in_experts
    assert config.dense_parameters() == sum(sizes.values()) - in_experts
    assert config.total_parameters() == sum(sizes.values())
    assert config.active_parameters() == config.dense_parameters() + 2 * config.expert_parameters()


@pytest.mark.parametrize(
    "precision, parameters, compute",
    [
        (Precision.FLOAT32, torch.float32, torch.float32),
        (Precision.BFLOAT16, torch.float32, torch.bfloat16),
        (Precision.FLOAT64, torch.float64, torch.float64),
    ],
)
def test_precisions(precision: Precision, parameters: torch.dtype, compute: torch.dtype) -> None:
    assert (precision.parameter_dtype, precision.compute_dtype) == (parameters, compute)
