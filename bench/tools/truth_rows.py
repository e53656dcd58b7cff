"""The rows of `bench truth`: ways to edit a clip, and the stages they share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tokenflow_pack.host.files.demo_model import FEW
from tokenflow_pack.nodes.correspondences import EVEN, FIXED
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.presets import ATTENTION, CARRY_UNTIL, DEEP_FEATURES
from tokenflow_pack.tokenflow_ops.injection import EVERY_RESOLUTION, ONE_BLOCK
from torch import Tensor

from bench.tools.case import composited
from bench.tools.public_code import SCHEDULER, public_inversion
from bench.tools.truth import TruthCase

OURS, BASE, IDEAL = "ours", "per_frame", "autoencoder"
PUBLIC = "public code"
EVERY: dict[str, Any] = {"steps": "every", "layers": "all"}


@dataclass(frozen=True)
class Row:
    """One way to edit.

    features, matches, sampling: inputs of Extract SA Features, Build NN Correspondences and
    TokenFlow Sampler. inversion: of DDIM Invert Video; PUBLIC is the public code's own, at its
    noise levels. masked: with Find Edit Mask. features_in: of Plug-and-Play Injection.
    """

    name: str
    features: dict[str, Any]
    matches: dict[str, Any]
    sampling: dict[str, Any]
    inversion: dict[str, Any] | str = field(default_factory=dict)
    masked: bool = False
    features_in: str = EVERY_RESOLUTION


# With a mask the negative prompt is halfway between nothing and the source prompt: against the
# whole of it colours burn, against nothing the ground comes in (bench layout).
MASKED_CFG, AGAINST_SOURCE = 4.0, 0.5
# The model of few steps holds its guidance and is asked without; a step without the source's
# features is an eighth of the schedule, in which outlines are lost.
HELD = {"attention_until": 1.0, "features_until": 1.0}
CELL = 4  # pixels of a latent's side, by which the mask grows
PAPER = {"carry_until": 0.0, "propagation": ATTENTION}
# The defaults, but keyframes see all of each other's tokens and frames have guidance of their own,
# as with this preset.
IN_FULL = {"preset": "faithful", "carry_until": CARRY_UNTIL, "propagation": DEEP_FEATURES}
ROWS = (
    Row(BASE, {}, {}, {"consistency": "per frame"}),
    Row("one_block", {}, {}, {"consistency": "per frame"}, features_in=ONE_BLOCK),
    Row("joint_attention", {}, {}, {"consistency": "joint attention"}),
    Row("fixed_keyframes", {}, {"keyframes": FIXED}, {}),
    Row("paper", EVERY, {"blend": "nearest, sigmoid", "intervals": EVEN}, PAPER),
    Row(
        "public_code",
        {},
        {"intervals": EVEN},
        {"consistency": "tokenflow, public code"},
        inversion=PUBLIC,
    ),
    Row("without_mask", {}, {}, {}),
    Row(OURS, {}, {}, {}, masked=True),
    Row("lean", {}, {}, {"preset": "lean"}),
    Row("in_full", {}, {}, IN_FULL),
    Row("even", {}, {"intervals": EVEN}, {}),
    Row("masked_even", {}, {"intervals": EVEN}, {}, masked=True),
    Row("masked_per_frame", {}, {}, {"consistency": "per frame"}, masked=True),
    Row("by_distance", {}, {"blend": "nearest"}, {}, masked=True),
    Row("plain_ddim", {}, {}, {}, {"refinement": "none", "iterations": 0}, masked=True),
    Row("public_levels", {}, {}, {}, {"scheduler": SCHEDULER}, masked=True),
    Row("public_inversion", {}, {}, {}, PUBLIC, masked=True),
)
# Only run where they are asked for: lean, in_full and even intervals, to be compared with
# without_mask, and what is to be compared with ours: even intervals, frame by frame, blended by
# distance alone, and from other inversions.
ASKED = (
    "lean",
    "in_full",
    "even",
    "masked_even",
    "masked_per_frame",
    "by_distance",
    "plain_ddim",
    "public_levels",
    "public_inversion",
)


class Stages:
    """What rows share of a clip: made once, when it is asked for."""

    def __init__(self, case: TruthCase) -> None:
        self.case, self._made = case, dict[str, Any]()

    def _once(self, what: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if repr(what) not in self._made:
            self._made[repr(what)] = make()
        return self._made[repr(what)]

    def inversion(self, row: Row) -> Any:
        how = row.inversion

        def invert() -> Any:
            return self.case.invert(**how) if isinstance(how, dict) else public_inversion(self.case)

        return self._once((how,), invert)

    def matches(self, row: Row) -> Any:
        def match() -> Any:
            features = self.case.features(self.inversion(row), storage="recompute", **row.features)
            return self.case.match(features, seed=self.case.clip.number, **row.matches)

        return self._once((row.inversion, row.features, row.matches), match)

    def mask(self, row: Row, surface: str) -> tuple[Tensor, Tensor, float]:
        """Mask, outlines and the processor time they took.

        Of the inversion only the clean latents and the prompt count, which all share.
        """

        def find() -> Any:
            start = time.process_time()
            found = self.case.edit_mask(self.inversion(row), surface, grow=CELL)
            return *found, time.process_time() - start

        found: tuple[Tensor, Tensor, float] = self._once((surface,), find)
        return found

    def edit(self, row: Row, surface: str) -> tuple[Tensor, float]:
        """The edited clip, and the processor time of its mask and of sampling."""
        matches, sampling, seconds = self.matches(row), dict(row.sampling), 0.0
        few = self.case.world.kind == FEW
        held = HELD if few else {}
        injection = PlugAndPlay.execute(features_in=row.features_in, **held).args[0]
        if row.masked:
            mask, outlines, seconds = self.mask(row, surface)
            sampling |= {"mask": mask}
            if not few:
                negative = self.case.against_source(AGAINST_SOURCE)
                sampling |= {"negative": negative, "cfg": MASKED_CFG}
        start = time.process_time()
        edited = self.case.edit(matches, surface, injection=injection, **sampling)
        if row.masked:
            edited = composited(self.case.source, edited, outlines)
        return edited, seconds + time.process_time() - start
