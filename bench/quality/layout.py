"""What holds the layout: blocks, masks and guidance, on single frames of the hard clips.

    python3 run.py bench layout [--frames 11] [--steps 8] [--first 1] [--rows ...]

One frame of a clip of every kind (demo/clips.py), the next ones of other numbers, all edited at
once and frame by frame, each to another surface: what is seen here is Plug-and-Play's, the mask's
and the guidance's alone. Masks are the true outlines, two pixels larger. Columns as of `bench
truth`: structure, ghosts, ground, outline and fidelity.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from clips import KINDS, Clip
from comfy_extras.nodes_model_advanced import RescaleCFG
from tokenflow_pack.nodes.correspondences import NO_CUTS
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.tokenflow_ops.injection import EVERY_RESOLUTION
from torch import Tensor

from bench.tools.case import Editable, Settings, World, channels_first
from bench.tools.known import Known, decibels, grown, mean_over

LENGTH = 8  # of the clips that frames are taken from
GROWN = 2


@dataclass(frozen=True)
class Row:
    """injection, sampling: inputs of Plug-and-Play Injection and TokenFlow Sampler. against: how
    much of the source prompt is in the negative one. guided: guides the model's clone.
    """

    name: str
    injection: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    masked: bool = False
    against: float = 0.0
    guided: Callable[[Any], Any] | None = None


def rescaled(model: Any) -> Any:
    """Guidance whose deviation is brought back to the prompt's own, by the host's RescaleCFG."""
    return RescaleCFG().patch(model, 0.7)[0]


def limited(low: float, high: float) -> Callable[[Any], Any]:
    """Guidance at noise levels between two alone, elsewhere the prompt's own prediction."""

    def guided(model: Any) -> Any:
        def guide(predicted: dict[str, Any]) -> Tensor:
            wanted: Tensor = predicted["cond"]
            if not low <= float(predicted["sigma"].max()) <= high:
                return wanted
            return predicted["uncond"] + predicted["cond_scale"] * (wanted - predicted["uncond"])

        clone = model.clone()
        clone.set_model_sampler_cfg_function(guide)
        return clone

    return guided


EVERY = {"features_in": EVERY_RESOLUTION}
ALWAYS = {"mask_from": 0.0}


def guidance(
    cfg: float, against: float, guided: Callable[[Any], Any] | None = None, how: str = ""
) -> Row:
    """Masked, with so much of the source prompt as the negative one."""
    negative = f"cfg {cfg:g}{how}, negative: {against:.0%} of source"
    name = f"every resolution, masked, {negative}"
    return Row(name, EVERY, {"cfg": cfg}, masked=True, against=against, guided=guided)


ROWS = (
    Row("one block"),
    Row("one block, cfg 2, negative: source", {}, {"cfg": 2.0}, against=1),
    Row("every resolution", EVERY),
    Row("every resolution, cfg 3, negative: source", EVERY, {"cfg": 3.0}, against=1),
    Row("every resolution, cfg 4, negative: 50% of source", EVERY, {"cfg": 4.0}, against=0.5),
    Row("one block, masked from the start", {}, ALWAYS, masked=True),
    Row("every resolution, masked from the start", EVERY, ALWAYS, masked=True),
    Row("one block, masked", masked=True),
    Row("every resolution, masked", EVERY, masked=True),
    Row("every resolution, masked from half", EVERY, {"mask_from": 0.5}, masked=True),
    *(guidance(cfg, against) for against in (0, 0.3, 0.5, 0.7, 1) for cfg in (2, 3, 4, 5)),
    guidance(4, 0.5, rescaled, ", rescaled"),
    guidance(4, 0.5, limited(3, 1e9), ", above a noise of 3"),
    guidance(4, 0.5, limited(0, 20), ", below a noise of 20"),
)


class Frames(Editable):
    """Single frames of many clips, each with prompts of its own, as if they were one clip."""

    def __init__(self, world: World, settings: Settings, first: int) -> None:
        kinds = list(KINDS)
        numbered = [(kinds[i % len(kinds)], first + i) for i in range(settings.frames)]
        self.clips = [Clip(kind, number, LENGTH) for kind, number in numbered]
        self.surfaces = [clip.surfaces(1)[0] for clip in self.clips]
        self.at = [self._most(clip) for clip in self.clips]
        super().__init__(world, settings, self._rendered(self.clips), "")
        dressed = [c.dressed(s) for c, s in zip(self.clips, self.surfaces, strict=True)]
        self.ideal, self.asked_for = self._rendered(dressed), [clip.caption for clip in dressed]
        sources = channels_first(self.source).split(1)
        self.known = [
            Known.of(source, [clip.shots[i]], [clip.times[i]], clip.size)
            for clip, i, source in zip(self.clips, self.at, sources, strict=True)
        ]

    def _most(self, clip: Clip) -> int:
        """The frame in the middle of those that show the object."""
        seen = clip.masks().flatten(1).any(1).nonzero().flatten()
        return int(seen[len(seen) // 2])

    def _rendered(self, clips: list[Clip]) -> Tensor:
        found = [clip.pictures()[i] for clip, i in zip(clips, self.at, strict=True)]
        return torch.stack(found).movedim(1, -1)

    def _prompts(self, texts: list[str]) -> Any:
        """A CONDITIONING with a prompt for every frame."""
        return [[torch.cat([self.world.encode(text)[0][0] for text in texts]), {}]]

    @property
    def source_prompt(self) -> Any:
        return self._prompts([clip.caption for clip in self.clips])

    def edit_prompt(self, surface: str) -> Any:
        return self._prompts(self.asked_for)

    @property
    def masks(self) -> Tensor:
        """(N, H, W)."""
        return grown(torch.cat([known.masks for known in self.known]), GROWN).float()

    def figures(self, edit: Tensor) -> list[float]:
        """Means over the frames of an edit (N, H, W, 3)."""
        rows = []
        error = channels_first(edit) - channels_first(self.ideal)
        for i, (known, surface) in enumerate(zip(self.known, self.surfaces, strict=True)):
            picture, own = channels_first(edit[i : i + 1]), error[i : i + 1]
            made_of = known.made_of(picture, surface).float()
            values = (
                float(known.overlaps(picture, surface).mean()),
                mean_over(made_of, known.away),
                decibels(own, known.away),
                decibels(own, known.band),
                self.world.sureness(picture, surface),
            )
            rows.append([float("nan") if value is None else value for value in values])
        return torch.tensor(rows, dtype=torch.float64).nanmean(0).tolist()


def main() -> None:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=len(KINDS))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--rows", nargs="+", default=names, choices=names, metavar="ROW")
    options = parser.parse_args()
    with torch.inference_mode():
        settings = Settings(frames=options.frames, steps=options.steps)
        frames = Frames(World(), settings, options.first)
        compare(frames, [row for row in ROWS if row.name in options.rows])


def compare(frames: Frames, rows: list[Row]) -> None:
    """Prints the table in Markdown."""
    found = frames.match(frames.features(frames.invert(), storage="recompute"), cuts=NO_CUTS)
    print(f"\n{frames.settings}\n\n| | structure | ghosts | ground | outline | fidelity | time |")
    print("|---|---|---|---|---|---|---|", flush=True)
    longest = 0.0
    for row in rows:
        sampling = dict(row.sampling)
        if row.masked:
            sampling["mask"] = frames.masks
        if row.against:
            sampling["negative"] = frames.against_source(row.against)
        sampling["injection"] = PlugAndPlay.execute(**row.injection).args[0]
        start = time.process_time()
        model = row.guided(frames.world.model) if row.guided else None
        edit = frames.edit(found, "", "per frame", model=model, **sampling)
        seconds = time.process_time() - start
        longest = longest or seconds
        structure, ghosts, ground, outline, fidelity = frames.figures(edit)
        print(
            f"| {row.name} | {structure:.3f} | {100 * ghosts:.2f} % | {ground:.1f} dB "
            f"| {outline:.1f} dB | {fidelity:.3f} | {seconds / longest:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
