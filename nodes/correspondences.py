"""Build NN Correspondences."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..host.files.timings import search_timings
from ..host.shards import together
from ..host.validation.checks import check_frame_count
from ..host.validation.errors import NodeError, library_error
from ..host.video.clips import Clip, channels_first
from ..tokenflow_ops import Correspondences, SourceFeatures, build_correspondences
from ..tokenflow_ops.keyframes import ONE_SHOT
from ..tokenflow_ops.libraries import LibraryError, library
from ..tokenflow_ops.matching.build import BLENDS, BY_LIKENESS
from ..tokenflow_ops.matching.cuts import find_cuts
from ..tokenflow_ops.matching.intervals import JOINED, intervals_by_content
from ..tokenflow_ops.matching.search import BACKENDS
from ..tokenflow_ops.measuring.views import principal_colours, rebuild
from .inputs import before_run, checked
from .schema import (
    CELL,
    CorrespondencesSocket,
    FeaturesSocket,
    as_image,
    clip_input,
    said,
    schema,
    shown_frames,
)

NAME = "Build NN Correspondences"
RANDOM, FIXED = "random at every step", "fixed"
FOUND, NO_CUTS = "found", "none"
BY_CONTENT, EVEN = "by content", "even"


class BuildCorrespondences(io.ComfyNode):
    """Stage 1: nearest neighbours between every frame and its keyframes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "BuildCorrespondences",
            NAME,
            "Draws the keyframes and finds, for every token of every frame, the closest token of "
            "the keyframes before and after it.",
            ["nearest neighbours", "faiss", "keyframes", "matching", "tokenflow"],
            advanced=(
                "keyframes",
                "seed",
                "backend",
                "search_window",
                "blend",
                "cuts",
                "intervals",
            ),
            inputs=[
                FeaturesSocket.Input("features", tooltip="From Extract SA Features."),
                io.Int.Input(
                    "keyframe_interval",
                    default=8,
                    min=1,
                    max=4096,
                    tooltip="One keyframe per this many frames. 8 as in the paper; smaller follows "
                    "fast motion better and costs more.",
                ),
                io.Combo.Input(
                    "keyframes",
                    options=[RANDOM, FIXED],
                    default=RANDOM,
                    tooltip="New random keyframes at every step average out errors, as in the "
                    "paper. fixed: the same throughout.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    # A seed that changes with every run would have it match anew.
                    control_after_generate=False,
                    tooltip="Draws the keyframes.",
                ),
                io.Combo.Input(
                    "backend",
                    options=list(BACKENDS),
                    default="auto",
                    tooltip="What searches: FAISS, or a matrix product in torch. auto takes the "
                    "faster one on this machine; it times them once.",
                ),
                io.Int.Input(
                    "search_window",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="How far away a match may be, in latent pixels in each direction. "
                    "0: anywhere in the frame.",
                ),
                clip_input(
                    "frames",
                    optional=True,
                    tooltip="The source frames, only for the picture of rebuilt frames.",
                ),
                io.Combo.Input(
                    "blend",
                    options=list(BLENDS),
                    default=BY_LIKENESS,
                    optional=True,
                    tooltip="nearest: the keyframes before and after a frame, by their distances. "
                    "By likeness: what one does not show comes from the other. The others to "
                    "compare: the paper's weights, the public code's keyframes.",
                ),
                io.Combo.Input(
                    "cuts",
                    options=[FOUND, NO_CUTS],
                    default=FOUND,
                    optional=True,
                    tooltip="found: where another shot begins, keyframes begin anew, and nothing "
                    "is matched or edited jointly across. none: the clip is one shot.",
                ),
                io.Combo.Input(
                    "intervals",
                    options=[BY_CONTENT, EVEN],
                    default=BY_CONTENT,
                    optional=True,
                    tooltip="by content: where the picture stays much the same, up to "
                    f"{JOINED} intervals share one keyframe, which takes less time. even: all are "
                    "alike, as in the paper.",
                ),
            ],
            outputs=[
                CorrespondencesSocket.Output(
                    display_name="correspondences",
                    tooltip="For TokenFlow Sampler or Apply TokenFlow.",
                ),
                io.Image.Output(
                    display_name="rebuilt",
                    tooltip="Each frame rebuilt from its keyframes' patches by the "
                    "matches: holes and tears here become flicker there. Without frames, "
                    "or with a VIDEO, 64 of a long clip.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, backend: str | None = None, search_window: int | None = None
    ) -> bool | str:
        def check() -> None:
            if backend == "faiss":
                _check_faiss(search_window or 0)

        return before_run(cls, {"backend": backend, "search_window": search_window}, check)

    @classmethod
    @checked()
    def execute(
        cls,
        features: SourceFeatures,
        keyframe_interval: int = 8,
        keyframes: str = RANDOM,
        seed: int = 0,
        backend: str = "auto",
        search_window: int = 0,
        frames: Any = None,
        blend: str = BY_LIKENESS,
        cuts: str = FOUND,
        intervals: str = BY_CONTENT,
    ) -> io.NodeOutput:
        clip, cut = None, ""
        if frames is not None:
            clip = Clip.of(NAME, "frames", frames)
            check_frame_count(NAME, clip, features.inversion)
            clip, cut = clip.as_encoded(features.inversion)
        progress = ProgressBar(1)

        if backend == "faiss":
            _check_faiss(search_window)
        device = model_management.get_torch_device()
        check = model_management.throw_exception_if_processing_interrupted
        try:
            shots: tuple[int, ...] = ONE_SHOT
            starts: tuple[int, ...] | None = None
            if cuts == FOUND:
                latents = features.inversion.latents[-1]
                shots = together().once(partial(find_cuts, latents, device, check))
            if intervals == BY_CONTENT:
                starts = intervals_by_content(
                    features, keyframe_interval, device, check, shots, together()
                )
            found = build_correspondences(
                features,
                keyframe_interval,
                seed,
                keyframes == FIXED,
                backend,
                search_window,
                device,
                on_pairs=progress.update_absolute,
                check=check,
                blend=blend,
                timings=search_timings(),
                shots=shots,
                starts=starts,
            )
        except LibraryError as error:
            raise _no_faiss(error) from error
        except ValueError as error:
            raise NodeError(NAME, "features", f"{error}.", "Check what was extracted.") from error
        count = len(found.steps[0].keyframes)
        sizes = len(features.descriptors)
        ends = pairwise((*found.starts, features.inversion.frames))
        lengths = sorted({stop - first for first, stop in ends})
        told_lengths = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else str(lengths[0])
        text = (
            f"{features.inversion.frames} frames, {count} keyframes a step, "
            f"one in {told_lengths} frames, {sizes} sizes matched by {found.backend}"
        )
        shown = [str(first + 1) for first in found.shots[1:]]
        told = f"cuts found: shots begin at frame {', '.join(shown)}" if shown else ""
        return io.NodeOutput(found, _rebuilt(found, clip), ui=said(text, told, cut))


def _rebuilt(found: Correspondences, clip: Clip | None) -> torch.Tensor:
    """The frames rebuilt at a low noise level.

    Without frames: the latents' principal components of those frames that are shown.
    """
    features = found.features
    latents = features.inversion.latents[-1]
    count, _, height, width = latents.shape
    matches, grid = found.steps[round(0.8 * (len(found.steps) - 1))], features.grid(features.finest)
    if clip is not None:
        shown = shown_frames(count) if clip.streamed else torch.arange(count)
        return rebuild(channels_first(clip), matches, features.finest, grid, shown).movedim(1, -1)
    colours = (
        principal_colours(lambda i: latents[i].flatten(1).T, count)
        .movedim(-1, 1)
        .unflatten(2, (height, width))
    )
    return as_image(
        rebuild(colours.__getitem__, matches, features.finest, grid, shown_frames(count)),
        height * CELL,
        width * CELL,
    )


def _check_faiss(search_window: int) -> None:
    """Raises: NodeError where FAISS is missing or cannot do what is asked for."""
    try:
        library("faiss")
    except LibraryError as error:
        raise _no_faiss(error) from error
    if search_window:
        found = "FAISS searches the whole frame."
        raise NodeError(NAME, "search_window", found, "Choose auto or torch as backend, or 0 here.")


def _no_faiss(error: LibraryError) -> NodeError:
    return library_error(NAME, error, "backend", "auto or torch")
