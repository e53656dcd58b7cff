"""What the method's public code (omerbt/TokenFlow, commit 5dd6a69) does otherwise.

How it attends, and how it inverts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import comfy.samplers
import torch
from tokenflow_pack.host.runs.patching import patch
from tokenflow_pack.host.source import SourceRun, run_as_sampler
from tokenflow_pack.host.validation.fingerprint import model_fingerprint
from tokenflow_pack.tokenflow_ops import Inversion
from torch import Tensor

if TYPE_CHECKING:
    from bench.tools.case import Editable

SCHEDULER = "ddim_uniform"  # diffusers' DDIM levels, as its pipeline sets them


def loop_over_heads(model: Any) -> Any:
    """A clone of the model whose self-attention is a loop over heads: tokenflow_utils.py,
    `register_extended_attention_pnp`.
    """

    def attention(
        fused: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        *rest: Any,
        **options: Any,
    ) -> Tensor:
        if k.shape[1] % q.shape[1]:  # a prompt's tokens, not whole frames'
            return fused(q, k, v, heads, *rest, **options)
        q, k, v = (part.unflatten(2, (heads, -1)).movedim(2, 0).contiguous() for part in (q, k, v))
        out = []
        for q_head, k_head, v_head in zip(q, k, v, strict=True):
            similarity = torch.bmm(q_head, k_head.transpose(1, 2)) * q_head.shape[2] ** -0.5
            # Under autocast, as there, a softmax is in float32.
            out.append(
                torch.bmm(similarity.softmax(2, dtype=torch.float32).to(v_head.dtype), v_head)
            )
        return torch.cat(out, 2)

    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = attention
    return clone


def public_inversion(case: Editable) -> Inversion:
    """A clip's path to noise as preprocess.py's `ddim_inversion` takes it, at its noise levels.

    It asks the UNet for the noise at the next level and shows it the latents of the level before,
    in that level's scale.
    """
    model, steps, source = case.world.model, case.settings.steps, case.source_prompt
    sigmas = comfy.samplers.KSampler(
        model, steps=steps, device="cpu", sampler="euler", scheduler=SCHEDULER
    ).sigmas
    cleanest = float(model.get_model_object("model_sampling").sigmas[0])
    path: list[Tensor] = []

    def climb(
        model_k: Any,
        x: Tensor,
        upwards: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        disable: bool | None = None,
    ) -> Tensor:
        path.append(x.clone())
        before = torch.tensor(cleanest).to(x)
        for sigma in upwards[1:]:
            shown = x * ((1 + sigma**2) / (1 + before**2)).sqrt()
            noise = (shown - model_k(shown, sigma.expand(len(x)), **extra_args)) / sigma
            x, before = x + (sigma - before) * noise, sigma
            path.append(x.clone())
        return x

    run_as_sampler(
        climb,
        patch(model, lambda: SourceRun("public code")),
        source,
        [],
        1.0,
        sigmas.flip(0),
        case.latents["samples"],
        None,
    )
    return Inversion(
        sigmas.clone(),
        torch.stack(path[::-1]),
        source,
        model_fingerprint(model),
        len(sigmas) - 1,
        SCHEDULER,
    )
