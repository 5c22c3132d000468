"""Causal self-attention with grouped key and value heads (arXiv 2305.13245) and rotary positions (arXiv 2104.09864).

Shapes: B sequences; S positions; D width; H query heads; G key and value heads; C head width; A = (H + 2G) * C.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.model.config import ModelConfig


class Rotary(nn.Module):
    """Turns the pair (i, i + C/2) of each head by position * theta^(-2i/C). Tables, no weights."""

    cos_SC: Tensor
    sin_SC: Tensor

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        super().__init__()
        half = config.head_width // 2
        # In float64 on the CPU, so that all devices have the same table.
        frequency = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle_SC = torch.outer(torch.arange(config.sequence_length, dtype=torch.float64), frequency).repeat(
            1, 2
        )
        sign_C = torch.cat([-torch.ones(half), torch.ones(half)])
        dtype = config.precision.parameter_dtype
        self.register_buffer("cos_SC", angle_SC.cos().to(device, dtype), persistent=False)
        self.register_buffer("sin_SC", (angle_SC.sin() * sign_C).to(device, dtype), persistent=False)

    def forward(self, x_BSHC: Tensor) -> Tensor:
        positions = x_BSHC.shape[1]
        cos_SC = self.cos_SC[:positions, None].to(x_BSHC.dtype)
        sin_SC = self.sin_SC[:positions, None].to(x_BSHC.dtype)
        swapped_BSHC = x_BSHC.roll(x_BSHC.shape[-1] // 2, dims=-1)
        return x_BSHC * cos_SC + swapped_BSHC * sin_SC


class Attention(nn.Module):
    """Each position reads from itself and those before it; of its own document only, where documents are kept apart."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._heads, self._kv_heads, self._head_width = config.heads, config.kv_heads, config.head_width
        dtype = config.precision.parameter_dtype
        A = (config.heads + 2 * config.kv_heads) * config.head_width
        self.qkv_AD = nn.Parameter(torch.empty(A, config.width, dtype=dtype, device="meta"))
        self.out_DD = nn.Parameter(torch.empty(config.width, config.width, dtype=dtype, device="meta"))

    def forward(self, x_BSD: Tensor, rotary: Rotary, document_BC: Tensor | None = None) -> Tensor:
        H, G = self._heads, self._kv_heads
        qkv_BSAC = functional.linear(x_BSD, self.qkv_AD.to(x_BSD.dtype)).unflatten(
            -1, (H + 2 * G, self._head_width)
        )
        qk_BSAC, v_BSGC = qkv_BSAC.split([H + G, G], dim=2)
        q_BSHC, k_BSGC = rotary(qk_BSAC).split([H, G], dim=2)
        if x_BSD.shape[0] == 0:
            # On a GPU, scaled_dot_product_attention gives None for an empty batch.
            return functional.linear(q_BSHC.flatten(2), self.out_DD.to(x_BSD.dtype))
        y_BHSC = functional.scaled_dot_product_attention(
            q_BSHC.transpose(1, 2),
            k_BSGC.transpose(1, 2),
            v_BSGC.transpose(1, 2),
            attn_mask=None if document_BC is None else _own_document(document_BC[:, : x_BSD.shape[1]]),
            is_causal=document_BC is None,
            enable_gqa=H != G,
        )
        return functional.linear(y_BHSC.transpose(1, 2).flatten(2), self.out_DD.to(x_BSD.dtype))


def _own_document(document_BS: Tensor) -> Tensor:
    """Which position may read which: [B, 1, S, S]. Positions need no new beginning, rotary ones are relative."""
    positions = document_BS.shape[1]
    causal_SS = torch.ones(positions, positions, dtype=torch.bool, device=document_BS.device).tril()
    return (causal_SS & (document_BS[:, :, None] == document_BS[:, None, :])).unsqueeze(1)
