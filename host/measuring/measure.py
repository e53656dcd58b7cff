"""Measures clips side by side, frame by frame, with progress and interrupts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...reporting.report import Report
from ...tokenflow_ops.measuring.metrics import (
    Flow,
    frame_similarities,
    prompt_scores,
    sharpness,
    source_motion,
    warp_errors,
)
from ..progress import Progress

# CLIP's embedding (1, C) of a (3, h, w) image in [0, 1].
Embed = Callable[[Tensor], Tensor]


def measure(
    clips: Mapping[str, Tensor],
    flow: Flow,
    flow_name: str,
    embed: Embed | None = None,
    prompt: Tensor | None = None,
) -> Report:
    """Measures clips: warp error and sharpness, and CLIP's similarities if asked for.

    Args:
        clips: By name (N, 3, h, w) in [0, 1]; "source" gives the motion.
        flow: Finds the source's optical flow.
        flow_name: Its name, for the report.
        embed: Embeds frames, to measure how alike neighbouring frames are, or None.
        prompt: The embedded prompt, (1, C), to measure how well frames show it, or None; without
            `embed` it is not used.

    Returns:
        All figures.
    """
    source = clips["source"]
    done = Progress(len(source) - 1 + (len(clips) * len(source) if embed else 0))
    errors: dict[str, list[Tensor]] = {name: [] for name in clips}
    visible = []
    for i in range(len(source) - 1):
        motion = source_motion(source[i : i + 2], flow)
        visible.append(motion[0][1].float().mean())
        for name, clip in clips.items():
            errors[name].append(warp_errors(clip[i : i + 2], motion))
        done()
    figures = {
        name: {"warp_error": torch.cat(errors[name]), "sharpness": sharpness(clip)}
        for name, clip in clips.items()
    }
    if embed:
        for name, clip in clips.items():
            embeddings = []
            for frame in clip:
                embeddings.append(embed(frame))
                done()
            figures[name] |= _similarities(torch.cat(embeddings), prompt)
    return Report(figures, torch.stack(visible), flow_name)


def _similarities(embeddings: Tensor, prompt: Tensor | None) -> dict[str, Tensor]:
    found = {"frame_similarity": frame_similarities(embeddings)}
    return found if prompt is None else found | {"prompt_score": prompt_scores(embeddings, prompt)}
