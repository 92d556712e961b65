"""nn.MultiheadAttention whose head count and head size are independent of the width of the residual stream.

torch.nn's own class derives head_dim from embed_dim / num_heads inside a C++-backed function; with heads removed
that no longer holds. The subclass has the same parameters and the same state_dict, and computes the same function.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention with free head count H and head size D.

    Index conventions: B batch, L target length, S source length, H heads, D head size, E residual width.
    softmax(q k^T * scale + mask) v with the scale of the dense model, 1 / sqrt(D dense).
    """

    softmax_scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention.forward: (output, attention weights or None)."""
        if query.dim() == 2:
            batch_axis = 0 if self.batch_first else 1
            out, weights = self.forward(
                query.unsqueeze(batch_axis),
                key.unsqueeze(batch_axis),
                value.unsqueeze(batch_axis),
                None if key_padding_mask is None else key_padding_mask.unsqueeze(0),
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
            return out.squeeze(batch_axis), None if weights is None else weights.squeeze(0)
        same = query is key and key is value
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, key, value, same)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")  # as nn.MultiheadAttention does
        mask = self._mask(q, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            logits = (q @ k.transpose(-1, -2)) * self.softmax_scale
            weights = (logits if mask is None else logits + mask).softmax(-1)
            if dropout > 0.0:
                weights = F.dropout(weights, dropout)
            out = weights @ v
            if average_attn_weights:
                weights = weights.mean(1)
        else:
            hinted = is_causal and key_padding_mask is None  # then torch does not look at the mask either
            out = F.scaled_dot_product_attention(
                q, k, v, None if hinted else mask, dropout_p=dropout, is_causal=hinted, scale=self.softmax_scale
            )
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor, same: bool) -> tuple[Tensor, Tensor, Tensor]:
        bias = self.in_proj_bias
        if self.in_proj_weight is not None:
            if same:
                q, k, v = F.linear(query, self.in_proj_weight, bias).chunk(3, -1)
                return q, k, v
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        return q, k, v

    def _mask(self, q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        mask = attn_mask
        if mask is not None:
            mask = _additive(mask, q)
            if mask.dim() == 3:
                mask = mask.unflatten(0, (q.shape[0], -1))
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q)[:, None, None, :]
            mask = padding if mask is None else mask + padding
        return mask


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(mask, -math.inf)
    return mask.to(like.dtype)


def can_swap(module: nn.Module) -> bool:
    """Whether the subclass computes what this module computes (bias_k, bias_v and add_zero_attn are not supported)."""
    if type(module) is not nn.MultiheadAttention:
        return False
    return module.bias_k is None and module.bias_v is None and not module.add_zero_attn


def prepare(module: nn.Module) -> None:
    """Give the module the scale that its dense head size had; a second swap leaves it as it is."""
    assert isinstance(module, nn.MultiheadAttention)
    if "softmax_scale" not in vars(module):
        module.softmax_scale = module.head_dim**-0.5


def has_fast_path(module: nn.Module) -> bool:
    """Whether torch may run this module in one fused C++ call that reads embed_dim and num_heads its own way."""
    return isinstance(module, nn.TransformerEncoderLayer) and bool(module.activation_relu_or_gelu)


def without_fast_path(module: nn.Module) -> None:
    """Let an encoder layer always run its Python forward: the fused call assumes head size = width / heads."""
    assert isinstance(module, nn.TransformerEncoderLayer)
    module.activation_relu_or_gelu = 0
