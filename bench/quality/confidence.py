"""What tells wrong matches without knowing the motion.

    python3 run.py bench confidence [--clips 0 1 2 3] [--frames 16]

For every token of every frame and its match in a keyframe, on scenes whose true flow is known.
Figures: how often a token with a bad match has the lower value than one with a good match (0.5 by
chance, 1 always). Wrong: over two tokens off. Hidden: nothing there to match. Rows: similarity of
the whole descriptor, of its finest layer alone; minus the distance to where the match's own match
is; the lead over the best match elsewhere; minus the squared difference of the pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.tools.case import Case, Settings, World, true_flow
from bench.tools.markdown import table

WRONG, ELSEWHERE = 2, 2  # tokens
SIZE = 128  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--frames", type=int, default=Settings().frames)
    parser.add_argument("--steps", type=int, default=Settings().steps)
    options = parser.parse_args()
    with torch.inference_mode():
        world = World()
        for number in options.clips:
            measure(
                Case.numbered(world, Settings(frames=options.frames, steps=options.steps), number)
            )


def measure(case: Case) -> None:
    """Prints a clip's table in Markdown."""
    found = case.match(case.features(case.invert(), storage="memory"), keyframes="fixed")
    pairs = list(compare(case, found))
    values = {name: torch.cat([pair[name] for pair in pairs]) for name in pairs[0]}
    error, hidden = values.pop("error"), values.pop("hidden").bool()
    wrong = error > WRONG
    shares = f"wrong {wrong[~hidden].float().mean():.2f}, hidden {hidden.float().mean():.2f}"
    print(f"\n{case.scene.caption()}, {case.settings}: {shares}\n")
    rows = (
        [
            name,
            f"{lower(value[~hidden], wrong[~hidden]):.2f}",
            f"{lower(value, hidden):.2f}",
            f"{lower(value, wrong | hidden):.2f}",
        ]
        for name, value in values.items()
    )
    table(["", "wrong", "hidden", "either"], rows)


def compare(case: Case, found: Any) -> Iterator[dict[str, Tensor]]:
    """What is known of the matches of each frame to a keyframe, (P,) each: true error in tokens,
    whether it is hidden, and the measures.
    """
    features, step = found.features, found.steps[0]
    descriptor, grid = features.finest, features.grid(features.finest)
    layers = {layer: features.store.get(features.steps[0], layer) for layer in descriptor}
    whole, finest = (
        F.normalize(tokens.float(), dim=-1)
        for tokens in (features.describe(layers, descriptor), layers[descriptor[-1]])
    )
    pixels = F.interpolate(case.source.movedim(-1, 1), grid, mode="area").flatten(2).transpose(1, 2)
    places = (
        torch.stack(
            torch.meshgrid(*(torch.arange(side) for side in reversed(grid)), indexing="xy"), -1
        )
        .reshape(-1, 2)
        .float()
    )
    scale = SIZE / torch.tensor([grid[1], grid[0]])
    x, y = ((places + 0.5) * scale).long().T
    for frame in range(len(case.source)):
        for keyframe in {
            int(step.keyframes[side[frame]]) for side in (step.near.past, step.near.future)
        } - {frame}:
            scores = whole[frame] @ whole[keyframe].T
            best, match = scores.max(1)
            near = (places[match][:, None] - places).abs().amax(-1) <= ELSEWHERE
            flow, hidden = true_flow(case.scene, case.times[frame], case.times[keyframe])
            yield {
                "error": (places[match] - places - flow[:, y, x].T / scale).norm(dim=1),
                "hidden": hidden[y, x],
                "similarity": best,
                "finest layer": (finest[frame] * finest[keyframe][match]).sum(-1),
                "way back": -(places[scores.argmax(0)[match]] - places).norm(dim=1),
                "lead": best - scores.masked_fill(near, -2).amax(1),
                "pixels": -(pixels[frame] - pixels[keyframe][match]).square().mean(-1),
            }


def lower(value: Tensor, bad: Tensor) -> float:
    """How often a bad one has the lower value than another one; of equals half."""
    _, group, sizes = value.unique(return_inverse=True, return_counts=True)
    ranks = (sizes.cumsum(0) - (sizes - 1) / 2)[group]
    few, many = int(bad.sum()), int((~bad).sum())
    return 1 - (float(ranks[bad].double().sum()) - few * (few + 1) / 2) / (few * many)


if __name__ == "__main__":
    main()
