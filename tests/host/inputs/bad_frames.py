"""Bad input: latents, pictures and masks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .bad_input import (
    APPLY,
    BUILD,
    CHECK,
    COMPARE,
    CORRESPONDENCES,
    FEATURES,
    FIND_MASK,
    INVERT,
    LOAD,
    METRICS,
    SAMPLER,
    TUNE,
    Row,
    frames,
    latents,
    run,
    sampled,
    wrong,
)


def samples(*shape: int, **kind: Any) -> Any:
    """Makes a LATENT of zeros."""
    return lambda: {"samples": torch.zeros(*shape, **kind)}


def with_value(value: float) -> Any:
    """Makes a LATENT whose second frame holds such a value."""
    clip = torch.zeros(2, 4, 8, 8)
    clip[1, 2, 3, 4] = value
    return lambda: {"samples": clip}


def nested() -> dict[str, Any]:
    """Newer hosts' audio and video in one."""
    return {"samples": SimpleNamespace(is_nested=True)}


def noise_mask(mask: Any) -> Any:
    """Makes a good LATENT with such a noise mask."""
    return lambda: {**latents(), "noise_mask": mask}


def other_clip() -> dict[str, Tensor]:
    clip = latents()["samples"].clone()
    clip[1] += 0.3
    return {"samples": clip}


def picture(value: float) -> Tensor:
    clip = frames().clone()
    clip[0, 1, 2, 0] = value
    return clip


LATENTS = [
    wrong(
        "a video model's latents",
        INVERT,
        "latents",
        samples(1, 4, 5, 8, 8),
        r"\(1, 4, 5, 8, 8\), .* video model",
        r"\(N, C, h, w\)",
    ),
    wrong(
        "one frame without a batch",
        INVERT,
        "latents",
        samples(4, 8, 8),
        r"\(4, 8, 8\)",
        r"\(N, C, h, w\)",
    ),
    wrong("nested latents", INVERT, "latents", nested, "nested", "image model"),
    wrong(
        "an empty batch",
        INVERT,
        "latents",
        samples(0, 4, 8, 8),
        "empty batch",
        "at least one frame",
    ),
    wrong(
        "latents of no height",
        INVERT,
        "latents",
        samples(2, 4, 0, 8),
        "empty batch",
        "at least one frame",
    ),
    wrong(
        "latents of a few pixels",
        INVERT,
        "latents",
        samples(2, 4, 2, 8),
        "8 x 2, pictures of a few",
        "at least 3 x 3",
    ),
    wrong(
        "another model's channels",
        INVERT,
        "latents",
        samples(3, 16, 8, 8),
        "16 channels, the model takes 4",
        "VAE",
    ),
    wrong("NaN in a frame", INVERT, "latents", with_value(torch.nan), r"frames \[1\]", "fp32-vae"),
    wrong(
        "an infinite frame",
        INVERT,
        "latents",
        with_value(-torch.inf),
        r"infinite latents in frames \[1\]",
        "source images",
    ),
    wrong(
        "whole numbers",
        INVERT,
        "latents",
        samples(2, 4, 8, 8, dtype=torch.int64),
        "torch.int64",
        "VAE Encode",
    ),
    wrong(
        "a LATENT without samples",
        INVERT,
        "latents",
        {"noise_mask": None},
        "dict, which is no LATENT",
        "LATENT",
    ),
    wrong(
        "a tensor in place of a LATENT",
        INVERT,
        "latents",
        torch.zeros(2, 4, 8, 8),
        "Tensor, which is no LATENT",
        "LATENT",
    ),
    wrong(
        "noise masks too many",
        INVERT,
        "latents",
        noise_mask(torch.ones(3, 1, 8, 8)),
        "noise mask of 3 for 2 frames",
        "one for each",
    ),
    wrong(
        "no noise mask",
        LOAD,
        "latents",
        noise_mask(torch.ones(0, 8, 8)),
        "a noise mask: nothing in it",
        "at least one mask",
    ),
    wrong(
        "NaN in a noise mask",
        INVERT,
        "latents",
        noise_mask(torch.full((8, 8), torch.nan)),
        "noise mask: .* nan",
        "without NaN",
    ),
    wrong(
        "a picture as a noise mask",
        INVERT,
        "latents",
        lambda: noise_mask(frames())(),
        "a noise mask: masks of shape",
        "height, width",
    ),
    wrong(
        "a text as a noise mask",
        TUNE,
        "latents",
        noise_mask("left half"),
        "'left half' as the noise mask",
        "Set Latent Noise Mask",
    ),
    wrong(
        "samples that are none",
        TUNE,
        "latents",
        {"samples": [1, 2]},
        "dict, which is no LATENT",
        "LATENT",
    ),
    wrong("no latents to tune on", TUNE, "latents", None, "nothing there", "Connect a LATENT"),
    wrong(
        "a video to tune on", TUNE, "latents", samples(1, 4, 5, 8, 8), "video model", "image model"
    ),
    wrong(
        "another clip than the stored one",
        LOAD,
        "latents",
        other_clip,
        r"frames \[1\] are not those",
        "same frames",
    ),
    wrong(
        "fewer frames than stored",
        LOAD,
        "latents",
        samples(1, 4, 8, 8),
        "1 frames here, 2 in the inversion",
        "one batch",
    ),
    wrong(
        "another size than stored",
        LOAD,
        "latents",
        samples(2, 4, 8, 16),
        "16 x 8 here, 8 x 8",
        "same resolution",
    ),
    Row(
        "fewer frames than matched",
        APPLY,
        "latent_image",
        lambda: other_latents(1, 4, 8, 8),
        "1 frames here, 2",
        "one batch",
    ),
    Row(
        "another size than matched",
        APPLY,
        "latent_image",
        lambda: other_latents(2, 4, 16, 16),
        "16 x 16 here, 8 x 8",
        "same resolution",
    ),
    Row(
        "channels unlike the matched",
        APPLY,
        "latent_image",
        lambda: other_latents(2, 16, 8, 8),
        r"\(2, 16, 8, 8\) here",
        "VAE",
    ),
    Row(
        "a video to sample",
        APPLY,
        "latent_image",
        lambda: other_latents(1, 4, 2, 8, 8),
        "1 frames here, 2",
        "one batch",
    ),
]


def other_latents(*shape: int) -> Tensor:
    return sampled(run(APPLY)[0], torch.ones(shape))


PICTURES = [
    wrong("pictures too many", BUILD, "frames", frames(3), "3 images for 2", "that were encoded"),
    wrong(
        "pictures too few",
        CORRESPONDENCES,
        "frames",
        frames(1),
        "1 images for 2",
        "that were encoded",
    ),
    wrong(
        "pictures to find a mask in too many",
        FIND_MASK,
        "frames",
        frames(3),
        "3 images for 2",
        "that were encoded",
    ),
    wrong(
        "no pictures to find a mask in",
        FIND_MASK,
        "frames",
        None,
        "nothing there",
        "IMAGE",
    ),
    wrong(
        "no picture",
        CHECK,
        "frames",
        frames(0),
        r"nothing in it, shape \(0, 64, 64, 3\)",
        "at least one frame",
    ),
    wrong(
        "pictures of no width",
        FEATURES,
        "frames",
        frames(2, 64, 0),
        "nothing in it",
        "at least one pixel",
    ),
    wrong(
        "pictures of another size than encoded",
        CHECK,
        "frames",
        frames(2, 64, 80),
        "80 x 64 pixels, which .* of 8 x 8",
        "that were encoded",
    ),
    wrong(
        "pictures to rebuild of another size",
        BUILD,
        "frames",
        frames(2, 72, 64),
        "64 x 72 pixels, which .* of 8 x 8",
        "that were encoded",
    ),
    wrong(
        "pictures to look at of another size",
        CORRESPONDENCES,
        "frames",
        frames(2, 56, 64),
        "64 x 56 pixels, which",
        "that were encoded",
    ),
    wrong(
        "pictures to find a mask in of another size",
        FIND_MASK,
        "frames",
        frames(2, 64, 128),
        "128 x 64 pixels, which .* of 8 x 8",
        "that were encoded",
    ),
    wrong(
        "features to look at of another size",
        FEATURES,
        "frames",
        frames(2, 4, 4),
        "4 x 4 pixels, which .* of 8 x 8",
        "that were encoded",
    ),
    wrong(
        "motion of another size",
        SAMPLER,
        "frames",
        frames(2, 64, 128),
        "128 x 64 pixels, which",
        "encoded",
        consistency="rerender",
    ),
    wrong(
        "grey pictures",
        BUILD,
        "frames",
        frames(2, 64, 64, 1),
        r"\(2, 64, 64, 1\)",
        r"\(N, height, width, 3\)",
    ),
    wrong(
        "pictures of two channels",
        COMPARE,
        "edited",
        frames(2, 64, 64, 2),
        r"\(2, 64, 64, 2\)",
        r"\(N, height, width, 3\)",
    ),
    wrong(
        "one picture without a batch",
        CORRESPONDENCES,
        "frames",
        frames()[0],
        r"\(64, 64, 3\)",
        r"\(N, height, width, 3\)",
    ),
    wrong(
        "bytes", METRICS, "edited", lambda: (frames() * 255).byte(), "torch.uint8", "from 0 to 1"
    ),
    wrong(
        "pictures from 0 to 255",
        METRICS,
        "edited",
        lambda: frames() * 255,
        "values from 0.* to 25",
        "from 0 to 1",
    ),
    wrong(
        "pictures from -1 to 1",
        COMPARE,
        "source",
        lambda: frames() * 2 - 1,
        "values from -1 to",
        "from 0 to 1",
    ),
    wrong("NaN in a picture", METRICS, "source", picture(torch.nan), "nan", "without NaN"),
    wrong("an infinite picture", CHECK, "frames", picture(torch.inf), "to inf", "from 0 to 1"),
    wrong("a list of pictures", COMPARE, "edited", [1, 2], "type list, which is no IMAGE", "IMAGE"),
    wrong(
        "latents in place of pictures",
        METRICS,
        "source",
        latents,
        "type dict, which is no IMAGE",
        "IMAGE",
    ),
    wrong(
        "one frame to measure",
        METRICS,
        "source",
        frames(1),
        "1 frame",
        "at least two frames",
        edited=frames(1),
    ),
    wrong(
        "pictures too low to measure",
        METRICS,
        "source",
        frames(2, 1, 9),
        "9 x 1",
        "2 x 2",
        edited=frames(2, 1, 9),
    ),
    wrong(
        "an edit shorter than its source",
        METRICS,
        "edited",
        frames(1),
        "1 frames, the source has 2",
        "equal length",
    ),
    wrong(
        "an edit larger than its source",
        COMPARE,
        "edit_12",
        frames(2, 64, 72),
        "72 x 64 pixels, the source's are 64 x 64",
        "equal size",
    ),
    wrong(
        "a mode that follows motion without pictures",
        SAMPLER,
        "frames",
        None,
        "nothing, and",
        "source frames",
        consistency="rerender",
    ),
    wrong(
        "a mode that follows motion of others",
        APPLY,
        "frames",
        frames(3),
        "3 images for 2",
        "encoded",
        consistency="rerender",
    ),
]
MASKS = [
    wrong("masks too many", SAMPLER, "mask", torch.ones(3, 8, 8), "3 masks for 2", "one for each"),
    wrong("no mask", APPLY, "mask", torch.ones(0, 8, 8), "nothing in it", "at least one mask"),
    wrong("NaN in a mask", SAMPLER, "mask", torch.full((1, 8, 8), torch.nan), "nan", "without NaN"),
    wrong(
        "a mask from 0 to 255", APPLY, "mask", torch.full((8, 8), 255.0), "to 255", "from 0 to 1"
    ),
    wrong(
        "a mask of bits",
        SAMPLER,
        "mask",
        torch.ones(8, 8, dtype=torch.bool),
        "torch.bool",
        "from 0 to 1",
    ),
    wrong(
        "a picture in place of a mask",
        APPLY,
        "mask",
        frames(),
        r"\(2, 64, 64, 3\)",
        r"\(N, height, width\)",
    ),
    wrong(
        "a line in place of a mask",
        SAMPLER,
        "mask",
        torch.ones(8),
        r"\(8,\)",
        r"\(N, height, width\)",
    ),
]
ROWS = [*LATENTS, *PICTURES, *MASKS]
