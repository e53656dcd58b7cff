"""What tells wrong matches without knowing the motion, and what would make matches better.

    python3 run.py bench confidence [--kinds plain enter ...] [--first 1] [--frames 8]

For every token of every frame and its match in a keyframe, on clips whose true flow is known, one
of each kind (demo/clips.py).

First table: how often a token with a bad match has the lower value than one with a good match (0.5
by chance, 1 always). Wrong: over two tokens off. Hidden: nothing there to match. Rows: similarity
of the whole descriptor, of its finest layer alone; minus the distance to where the match's own
match is; the lead over the best match elsewhere; minus the squared difference of the pixels.

Second table: end-point error of matches that there is something to match for, in tokens, mean and
median, and the share that is wrong, of all and of the object's. Rows: as they are; between the
tokens, by a parabola through their similarities; the best ones near where dense optical flow leads;
that flow alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from clips import KINDS, Clip
from tokenflow_pack.tokenflow_ops.measuring.metrics import dis_flow
from torch import Tensor

from bench.quality.truth import numbers
from bench.tools.case import Settings, World, channels_first
from bench.tools.markdown import table
from bench.tools.truth import TruthCase

WRONG, ELSEWHERE, NEAR = 2, 2, 2  # tokens
WAYS = ("nearest", "between tokens", "near the optical flow", "optical flow")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND"
    )
    parser.add_argument("--first", type=int, default=1, help="the first clip's number")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--interval", type=int, default=4)
    options = parser.parse_args()
    settings = Settings(frames=options.frames, steps=options.steps, interval=options.interval)
    found: list[dict[str, Tensor]] = []
    with torch.inference_mode():
        world = World()
        for kind in options.kinds:
            clip = Clip(kind, numbers(kind, options.first, 1)[0], settings.frames)
            found.append(compare_all(TruthCase(world, settings, clip)))
            print(f"\n{kind} {clip.number}: {clip.caption}")
            show(found[-1])
    if len(found) > 1:
        print("\nall")
        show({name: torch.cat([values[name] for values in found]) for name in found[0]})


def show(found: dict[str, Tensor]) -> None:
    """Prints both tables of some tokens, as of `compare`."""
    values = dict(found)
    errors = {way: values.pop(way) for way in WAYS}
    hidden, edited = values.pop("hidden").bool(), values.pop("edited").bool()
    wrong = errors["nearest"] > WRONG
    shares = f"wrong {wrong[~hidden].float().mean():.2f}, hidden {hidden.float().mean():.2f}"
    print(f"{shares}\n")
    table(
        ["", "wrong", "hidden", "either"],
        (
            [
                name,
                f"{lower(value[~hidden], wrong[~hidden]):.2f}",
                f"{lower(value, hidden):.2f}",
                f"{lower(value, wrong | hidden):.2f}",
            ]
            for name, value in values.items()
        ),
    )
    print()
    table(
        ["matches", "mean", "median", "wrong", "wrong on the object"],
        (
            [
                way,
                f"{error[~hidden].mean():.2f}",
                f"{error[~hidden].median():.2f}",
                f"{(error[~hidden] > WRONG).float().mean():.3f}",
                f"{(error[~hidden & edited] > WRONG).float().mean():.3f}",
            ]
            for way, error in errors.items()
        ),
    )


def compare_all(case: TruthCase) -> dict[str, Tensor]:
    """What `compare` yields, of all frames together."""
    matches = case.match(case.features(case.invert(), storage="memory"), keyframes="fixed")
    pairs = list(compare(case, matches))
    return {name: torch.cat([pair[name] for pair in pairs]) for name in pairs[0]}


def compare(case: TruthCase, found: Any) -> Iterator[dict[str, Tensor]]:
    """What is known of the matches of each frame to a keyframe, (P,) each: the errors of WAYS in
    tokens, whether it is hidden or of the object, and the measures.
    """
    features, step = found.features, found.steps[0]
    descriptor, grid = features.finest, features.grid(features.finest)
    layers = {layer: features.store.get(features.steps[0], layer) for layer in descriptor}
    whole, finest = (
        F.normalize(tokens.float(), dim=-1)
        for tokens in (features.describe(layers, descriptor), layers[descriptor[-1]])
    )
    pictures = channels_first(case.source)
    pixels = F.interpolate(pictures, grid, mode="area").flatten(2).transpose(1, 2)
    places = places_of(grid)
    size = torch.tensor(pictures.shape[:-3:-1])  # width, height
    scale = size / torch.tensor([grid[1], grid[0]])
    x, y = ((places + 0.5) * scale).long().T
    for frame in range(len(pictures)):
        for keyframe in {
            int(step.keyframes[side[frame]]) for side in (step.near.past, step.near.future)
        } - {frame}:
            scores = whole[frame] @ whole[keyframe].T
            best, match = scores.max(1)
            near = (places[match][:, None] - places).abs().amax(-1) <= ELSEWHERE
            flow, hidden = case.clip.flow(frame, keyframe)
            there = places + flow[:, y, x].T / scale
            optical = places + dis_flow(pictures[frame], pictures[keyframe])[:, y, x].T / scale
            close = (optical[:, None] - places).abs().amax(-1) <= NEAR
            led = places[scores.masked_fill(~close, -2).argmax(1)]
            ways = (places[match], between(scores, match, grid), led, optical)
            yield {
                **{way: (place - there).norm(dim=1) for way, place in zip(WAYS, ways, strict=True)},
                "hidden": hidden[y, x],
                "edited": case.known.masks[frame, y, x],
                "similarity": best,
                "finest layer": (finest[frame] * finest[keyframe][match]).sum(-1),
                "way back": -(places[scores.argmax(0)[match]] - places).norm(dim=1),
                "lead": best - scores.masked_fill(near, -2).amax(1),
                "pixels": -(pixels[frame] - pixels[keyframe][match]).square().mean(-1),
            }


def places_of(grid: tuple[int, int]) -> Tensor:
    """The column and row of each token of a grid (rows, columns): (P, 2) float32."""
    rows, columns = (torch.arange(side) for side in grid)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).reshape(-1, 2).float()


def between(scores: Tensor, match: Tensor, grid: tuple[int, int]) -> Tensor:
    """Where the similarity is highest between the tokens around each match, (P, 2).

    A parabola through three tokens each across and down; at the border the match itself.
    """
    queries, rows, columns = torch.arange(len(match)), grid[0], grid[1]
    places = places_of(grid)[match].clone()
    for axis, (stride, last) in enumerate(((1, columns - 1), (columns, rows - 1))):
        inner = (places[:, axis] > 0) & (places[:, axis] < last)
        before, at, after = (
            scores[queries, (match + step * stride).clamp(0, rows * columns - 1)]
            for step in (-1, 0, 1)
        )
        bend = (before - 2 * at + after).clamp(max=-1e-9)
        shift = ((before - after) / (2 * bend)).clamp(-0.5, 0.5)
        places[:, axis] += torch.where(inner, shift, 0.0)
    return places


def lower(value: Tensor, bad: Tensor) -> float:
    """How often a bad one has the lower value than another one; of equals half."""
    _, group, sizes = value.unique(return_inverse=True, return_counts=True)
    ranks = (sizes.cumsum(0) - (sizes - 1) / 2)[group]
    few, many = int(bad.sum()), int((~bad).sum())
    if not few or not many:
        return float("nan")
    return 1 - (float(ranks[bad].double().sum()) - few * (few + 1) / 2) / (few * many)


if __name__ == "__main__":
    main()
