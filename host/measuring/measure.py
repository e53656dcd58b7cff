"""Measures clips side by side, frame by frame, with progress and interrupts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...reporting.report import TEXTS, Report
from ...tokenflow_ops.measuring.metrics import (
    Flow,
    frame_similarities,
    prompt_scores,
    sharpness,
    source_motion,
    warp_errors,
)
from ..progress import Progress
from ..video.clips import Clip, in_step

# Values by the name of the measure: numbers, as small tensors among large ones scatter the heap.
Figures = dict[str, list[float]]
# CLIP's embedding (1, C) of a (3, h, w) image in [0, 1].
Embed = Callable[[Tensor], Tensor]


def measure(
    clips: Mapping[str, Clip],
    flow: Flow,
    flow_name: str,
    embed: Embed | None = None,
    prompt: Tensor | None = None,
) -> Report:
    """Measures clips: warp error and sharpness, and CLIP's similarities if asked for.

    Never more of the clips is held than a few frames.

    Args:
        clips: By name, of one size and length; "source" gives the motion.
        flow: Finds the source's optical flow.
        flow_name: Its name, for the report.
        embed: Embeds frames, to measure how alike neighbouring frames are, or None.
        prompt: The embedded prompt, (1, C), to measure how well frames show it, or None; without
            `embed` it is not used.

    Returns:
        All figures.
    """
    count = len(clips["source"])
    done = Progress(count - 1 + (len(clips) * count if embed else 0))
    figures: dict[str, Figures] = {name: defaultdict(list) for name in clips}
    visible: list[float] = []
    before: dict[str, Seen] = {}
    for block in in_step(clips):
        for moment in zip(*block.values(), strict=True):
            seen = {}
            for name, frame in zip(clips, moment, strict=True):
                seen[name] = Seen.of(frame, embed)
                if embed:
                    done()
                _measure_frame(figures[name], seen[name], prompt)
            if before:
                pair = torch.stack([before["source"].picture, seen["source"].picture])
                motion = source_motion(pair, flow)
                visible.append(float(motion[0][1].float().mean()))
                for name in clips:
                    _measure_pair(figures[name], before[name], seen[name], motion)
                done()
            before = seen
    joined = {
        name: {measure: torch.tensor(found[measure]) for measure in TEXTS if measure in found}
        for name, found in figures.items()
    }
    return Report(joined, torch.tensor(visible), flow_name)


@dataclass(frozen=True)
class Seen:
    """A frame.

    Attributes:
        picture: (3, h, w) in [0, 1].
        embedding: CLIP's, (1, C), or None.
    """

    picture: Tensor
    embedding: Tensor | None

    @classmethod
    def of(cls, frame: Tensor, embed: Embed | None) -> Seen:
        """Looks at a frame.

        Args:
            frame: (h, w, 3) in [0, 1].
            embed: Embeds it, or None.

        Returns:
            What is measured of it.
        """
        picture = frame.movedim(-1, 0)
        return cls(picture, embed(picture) if embed else None)


def _measure_frame(figures: Figures, seen: Seen, prompt: Tensor | None) -> None:
    figures["sharpness"].append(float(sharpness(seen.picture[None])))
    if seen.embedding is not None and prompt is not None:
        figures["prompt_score"].append(float(prompt_scores(seen.embedding, prompt)))


def _measure_pair(
    figures: Figures, first: Seen, second: Seen, motion: list[tuple[Tensor, Tensor]]
) -> None:
    pictures = torch.stack([first.picture, second.picture])
    figures["warp_error"].append(float(warp_errors(pictures, motion)))
    if first.embedding is not None and second.embedding is not None:
        both = torch.cat([first.embedding, second.embedding])
        figures["frame_similarity"].append(float(frame_similarities(both)))
