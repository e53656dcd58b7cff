"""A user's clip: its frames, what its edits share, and what is measured on them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from tokenflow_pack.host.measuring.optical_flow import load_flow
from tokenflow_pack.tokenflow_ops.measuring.metrics import (
    Flow,
    frame_similarities,
    prompt_scores,
    sharpness,
    source_motion,
    warp_errors,
)
from torch import Tensor

import nodes
from bench.tools.case import Editable, Loaded, Settings, channels_first
from bench.tools.memory import spent_on

from .editor import SEED, Task
from .models import NAME, Judges, Scorers, load_scorers
from .pairs import frame_files
from .rows import ROWS, Prepared

FOLDER_RATE = Fraction(24)  # frames a second of a folder of frames, which does not say


class Prompted(Editable):
    """An edit of such a clip is asked for by its whole prompt."""

    def asked(self, surface: str) -> str:
        return surface


@dataclass
class PaperClip:
    """case: the clip with its model. rate: frames a second. flow, scorers: what it is measured
    with.
    """

    case: Prompted
    rate: Fraction
    flow: Flow
    scorers: Scorers
    tuning: int = 0

    @classmethod
    def judged(cls, task: Task, studio: Loaded) -> tuple[Flow, Scorers]:
        """Loads what edits are measured with."""
        judges = Judges(**task.judges)
        return load_flow(NAME, "--flow", judges.flow), load_scorers(judges, studio.clip)

    @classmethod
    def of(cls, task: Task, studio: Loaded, judged: tuple[Flow, Scorers]) -> PaperClip:
        """Reads the clip."""
        settings = Settings(**task.settings)
        frames, rate = read_clip(Path(task.clip), settings.frames)
        scaled = nodes.ImageScale().upscale(frames, "lanczos", task.width, task.height, "center")[0]
        case = Prompted(studio, settings, scaled.clamp(0, 1), task.source)
        return cls(case, rate, *judged, task.tuning)

    @cached_property
    def prepared(self) -> Prepared:
        return Prepared(self.case, SEED, self.tuning, storage="auto", alone=True)

    @cached_property
    def motion(self) -> list[tuple[Tensor, Tensor]]:
        return source_motion(channels_first(self.case.source), self.flow)

    def edit_of(self, task: Task) -> tuple[Tensor, dict[str, Any]]:
        """Makes an edit: (N, H, W, 3), and what it took. sampling: seconds, with the decoding,
        of the processor where there is no GPU; memory: MiB; preparing: seconds of the clock for
        what was not known from the edit before.
        """
        (row,) = (row for row in ROWS if row.name == task.row)
        if not self.case.world.takes(row.mode):
            raise ValueError(f"{row.name} is made for UNets alone")
        known, start = row.source in self.prepared.features, time.perf_counter()
        found = self.prepared.correspondences(row)
        preparing = time.perf_counter() - start
        clip, spent = spent_on(lambda: self.prepared.edit(row, found, task.edit))
        return clip, {
            "sampling": spent.seconds,
            "memory": spent.peak.mib,
            "preparing": preparing,
            "nodes_run": 1 if known else 4,
            "nodes_cached": 3 if known else 0,
        }

    def figures(self, clip: Tensor, prompt: str) -> dict[str, float]:
        """Of a clip (N, H, W, 3). prompt: what it is to show, empty for nothing."""
        pictures = channels_first(clip.float())
        found = {
            "warp": float(warp_errors(pictures, self.motion).nanmean()),
            "sharpness": float(sharpness(pictures).mean()),
        }
        if self.scorers.embed:
            embeddings = torch.cat([self.scorers.embed(picture) for picture in pictures])
            found["frames"] = float(frame_similarities(embeddings).mean())
            if self.scorers.prompt and prompt:
                scores = prompt_scores(embeddings, self.scorers.prompt(prompt))
                found["prompt"] = float(scores.mean())
        return found


def read_clip(path: Path, count: int) -> tuple[Tensor, Fraction]:
    """The first frames of a video or of a folder, (N, H, W, 3) in [0, 1], and frames a second.

    count: how many, 0 for all.

    Raises: ValueError for fewer than two.
    """
    if path.is_dir():
        files = frame_files(path)[: count or None]
        frames = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        rate = FOLDER_RATE
    else:
        with av.open(str(path)) as video:
            rate = Fraction(video.streams.video[0].average_rate or FOLDER_RATE)
            decoded = islice(video.decode(video=0), count or None)
            frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
    if len(frames) < 2 or len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"{path} has {len(frames)} frames; take two or more of one size")
    return torch.from_numpy(np.stack(frames)).float() / 255, rate
