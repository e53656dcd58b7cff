"""What the source looks like to the model under the edit prompt and under its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tokenflow_ops import Inversion
from ..tokenflow_ops.masking.disagreement import LEVELS, disagreement, noised
from ..tokenflow_ops.parameterization import Parameterization
from .progress import Progress
from .runs.patching import patch
from .source import SourceRun, visit_steps


def prompts_apart(
    node: str,
    model: Any,
    inversion: Inversion,
    positive: Any,
    parameterization: Parameterization,
    frames_per_pass: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Measures where the edit prompt and the source prompt disagree about the source.

    Args:
        node: The node's name, for errors.
        model: The user's ModelPatcher, which is not touched.
        inversion: The source's path, with its prompt.
        positive: The edit prompt, a CONDITIONING.
        parameterization: What the model's noise levels mean.
        frames_per_pass: Frames in one pass, 0 for the host's estimate.
        progress: Counts two steps for each of LEVELS.

    Returns:
        (N, h, w) float32, as of `disagreement`.

    Raises:
        NodeError: For what cannot be combined with TokenFlow.
    """
    source = noised(inversion, parameterization)
    # The sum alone is kept: of a long clip every copy of the latents counts.
    apart = torch.zeros(source.latents.shape[1:])
    for sign, prompt in ((1, positive), (-1, inversion.conditioning)):

        def add(step: int, frames: Tensor, run: Any, sign: int = sign) -> None:
            apart.add_(frames.float().cpu(), alpha=sign / len(LEVELS))

        visit_steps(
            patch(model, lambda: SourceRun(node, frames_per_pass), frames_per_pass),
            source,
            prompt,
            range(len(LEVELS)),
            add,
            progress=progress,
        )
    return disagreement(apart[None])
