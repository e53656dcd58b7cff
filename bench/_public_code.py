"""How the method's public code (omerbt/TokenFlow, commit 5dd6a69) attends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def loop_over_heads(model: Any) -> Any:
    """A clone of the model whose self-attention is a loop over heads: tokenflow_utils.py, `register_extended_attention_pnp`."""

    def attention(fused: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *rest: Any, **options: Any) -> Tensor:
        if k.shape[1] % q.shape[1]:  # a prompt's tokens, not whole frames'
            return fused(q, k, v, heads, *rest, **options)
        q, k, v = (part.unflatten(2, (heads, -1)).movedim(2, 0).contiguous() for part in (q, k, v))
        out = []
        for q_head, k_head, v_head in zip(q, k, v, strict=True):
            similarity = torch.bmm(q_head, k_head.transpose(1, 2)) * q_head.shape[2] ** -0.5
            # Under autocast, as there, a softmax is in float32.
            out.append(torch.bmm(similarity.softmax(2, dtype=torch.float32).to(v_head.dtype), v_head))
        return torch.cat(out, 2)

    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = attention
    return clone
