"""What a node's result has to be, whatever the inputs:
as many and as large as they say, and finite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import folder_paths
import torch
from tokenflow_pack.host.files.folders import SUFFIX
from tokenflow_pack.host.video.reading import read_frames
from tokenflow_pack.nodes.correspondences import EVEN
from tokenflow_pack.tokenflow_ops.matching.intervals import JOINED

from .bad_input import (
    APPLY,
    BUILD,
    CARRY,
    CHECK,
    COMPARE,
    CORRESPONDENCES,
    ENCODE,
    EXTRACT,
    FEATURES,
    FIND_MASK,
    FOLDER,
    INJECTION,
    INVERT,
    LOAD,
    METRICS,
    PICK,
    SAMPLER,
    SAVE,
    TO_VIDEO,
    TUNE,
)


def finite(*numbers: torch.Tensor) -> None:
    for tensor in numbers:
        assert tensor.is_floating_point()
        assert torch.isfinite(tensor).all()


def pictures(images: torch.Tensor, count: int) -> None:
    finite(images)
    assert images.ndim == 4
    assert len(images) == count
    assert images.shape[-1] == 3
    assert images.numel()


def shown(total: int, most: int) -> int:
    return min(total, most or total)


def sane_path(given: dict[str, Any], inversion: Any, noisy: Any, sigmas: torch.Tensor) -> None:
    samples = given["latents"]["samples"] if given.get("latents") else inversion.latents[-1]
    assert inversion.latents.shape == (len(sigmas), *samples.shape)
    assert noisy["samples"].shape == samples.shape
    finite(inversion.latents, noisy["samples"], sigmas)
    if "steps" in given:
        assert len(sigmas) == 1 + max(1, round(given["steps"] * given.get("depth", 1.0)))


def sane_saved(given: dict[str, Any]) -> None:
    root = Path(folder_paths.get_output_directory()).resolve()
    newest = max(root.rglob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
    assert newest.resolve().is_relative_to(root)
    assert newest.stat().st_size > given["inversion"].latents.numel() * 4


def sane_features(given: dict[str, Any], features: Any, components: torch.Tensor) -> None:
    assert features.inversion is given["inversion"]
    pictures(components, features.inversion.frames)


def sane_matches(given: dict[str, Any], found: Any, rebuilt: torch.Tensor) -> None:
    frames = given["features"].inversion.frames
    assert len(found.steps) == len(given["features"].inversion.sigmas) - 1
    interval = given["keyframe_interval"]
    lengths = [stop - first for first, stop in pairwise((*found.starts, frames))]
    assert all(1 <= length <= JOINED * interval for length in lengths)
    if given.get("intervals") == EVEN:
        assert len(lengths) == math.ceil(frames / interval)
    assert all(len(step.keyframes) == len(lengths) for step in found.steps)
    pictures(rebuilt, frames)


def sane_edit(given: dict[str, Any], latent: dict[str, torch.Tensor]) -> None:
    finite(latent["samples"])
    assert latent["samples"].shape == given["correspondences"].features.inversion.latents.shape[1:]


def sane_patch(given: dict[str, Any], model: Any) -> None:
    assert model is not given["model"]
    assert model.model is given["model"].model


def sane_figures(
    given: dict[str, Any], text: str, plot: torch.Tensor, figures: str, table: torch.Tensor
) -> None:
    lines = [line for line in text.splitlines() if not line.endswith("as VAE Encode crops")]
    assert len(json.loads(figures)["clips"]) == len(lines) >= 2
    finite(plot, table)


def frames_of(clip: Any) -> torch.Tensor:
    """Of an IMAGE or a VIDEO."""
    return clip if isinstance(clip, torch.Tensor) else clip.get_components().images


def sane_grid(given: dict[str, Any], grid: torch.Tensor, video: Any) -> None:
    pictures(grid, 1 if given.get("moments") else len(frames_of(given["source"])))
    assert torch.equal(frames_of(video), grid)


def sane_check(
    given: dict[str, Any], back: torch.Tensor, beside: torch.Tensor, plot: torch.Tensor, text: str
) -> None:
    count = shown(given["inversion"].frames, given["most_frames"])
    pictures(back, count)
    pictures(beside, count)
    assert "nan" not in text


def sane_tuning(
    given: dict[str, Any], model: Any, lora: dict[str, torch.Tensor], losses: dict[str, list[float]]
) -> None:
    sane_patch(given, model)
    finite(*lora.values(), torch.tensor(losses["loss"]))
    assert len(losses["loss"]) == given["steps"]


def sane_view(given: dict[str, Any], *views: torch.Tensor) -> None:
    made = given["features"] if "features" in given else given["correspondences"].features
    for view in views[:3]:
        pictures(view, shown(made.inversion.frames, given.get("most_frames", 64)))


def sane_masks(
    given: dict[str, Any], masks: torch.Tensor, dimmed: torch.Tensor, outlines: torch.Tensor
) -> None:
    pictures(dimmed, given["inversion"].frames)
    assert masks.shape == dimmed.shape[:3]
    assert masks.dtype == torch.float32
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert outlines.shape == masks.shape
    finite(outlines)


def sane_encoded(given: dict[str, Any], latent: dict[str, Any], rate: float, start: float) -> None:
    wanted = range(len(given["video"].get_components().images))[given.get("start", 0) :]
    wanted = wanted[:: given.get("every", 1)][: given.get("count") or None]
    assert len(latent["samples"]) == len(wanted)
    finite(latent["samples"], torch.tensor([rate, start]))


def sane_video(given: dict[str, Any], video: Any) -> None:
    # Newer hosts read no video of fewer than 16 columns; the pack does.
    read = torch.stack(list(read_frames("a test", "video", video)))
    pictures(read, len(given["samples"]["samples"]))


def sane_clip(given: dict[str, Any], video: Any, *texts: str) -> None:
    # The input folder has the demo's clip, the table's own a single one.
    assert texts == ("tokenflow_star" if given["folder"] == "." else "a", "", "")
    assert video.get_dimensions()[0] > 0


def sane_pick(given: dict[str, Any], keyframes: torch.Tensor, numbers: str) -> None:
    chosen = [int(word) for word in numbers.split(", ")]
    assert chosen == sorted(set(chosen))
    assert torch.equal(keyframes, frames_of(given["frames"])[chosen][..., :3].float())


def sane_carry(
    given: dict[str, Any], carried: Any, clip: torch.Tensor, hidden: torch.Tensor
) -> None:
    pictures(clip, len(given["frames"]))
    assert hidden.shape == clip.shape[:3]
    finite(hidden)
    assert carried is None or len(carried.latents) == len(clip)


SANE: dict[str, Callable[..., None]] = {
    INVERT: sane_path,
    LOAD: sane_path,
    SAVE: sane_saved,
    EXTRACT: sane_features,
    BUILD: sane_matches,
    INJECTION: lambda given, injection: None,
    SAMPLER: sane_edit,
    APPLY: sane_patch,
    METRICS: sane_figures,
    COMPARE: sane_grid,
    CHECK: sane_check,
    TUNE: sane_tuning,
    FEATURES: sane_view,
    CORRESPONDENCES: sane_view,
    FIND_MASK: sane_masks,
    ENCODE: sane_encoded,
    TO_VIDEO: sane_video,
    FOLDER: sane_clip,
    PICK: sane_pick,
    CARRY: sane_carry,
}
