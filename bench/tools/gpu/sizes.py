"""How large the sections' work is: on a GPU, and where it is rehearsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from comfy import model_management

from bench.tools.models import Subject, make_subject

# What a section has found: lines of a table by column.
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Clip:
    """size: pixels. frames, steps: of the inversion and of the sampling alike."""

    size: int
    frames: int
    steps: int


@dataclass(frozen=True)
class Sizes:
    """The work.

    narrow: whether the published layouts have few channels and blocks. edits: of every layout the
    clip that is edited. clip: what other sections edit. lengths: frames of the clips whose peaks
    are compared. passes: frames in passes whose memory is compared with the estimate. tokens: with
    their width, what is searched. mib: what is copied. batch, batches: of the training.
    """

    narrow: bool
    edits: Mapping[str, Clip]
    clip: Clip
    lengths: tuple[int, ...]
    passes: tuple[int, ...]
    tokens: tuple[tuple[int, int], ...]
    mib: int
    batch: int
    batches: int

    def subject(self, kind: str, clip: Clip, frames: int | None = None) -> Subject:
        """A layout and a clip of this size."""
        return make_subject(kind, frames or clip.frames, clip.size, self.narrow)


FULL = Sizes(
    narrow=False,
    edits={"sd15": Clip(512, 40, 50), "sdxl": Clip(1024, 16, 10), "sd3": Clip(1024, 16, 10)},
    clip=Clip(512, 16, 4),
    lengths=(8, 16, 40, 80, 160),
    passes=(1, 2, 4, 8, 16),
    tokens=((4096, 320), (1024, 640), (256, 1280), (4096, 1920)),
    mib=512,
    batch=64,
    batches=20,
)
REHEARSAL = Sizes(
    narrow=True,
    edits={"sd15": Clip(64, 4, 2), "sdxl": Clip(32, 2, 1), "sd3": Clip(64, 4, 2)},
    clip=Clip(64, 4, 1),
    lengths=(2, 3),
    passes=(1, 2),
    tokens=((64, 32),),
    mib=1,
    batch=2,
    batches=1,
)


def device() -> torch.device:
    """Where ComfyUI computes."""
    found: torch.device = model_management.get_torch_device()
    return found


def forget() -> None:
    """Unloads all models, and gives their memory back."""
    model_management.unload_all_models()
    model_management.soft_empty_cache(True)
