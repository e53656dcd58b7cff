"""What each choice of ours is worth against the public code's: python3 run.py bench choices [--surfaces gold] [--frames 12] [--steps 15]

Rows go from ours to the public code, one choice at a time: weights by distance or the paper's sigmoid; the nearest keyframes or those of
the own and the previous chunk; matches of the source itself or searched again in every layer on rows that were propagated. Columns:
end-point error of the matches against the world's true flow, mean in pixels over visible tokens (a token of the finest layer is 4 pixels
wide), of all layers and steps, and of the last layer in the cleaner half of the steps; warp error x1e-3 along DIS flow and the true flow;
fidelity; sharpness, the first row = 1; seconds of sampling.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenflow_pack.host.passes import SourceMatchPass
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.tokenflow_ops.build import BLENDS
from tokenflow_pack.tokenflow_ops.features import token_grid
from tokenflow_pack.tokenflow_ops.metrics import sharpness
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from table import Table, demo_clip, main, true_flow

ROWS = (
    ("ours", BLENDS[0], "tokenflow"),
    ("the paper's weights", BLENDS[1], "tokenflow"),
    ("own and previous chunk", BLENDS[2], "tokenflow"),
    ("public code", BLENDS[2], "tokenflow, public code"),
)


class Choices(Table):
    """The rows of this table on the same clip, edit and figures as `table`."""

    def edit(self, surface: str, floor: float, true_floor: float) -> None:
        prompt = self.encode(self.scene.caption().replace(self.scene.surface, surface))
        columns = "end-point error | last layer | warp error | true flow | fidelity | sharpness | seconds"
        print(f"\n| {self.scene.surface} to {surface} | {columns} |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        sharp = 0.0
        for name, blend, mode in ROWS:
            found = BuildCorrespondences.execute(
                features=self.random.features, keyframe_interval=self.options.interval, seed=self.options.seed, blend=blend
            ).args[0]
            errors = EndPointErrors(found)
            start = time.perf_counter()
            with errors.watching():
                clip = self.sample(prompt, self.options.cfg, mode, PlugAndPlay.execute().args[0], found)
            seconds = time.perf_counter() - start
            if mode == "tokenflow":
                errors.of_stored()
            sharpest = float(sharpness(self.rows(clip)).mean())
            sharp = sharp or sharpest
            print(
                f"| {name} | {errors.mean(errors.all):.2f} | {errors.mean(errors.last):.2f} "
                f"| {self.warp(clip):.2f} | {self.warp(clip, true=True):.2f} "
                f"| {self.fidelity(clip, surface):.3f} | {sharpest / sharp:.2f} | {seconds:.0f} |",
                flush=True,
            )


class EndPointErrors:
    """Distances between where matches point and where the true flow goes, in pixels."""

    def __init__(self, found: Any) -> None:
        self.found = found
        self.inversion = found.features.inversion
        self.scene, self.times = demo_clip()
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
            self.flows[frame, keyframe] = true_flow(self.scene, self.times[frame], self.times[keyframe])
        return self.flows[frame, keyframe]


if __name__ == "__main__":
    main(Choices, __doc__)
