"""A model as Hugging Face's `transformers` knows it: Mixtral's config, and its weights in safetensors files.

The names are those of Mixtral's published checkpoints (`block_sparse_moe.experts.3.w1`), which every version of
`transformers` reads. The tokenizer comes along: the job's own, or where tokens are bytes one with a token for each.
What must not live here: where a checkpoint is (`opened.py`).

Shapes: E experts; F expert width; D width; V vocabulary; A query, key and value heads together, times head width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from worker.model.config import ModelConfig

SHARD_BYTES = 4 << 30
"""A file of weights is closed when it has this many bytes."""
BYTES = 256


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """A safetensors file that whoever may read its neighbours may read: the library writes for its owner alone."""
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(mode)


def mixtral_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, object]:
    """The content of `config.json`."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "dtype": str(dtype).removeprefix("torch."),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.expert_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.sequence_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.top_k,
        "router_aux_loss_coef": config.aux_loss,
        "router_jitter_noise": 0.0,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def to_mixtral(config: ModelConfig, ours: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name in Mixtral, from our parameters by name."""
    yield "model.embed_tokens.weight", ours["embedding_VD"]
    for layer in range(config.layers):
        mine, theirs = f"layers.{layer}", f"model.layers.{layer}"
        heads = config.heads * config.head_width
        keys = config.kv_heads * config.head_width
        q, k, v = ours[f"{mine}.attention.qkv_AD"].split([heads, keys, keys])
        yield f"{theirs}.self_attn.q_proj.weight", q
        yield f"{theirs}.self_attn.k_proj.weight", k
        yield f"{theirs}.self_attn.v_proj.weight", v
        yield f"{theirs}.self_attn.o_proj.weight", ours[f"{mine}.attention.out_DD"]
        yield f"{theirs}.input_layernorm.weight", ours[f"{mine}.attention_norm.scale_D"]
        yield f"{theirs}.post_attention_layernorm.weight", ours[f"{mine}.moe_norm.scale_D"]
        # softmax(logits / temperature): Mixtral has no temperature, the router's weights take it over.
        router_ED = ours[f"{mine}.moe.router.weight_ED"]
        yield f"{theirs}.block_sparse_moe.gate.weight", router_ED / config.router_temperature
        for expert in range(config.experts):
            block = f"{theirs}.block_sparse_moe.experts.{expert}"
            yield f"{block}.w1.weight", ours[f"{mine}.moe.experts.w1_EFD"][expert]
            yield f"{block}.w2.weight", ours[f"{mine}.moe.experts.w2_EDF"][expert]
            yield f"{block}.w3.weight", ours[f"{mine}.moe.experts.w3_EFD"][expert]
    yield "model.norm.weight", ours["norm.scale_D"]
    yield "lm_head.weight", ours["head_VD"]


def export(
    config: ModelConfig,
    ours: Mapping[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype,
    after_tensor: Callable[[int], None],
    shard_bytes: int = SHARD_BYTES,
    tokenizer: bytes = b"",
) -> tuple[Path, ...]:
    """Write config, tokenizer and weights into an empty folder; the files. `after_tensor` hears the bytes of each.

    `tokenizer` is a tokenizer.json; nothing where tokens are bytes.
    """
    shards = list(_shards(config, ours, dtype, shard_bytes))
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        name = (
            f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        )
        tensors = {each: ours_tensor.to("cpu", dtype).contiguous().clone() for each, ours_tensor in shard}
        save_tensors(tensors, folder / name)
        for each, tensor in tensors.items():
            weight_map[each] = name
            total += tensor.nbytes
            after_tensor(tensor.nbytes)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write(folder / "model.safetensors.index.json", index)
    _write(folder / "config.json", mixtral_config(config, dtype))
    if tokenizer or config.vocabulary == BYTES:
        content = tokenizer or json.dumps(byte_tokenizer(), indent=2, ensure_ascii=False).encode()
        (folder / "tokenizer.json").write_bytes(content)
        _write(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.sequence_length},
        )
    return tuple(sorted(folder.iterdir()))


def _shards(
    config: ModelConfig, ours: Mapping[str, Tensor], dtype: torch.dtype, limit: int
) -> Iterator[list[tuple[str, Tensor]]]:
    shard: list[tuple[str, Tensor]] = []
    room = limit
    for name, tensor in to_mixtral(config, ours):
        size = tensor.numel() * dtype.itemsize
        if shard and size > room:
            yield shard
            shard, room = [], limit
        shard.append((name, tensor))
        room -= size
    yield shard


def byte_tokenizer() -> dict[str, object]:
    """The content of `tokenizer.json`: token b is byte b, in the alphabet that byte-level tokenizers write bytes in."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(BYTES) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(BYTES + n) for n, byte in enumerate(others)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {letters[byte]: byte for byte in range(BYTES)},
            "merges": [],
        },
    }


def _write(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
