"""What each choice of ours is worth against the public code's: python3 run.py bench choices [--surface gold] [--frames 12]

Rows go from ours to the public code, one choice at a time: weights by distance or the paper's sigmoid; the nearest keyframes or those of
the own and the previous chunk; matches of the source itself or searched again in every layer on rows that were propagated. Columns:
end-point error of the matches against the world's true flow, mean in pixels over visible tokens (a token of the finest layer is 4 pixels
wide), of all layers and steps, and of the last layer in the cleaner half of the steps; warp error x1e-3 along DIS flow and the true flow;
fidelity; sharpness, the first row = 1; seconds of sampling.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenflow_pack.host.passes import SourceMatchPass
from tokenflow_pack.tokenflow_ops.build import BLENDS
from tokenflow_pack.tokenflow_ops.features import token_grid
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _case import SURFACES, Case, Settings, World, true_flow

ROWS = (
    ("ours", BLENDS[0], "tokenflow"),
    ("the paper's weights", BLENDS[1], "tokenflow"),
    ("own and previous chunk", BLENDS[2], "tokenflow"),
    ("public code", BLENDS[2], "tokenflow, public code"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surface", default="gold", choices=SURFACES)
    parser.add_argument("--frames", type=int, default=12)
    options = parser.parse_args()
    with torch.inference_mode():
        compare(Case(World(), Settings(frames=options.frames)), options.surface)


def compare(case: Case, surface: str) -> None:
    """Prints the table in Markdown."""
    features = case.features(case.invert())
    columns = "end-point error | last layer | warp error | true flow | fidelity | sharpness | seconds"
    print(f"\n{case.settings}\n\n| {case.scene.surface} to {surface} | {columns} |\n|---|---|---|---|---|---|---|---|", flush=True)
    sharpest = 0.0
    for name, blend, mode in ROWS:
        found = case.match(features, blend=blend)
        errors = EndPointErrors(case, found)
        start = time.perf_counter()
        with errors.watching():
            clip = case.edit(found, surface, mode)
        seconds = time.perf_counter() - start
        if mode == "tokenflow":
            errors.of_stored()
        figures = case.figures(clip, surface)
        sharpest = sharpest or figures.sharpness
        print(
            f"| {name} | {errors.mean(errors.all):.2f} | {errors.mean(errors.last):.2f} | {figures.warp:.2f} | {figures.true:.2f} "
            f"| {figures.fidelity:.3f} | {figures.sharpness / sharpest:.2f} | {seconds:.0f} |",
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
            for layer, (past, future) in step.tokens.items():
                for side, tokens in ((step.near.past, past), (step.near.future, future)):
                    self.add(number, layer, torch.arange(len(side)), step.keyframes[side], tokens)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Adds the matches that a run searches for itself."""
        attention = SourceMatchPass.attention

        def seen(frames_pass: SourceMatchPass, call: Any) -> Tensor:
            out = attention(frames_pass, call)
            number = self.inversion.closest_step(float(call.options["sigmas"][0]))
            keyframes = self.found.steps[number].keyframes
            for side, tokens in zip((frames_pass.near.past, frames_pass.near.future), frames_pass.tokens[call.layer], strict=True):
                self.add(number, call.layer, frames_pass.frames, keyframes[side], tokens)
            return out

        SourceMatchPass.attention = seen
        try:
            yield
        finally:
            SourceMatchPass.attention = attention

    def add(self, step: int, layer: str, frames: Tensor, keyframes: Tensor, tokens: Tensor) -> None:
        """frames, keyframes: (n,) frame numbers. tokens: (n, P) matches. A frame to itself is no match."""
        rows, columns = token_grid(tokens.shape[1], *self.inversion.latents.shape[-2:])
        patch = torch.tensor([128 / columns, 128 / rows])
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        here = (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * patch
        for frame, keyframe, match in zip(frames.tolist(), keyframes.tolist(), tokens.long(), strict=True):
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
            self.flows[frame, keyframe] = true_flow(self.case.scene, self.case.times[frame], self.case.times[keyframe])
        return self.flows[frame, keyframe]


if __name__ == "__main__":
    main()
