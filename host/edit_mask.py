"""What the source looks like to the model under the edit prompt and under its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tokenflow_ops import Inversion
from ..tokenflow_ops.edit_mask import disagreement
from .patching import patch
from .progress import Progress
from .source import SourceRun, run_as_sampler


def prompts_apart(
    node: str,
    model: Any,
    inversion: Inversion,
    positive: Any,
    steps: list[int],
    frames_per_pass: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Measures where the edit prompt and the source prompt disagree about the source.

    Args:
        node: The node's name, for errors.
        model: The user's ModelPatcher, which is not touched.
        inversion: The source's path, with its prompt.
        positive: The edit prompt, a CONDITIONING.
        steps: Steps of the inversion at which they are compared.
        frames_per_pass: Frames in one pass, 0 for the host's estimate.
        progress: Counts two steps for each of `steps`.

    Returns:
        (N, h, w) float32, the mean over the steps.

    Raises:
        NodeError: For what cannot be combined with TokenFlow.
    """

    def denoised(prompt: Any) -> list[Tensor]:
        """The source's frames as the model sees them at each step, under one prompt."""
        found: list[Tensor] = []

        def visit(
            model_k: Any,
            x: Tensor,
            sigmas: Tensor,
            extra_args: dict[str, Any],
            callback: Any,
            disable: bool | None = None,
        ) -> Tensor:
            for done, step in enumerate(steps):
                latents, sigma = inversion.latents[step].to(x), inversion.sigmas[step].to(x)
                found.append(model_k(latents, sigma.expand(len(latents)), **extra_args))
                if callback is not None:
                    callback({"i": done, "denoised": found[-1], "x": latents, "sigma": sigma})
            return x

        patched = patch(model, lambda: SourceRun(node, frames_per_pass), frames_per_pass)
        # Of the noise levels only the number counts, of the latents the size.
        sigmas, blank = inversion.sigmas[: len(steps) + 1], torch.zeros_like(inversion.latents[0])
        run_as_sampler(visit, patched, prompt, [], 1.0, sigmas, blank, progress)
        return found

    pairs = zip(denoised(positive), denoised(inversion.conditioning), strict=True)
    return torch.stack([disagreement(edit, source) for edit, source in pairs]).mean(0)
