"""Preview Features and Preview Correspondences: what the method sees, as pictures."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...host.measuring.cropping import Size
from ...host.measuring.reconstruction import spread_frames
from ...host.progress import Progress
from ...host.validation.checks import check_frame_count
from ...host.validation.errors import NodeError
from ...host.video.clips import Clip, channels_first
from ...reporting.grid import captioned_grid
from ...reporting.plots import heat_map, plot_timeline
from ...tokenflow_ops import JOINT_KEYFRAMES, Correspondences, Descriptor, SourceFeatures
from ...tokenflow_ops.features.grid import token_grid
from ...tokenflow_ops.keyframes import shot_windows
from ...tokenflow_ops.measuring.views import (
    feature_colours,
    match_motion,
    match_similarity,
    motion_colours,
    rebuild,
)
from ..inputs import before_run, checked
from ..presets import MOST_KEYFRAMES, NUMBER_BY_PRESET
from ..schema import (
    CELL,
    MOST_SHOWN,
    CorrespondencesSocket,
    FeaturesSocket,
    as_image,
    clip_input,
    lines,
    most_frames_input,
    noise_level_input,
    preview,
    schema,
    shown_frames,
    step_at,
)

FEATURES, CORRESPONDENCES = "Preview Features", "Preview Correspondences"
NEEDS = ("kornia", "matplotlib")  # of the latter
RESOLUTIONS = FINEST, *_ = "finest", "2 x coarser", "4 x coarser", "8 x coarser"
NOISE_LEVEL = 0.1
LISTED = 8  # layers that an error names
# Share of the tokens with the least similar matches that are all shown as least sure.
LEAST_SURE = 0.02


class PreviewFeatures(io.ComfyNode):
    """The features as colours."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "PreviewFeatures",
            FEATURES,
            "Shows the features of the source frames as colours, their three strongest components "
            "as red, green and blue: tokens of equal colour will be matched.",
            ["pca", "principal components", "visualize features", "self attention map", "debug"],
            advanced=("layer",),
            inputs=[
                FeaturesSocket.Input("features", tooltip="From Extract SA Features."),
                io.Combo.Input(
                    "resolution",
                    options=list(RESOLUTIONS),
                    default=FINEST,
                    tooltip="Which tokens are shown, with what they are matched on. finest: those "
                    "of the UNet's largest self-attention layers.",
                ),
                noise_level_input(NOISE_LEVEL),
                io.String.Input(
                    "layer",
                    default="",
                    tooltip="The features of one self-attention layer alone instead, by its "
                    "name in the UNet, such as "
                    "output_blocks.8.1.transformer_blocks.0.attn1. Empty: by resolution.",
                ),
                most_frames_input(MOST_SHOWN),
                clip_input(
                    "frames",
                    optional=True,
                    tooltip="The source frames, only for the size of the pictures. Without them a "
                    "latent pixel is 8 pixels wide.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="components",
                    tooltip="A picture per frame, as large as the clip. All "
                    "frames share their colours.",
                )
            ],
            is_output_node=True,
        )

    @classmethod
    @checked()
    def execute(
        cls,
        features: SourceFeatures,
        resolution: str = FINEST,
        noise_level: float = NOISE_LEVEL,
        layer: str = "",
        most_frames: int = MOST_SHOWN,
        frames: Any = None,
    ) -> io.NodeOutput:
        inversion = features.inversion
        height, width = (side * CELL for side in inversion.latents.shape[-2:])
        cut = ""
        if frames is not None:
            clip, cut = Clip.of(FEATURES, "frames", frames).as_encoded(inversion)
            height, width = clip.size
        descriptor = (
            _layer(features, layer.strip()) if layer.strip() else _descriptor(features, resolution)
        )
        step = step_at(noise_level, len(inversion.sigmas) - 1)
        shown = shown_frames(inversion.frames, most_frames)
        colours = feature_colours(features, descriptor, step, shown, Progress(len(shown)))
        components = as_image(colours, height, width)
        rows, columns = features.grid(descriptor)
        text = (
            f"{columns} x {rows} tokens at sigma {float(inversion.sigmas[step]):.2f}\n"
            + "\n".join(descriptor)
        )
        return io.NodeOutput(
            components, ui=preview(components[spread_frames(len(shown))], lines(text, cut))
        )


def _descriptor(features: SourceFeatures, resolution: str) -> Descriptor:
    """What tokens of a resolution are matched on. Raises: NodeError if the model has none there."""
    rows, columns = features.grid(features.finest)
    for _ in range(RESOLUTIONS.index(resolution)):
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    found = [layer for layer, (tokens, _) in features.shapes.items() if tokens == rows * columns]
    if not found:
        sizes = sorted({tokens for tokens, _ in features.shapes.values()}, reverse=True)
        grids = [token_grid(tokens, *features.inversion.latents.shape[-2:]) for tokens in sizes]
        listed = ", ".join(f"{columns} x {rows}" for rows, columns in grids)
        raise NodeError(
            FEATURES,
            "resolution",
            f"{resolution}, {columns} x {rows} tokens; this model has {listed}.",
            "Choose a finer one.",
        )
    return features.matched_by[found[-1]]


def _layer(features: SourceFeatures, layer: str) -> Descriptor:
    """One layer alone. Raises: NodeError if the model has none of that name."""
    if layer not in features.shapes:
        names = list(features.shapes)
        listed = ", ".join(names[-LISTED:])
        more = f", {len(names) - LISTED} before them" if len(names) > LISTED else ""
        raise NodeError(
            FEATURES,
            "layer",
            f"no self-attention layer is called {layer[:80]!r}.",
            f"Leave it empty, or take {listed}{more}.",
        )
    return (layer,)


class PreviewCorrespondences(io.ComfyNode):
    """The matches as pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "PreviewCorrespondences",
            CORRESPONDENCES,
            "Shows what the matches carry from keyframes to frames: each frame rebuilt "
            "from its keyframes, how sure the matches are and how they move, and when "
            "which frame is a keyframe.",
            [
                "visualize matches",
                "confidence",
                "optical flow",
                "keyframe timeline",
                "warp check",
                "debug",
            ],
            advanced=("attended_keyframes",),
            inputs=[
                CorrespondencesSocket.Input(
                    "correspondences", tooltip="From Build NN Correspondences."
                ),
                clip_input("frames", tooltip="The source frames, the images that were encoded."),
                noise_level_input(NOISE_LEVEL),
                io.Int.Input(
                    "attended_keyframes",
                    default=NUMBER_BY_PRESET,
                    min=NUMBER_BY_PRESET,
                    max=MOST_KEYFRAMES,
                    tooltip="As in TokenFlow Sampler, for the windows of a long clip in the "
                    "timeline. -1: as preset, 8 unless faithful.",
                ),
                most_frames_input(MOST_SHOWN),
            ],
            outputs=[
                io.Image.Output(
                    display_name="rebuilt",
                    tooltip="Each frame made of patches of its keyframes, blended as the edit is: "
                    "what is torn or doubled here will be in the edit.",
                ),
                io.Image.Output(
                    display_name="confidence",
                    tooltip="How alike each token and its matches are, over the frame in grey: "
                    "blue is sure, red is doubtful, on one scale for all frames.",
                ),
                io.Image.Output(
                    display_name="motion",
                    tooltip="Where matches say that things move: the hue is the direction, white "
                    "stands still. Keyframes are white.",
                ),
                io.Image.Output(
                    display_name="timeline",
                    tooltip="A dot for each keyframe: frames from left to right, steps downwards. "
                    "Every other window of a long clip is shaded.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, noise_level: float | None = None) -> bool | str:
        return before_run(cls, {"noise_level": noise_level}, needs=NEEDS)

    @classmethod
    @checked(needs=NEEDS)
    def execute(
        cls,
        correspondences: Correspondences,
        frames: Any,
        noise_level: float = NOISE_LEVEL,
        attended_keyframes: int = NUMBER_BY_PRESET,
        most_frames: int = MOST_SHOWN,
    ) -> io.NodeOutput:
        features = correspondences.features
        total = features.inversion.frames
        clip = Clip.of(CORRESPONDENCES, "frames", frames)
        check_frame_count(CORRESPONDENCES, clip, features.inversion)
        clip, cut = clip.as_encoded(features.inversion)
        shown = shown_frames(total, most_frames)
        source = clip[shown]
        step = step_at(noise_level, len(correspondences.steps))
        descriptor, grid = features.finest, features.grid(features.finest)
        matches, done = correspondences.steps[step], Progress(2 * len(shown))
        pictures = rebuild(channels_first(clip), matches, descriptor, grid, shown, done)
        similarity = match_similarity(features, matches, descriptor, step, shown, done)
        views = {
            "rebuilt": _sized(pictures, clip.size),
            "confidence": heat_map(_sureness(similarity), source),
            "motion": as_image(
                motion_colours(match_motion(matches, descriptor, grid, shown)), *clip.size
            ),
        }
        few = spread_frames(len(shown))
        overview = captioned_grid(
            {"source": source[few], **{name: view[few] for name, view in views.items()}},
            columns=4,
        )
        keyframes = ", ".join(map(str, matches.keyframes.tolist()))
        text = (
            f"keyframes {keyframes}\nsimilarity of matches {similarity.mean():.3f} in the mean, "
            f"{_least(similarity):.3f} where least sure"
        )
        return io.NodeOutput(
            *views.values(),
            _timeline(correspondences, attended_keyframes),
            ui=preview(overview, lines(text, cut)),
        )


def _sized(pictures: torch.Tensor, size: Size) -> torch.Tensor:
    """Pictures (n, 3, h, w) as an IMAGE of the frames' height and width."""
    if pictures.shape[2:] != size:
        pictures = torch.nn.functional.interpolate(pictures, size, mode="bilinear")
    return pictures.movedim(1, -1)


def _least(similarity: torch.Tensor) -> float:
    """What the least sure tokens do not pass."""
    sample = similarity.flatten()
    return float(sample[:: -(-len(sample) // 2**20)].quantile(LEAST_SURE))


def _sureness(similarity: torch.Tensor) -> torch.Tensor:
    """From 0 for the least sure tokens of all frames to 1 for matches with the same features."""
    return 1 - ((1 - similarity) / max(1 - _least(similarity), 1e-4)).clamp(0, 1)


def _timeline(correspondences: Correspondences, attended_keyframes: int) -> torch.Tensor:
    keyframes = [step.keyframes.tolist() for step in correspondences.steps]
    frames, shots = correspondences.features.inversion.frames, correspondences.shots
    limit = attended_keyframes if attended_keyframes > 0 else JOINT_KEYFRAMES
    # An interval has one keyframe.
    borders = [*correspondences.starts, frames]
    spans, anchors = [], []
    for first, windows in shot_windows(correspondences.steps[0].keyframes, shots, limit):
        spans += [(borders[first + own.start], borders[first + own.stop]) for own in windows.own]
        anchors += (first + windows.anchors).tolist()
    return plot_timeline(keyframes, frames, spans, anchors)
