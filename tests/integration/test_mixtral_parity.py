"""The model against Hugging Face's Mixtral with the same weights: logits, loss and gradients, in float32.

Shapes: B sequences; C bytes of a window; V vocabulary; E experts; F expert width; D width.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.worker.model.models import Bound, bound_model, random_windows, small_config
from worker.model.config import ModelConfig, Precision
from worker.model.router import ForwardContext

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its imports
    transformers = pytest.importorskip("transformers")


def mixtral(config: ModelConfig) -> Any:
    described = transformers.MixtralConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.expert_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.sequence_length,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        num_local_experts=config.experts,
        num_experts_per_tok=config.top_k,
        sliding_window=None,
        tie_word_embeddings=False,
        use_cache=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    return transformers.MixtralForCausalLM(described)


def theirs_by_our_names(config: ModelConfig, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters (or gradients) of their model under our names and in our shapes."""
    ours = {
        "embedding_VD": values["model.embed_tokens.weight"],
        "norm.scale_D": values["model.norm.weight"],
        "head_VD": values["lm_head.weight"],
    }
    for layer in range(config.layers):
        theirs, name = f"model.layers.{layer}", f"layers.{layer}"
        qkv = [values[f"{theirs}.self_attn.{kind}_proj.weight"] for kind in ("q", "k", "v")]
        gate_EFD, up_EFD = values[f"{theirs}.mlp.experts.gate_up_proj"].chunk(2, dim=1)
        ours |= {
            f"{name}.attention.qkv_AD": torch.cat(qkv),
            f"{name}.attention.out_DD": values[f"{theirs}.self_attn.o_proj.weight"],
            f"{name}.attention_norm.scale_D": values[f"{theirs}.input_layernorm.weight"],
            f"{name}.moe_norm.scale_D": values[f"{theirs}.post_attention_layernorm.weight"],
            f"{name}.moe.router.weight_ED": values[f"{theirs}.mlp.gate.weight"],
            f"{name}.moe.experts.w1_EFD": gate_EFD,
            f"{name}.moe.experts.w3_EFD": up_EFD,
            f"{name}.moe.experts.w2_EDF": values[f"{theirs}.mlp.experts.down_proj"],
        }
    return ours


def twins(config: ModelConfig) -> tuple[Bound, Any]:
    """Our model and theirs with the same weights: random ones, norms too."""
    torch.manual_seed(0)
    bound, other = bound_model(config), mixtral(config)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(std=0.3)
        named = theirs_by_our_names(config, dict(other.named_parameters()))
        assert named.keys() == dict(bound.model.named_parameters()).keys()
        for name, parameter in bound.model.named_parameters():
            parameter.copy_(named[name])
    return bound, other


@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 2, "width": 32},
        {"top_k": 3, "heads": 2, "kv_heads": 1, "sequence_length": 24, "rope_theta": 1e6},
        {"top_k": 5, "heads": 4, "kv_heads": 4, "layers": 3},
    ],
)
def test_logits_loss_and_gradients_are_those_of_mixtral(changes: dict[str, object]) -> None:
    config = small_config(Precision.FLOAT32, aux_loss=0.0, **changes)
    bound, other = twins(config)
    window_BC = random_windows(config, 3)
    theirs_BSV = other(window_BC[:, :-1]).logits
    prediction = bound.model(window_BC[:, :-1], ForwardContext(step=1, microbatch=0))
    torch.testing.assert_close(prediction.logits_BSV, theirs_BSV, rtol=2e-4, atol=2e-4)

    loss = torch.nn.functional.cross_entropy(theirs_BSV.flatten(0, 1), window_BC[:, 1:].flatten())
    loss.backward()
    ours = bound.loss(window_BC).objective
    ours.backward()
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
    gradients = {name: parameter.grad for name, parameter in other.named_parameters()}
    for name, theirs in theirs_by_our_names(config, gradients).items():
        mine = bound.model.get_parameter(name).grad
        assert mine is not None
        assert float((mine - theirs).norm()) <= 1e-3 * float(theirs.norm()) + 1e-6, name
