"""What the source looks like to the model under the edit prompt and under its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tokenflow_ops import Inversion
from ..tokenflow_ops.edit_mask import disagreement
from .patching import patch
from .progress import Progress
from .source import SourceRun, visit_steps


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
        visit_steps(
            patch(model, lambda: SourceRun(node, frames_per_pass), frames_per_pass),
            inversion,
            prompt,
            steps,
            lambda step, frames, run: found.append(frames),
            progress=progress,
        )
        return found

    pairs = zip(denoised(positive), denoised(inversion.conditioning), strict=True)
    return torch.stack([disagreement(edit, source) for edit, source in pairs]).mean(0)
