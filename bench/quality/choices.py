"""What each choice of ours is worth.

    python3 run.py bench choices [--clip 0] [--surface gold] [--frames 16] [--steps 12] [--rows ...]

The default, the default with one choice changed at a time, then the way to the public code's:
everything as in the paper; with its weights; with the keyframes of the own and the previous chunk;
with matches searched again in every layer on rows that were propagated, from its own inversion and
noise levels. Columns: end-point error of
the matches against the world's true flow, mean in pixels over visible tokens (a token of the finest
layer is 4 pixels wide), of all layers and steps, and of the last layer in the cleaner half of the
steps; warp error x1e-3 along DIS flow and the true flow; fidelity; sharpness and the time of
sampling, the first row = 1 (of single runs: the time is a rough figure).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenflow_pack.nodes.correspondences import EVEN
from tokenflow_pack.nodes.presets import ATTENTION
from tokenflow_pack.tokenflow_ops.features.grid import token_grid
from tokenflow_pack.tokenflow_ops.matching.build import BLENDS
from tokenflow_pack.tokenflow_ops.passes import SourceMatchPass
from torch import Tensor

from bench.tools.case import SURFACES, Case, Settings, World, true_flow
from bench.tools.public_code import public_inversion


@dataclass(frozen=True)
class Choice:
    """features, build, sampling: inputs of Extract SA Features, Build NN Correspondences and
    TokenFlow Sampler other than the defaults.
    """

    name: str
    features: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    public: bool = False


PAPER: dict[str, Any] = {
    "features": {"steps": "every", "layers": "all"},
    "sampling": {"carry_until": 0.0, "propagation": ATTENTION},
}
ROWS = (
    Choice("default"),
    Choice("no pictures carried", sampling={"carry_until": 0.0}),
    Choice("pictures carried for half of the schedule", sampling={"carry_until": 0.5}),
    Choice("attention's output carried, not deep features", sampling={"propagation": ATTENTION}),
    Choice("every layer matched on itself", features={"layers": "all"}),
    Choice(
        "every layer matched on itself at every noise level",
        features={"layers": "all", "steps": "every"},
    ),
    Choice("matched within 8 latent pixels", build={"search_window": 8}),
    Choice("a keyframe in 4 frames", build={"keyframe_interval": 4}),
    Choice("even intervals", build={"intervals": EVEN}),
    Choice("as in the paper, our weights", **PAPER, build={"intervals": EVEN}),
    Choice("as in the paper", **PAPER, build={"blend": BLENDS[1], "intervals": EVEN}),
    Choice("own and previous chunk", **PAPER, build={"blend": BLENDS[2], "intervals": EVEN}),
    Choice("preset faithful", sampling={"preset": "faithful"}),
    Choice("preset fast", sampling={"preset": "fast"}),
    Choice("preset draft", sampling={"preset": "draft"}),
    Choice("preset lean", sampling={"preset": "lean"}),
    Choice(
        "public code",
        PAPER["features"],
        {"blend": BLENDS[2], "intervals": EVEN},
        {"consistency": "tokenflow, public code"},
        public=True,
    ),
)


def main() -> None:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", type=int, default=0)
    parser.add_argument("--surface", default="gold", choices=SURFACES)
    Settings.add_to(parser)
    parser.add_argument("--rows", nargs="+", default=names, choices=names, metavar="ROW")
    options = parser.parse_args()
    with torch.inference_mode():
        world = World(options.model)
        case = Case.numbered(world, Settings.of(options), options.clip)
        rows = [
            row
            for row in ROWS
            if row.name in options.rows
            and world.takes(row.sampling.get("consistency", "tokenflow"))
        ]
        compare(case, options.surface, rows)


def compare(case: Case, surface: str, rows: list[Choice]) -> None:
    """Prints the table in Markdown."""
    inversions = {False: case.invert()}
    if any(row.public for row in rows):
        inversions[True] = public_inversion(case)
    columns = "end-point error | last layer | warp error | true flow | fidelity | sharpness | time"
    print(f"\n{case.settings}\n\n| {case.scene.surface} to {surface} | {columns} |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    sharpest = longest = 0.0
    for row in rows:
        features = case.features(inversions[row.public], storage="memory", **row.features)
        found = case.match(features, **row.build)
        errors = EndPointErrors(case, found)
        start = time.perf_counter()
        with errors.watching():
            clip = case.edit(found, surface, **row.sampling)
        seconds = time.perf_counter() - start
        if not errors.all:
            errors.of_stored()
        figures = case.figures(clip, surface)
        sharpest, longest = sharpest or figures.sharpness, longest or seconds
        print(
            f"| {row.name} | {errors.mean(errors.all):.2f} | {errors.mean(errors.last):.2f} "
            f"| {figures.warp:.2f} | {figures.true:.2f} | {figures.fidelity:.3f} "
            f"| {figures.sharpness / sharpest:.2f} | {seconds / longest:.2f} |",
            flush=True,
        )


class EndPointErrors:
    """Distances between where matches point and where the true flow goes, in pixels."""

    def __init__(self, case: Case, found: Any) -> None:
        self.case, self.found = case, found
        self.inversion = found.features.inversion
        self.flows: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.layer = list(found.features.shapes)[-1]
        self.all: list[Tensor] = []
        self.last: list[Tensor] = []

    def mean(self, errors: list[Tensor]) -> float:
        """Over all visible tokens seen so far."""
        return float(torch.cat(errors).mean())

    def of_stored(self) -> None:
        """All matches of the correspondences, both sides."""
        for number, step in enumerate(self.found.steps):
            for layer in self.found.features.shapes:
                for side, tokens in zip(
                    (step.near.past, step.near.future),
                    self.found.tokens(number, layer),
                    strict=True,
                ):
                    self.add(number, layer, torch.arange(len(side)), step.keyframes[side], tokens)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Adds the matches that a run searches for itself."""
        attention = SourceMatchPass.attention

        def seen(frames_pass: SourceMatchPass, call: Any) -> Tensor:
            out = attention(frames_pass, call)
            number = self.inversion.closest_step(float(call.options["sigmas"][0]))
            keyframes = self.found.steps[number].keyframes
            for side, tokens in zip(
                (frames_pass.near.past, frames_pass.near.future),
                frames_pass.tokens(call.layer),
                strict=True,
            ):
                self.add(number, call.layer, frames_pass.frames, keyframes[side], tokens)
            return out

        SourceMatchPass.attention = seen
        try:
            yield
        finally:
            SourceMatchPass.attention = attention

    def add(self, step: int, layer: str, frames: Tensor, keyframes: Tensor, tokens: Tensor) -> None:
        """frames, keyframes: (n,) frame numbers. tokens: (n, P) matches.

        A frame to itself is no match.
        """
        rows, columns = token_grid(tokens.shape[1], *self.inversion.latents.shape[-2:])
        patch = torch.tensor([128 / columns, 128 / rows])
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        here = (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * patch
        for frame, keyframe, match in zip(
            frames.tolist(), keyframes.tolist(), tokens.long(), strict=True
        ):
            if frame == keyframe:
                continue
            flow, hidden = self.flow(frame, keyframe)
            at = (here[:, 1].long(), here[:, 0].long())
            error = (here[match] - here - flow[:, at[0], at[1]].T).norm(dim=1)[~hidden[at]]
            self.all.append(error)
            if layer == self.layer and step >= len(self.found.steps) // 2:
                self.last.append(error)

    def flow(self, frame: int, keyframe: int) -> tuple[Tensor, Tensor]:
        """True flow between two frames and its occlusion mask."""
        if (frame, keyframe) not in self.flows:
            self.flows[frame, keyframe] = true_flow(
                self.case.scene, self.case.times[frame], self.case.times[keyframe]
            )
        return self.flows[frame, keyframe]


if __name__ == "__main__":
    main()
