"""What runs in the steps of an inversion and of an edit: what costs are counted by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from comfy.samplers import calculate_sigmas
from tokenflow_pack.host.source import evaluations
from tokenflow_pack.nodes import presets
from tokenflow_pack.nodes.inversion import EXTRAPOLATED, REFINEMENTS
from tokenflow_pack.nodes.presets import PRESETS, Preset
from tokenflow_pack.tokenflow_ops import Injection
from tokenflow_pack.tokenflow_ops.inversion import may_pair
from tokenflow_pack.tokenflow_ops.propagation import FEATURES, REPEATS, carries_pictures

INJECTION = Injection()


@dataclass(frozen=True)
class Steps:
    """How many of an edit's steps run what. keyframes: the keyframes. between: the frames between
    them. again: all frames, with what keyframes have left in the step before. injected: the source
    of the keyframes, with Plug-and-Play.
    """

    keyframes: int
    between: int
    again: int
    injected: int

    @staticmethod
    def of(levels: Sequence[float], chosen: Preset, injection: Injection = INJECTION) -> Steps:
        """levels: noise over signal where the steps begin."""
        keyframes = between = again = injected = 0
        left: str | None = None
        for begins, ends in pairwise([*levels, 0.0]):
            if left == FEATURES:
                again, left = again + 1, None
                continue
            carries = carries_pictures(chosen.carry_until, begins, ends)
            keyframes, between = keyframes + 1, between + (not carries and left is None)
            injected += injection.attention_at(begins) or injection.features_at(begins)
            follows = chosen.repeats is not None and chosen.repeats.follow(begins, ends)
            left = chosen.repeats.takes if follows and not carries and left is None else None
        return Steps(keyframes, between, again, injected)


def levels_of(sampling: Any, steps: int) -> tuple[float, ...]:
    """The noise levels at which so many steps begin. sampling: a model's, of the host."""
    return tuple(calculate_sigmas(sampling, "normal", steps)[:-1].tolist())


@contextmanager
def taking(close: bool) -> Iterator[None]:
    """Edits in which steps take what is left of the step before as if all lay close enough, as of
    fifty, or in which none does. It holds for presets but lean.
    """
    usual, along = dict(PRESETS), presets.TRANSFORMERS_REPEAT
    for name, preset in usual.items():
        if preset.repeats == REPEATS:
            close_ones = replace(REPEATS, apart=1.0) if close else None
            PRESETS[name] = replace(preset, repeats=close_ones)
    presets.TRANSFORMERS_REPEAT = replace(along, **({"apart": 1.0} if close else {"until": 0.0}))
    try:
        yield
    finally:
        PRESETS.update(usual)
        presets.TRANSFORMERS_REPEAT = along


def asked(steps: int, refinement: str, flow: bool = False) -> int:
    """How often an inversion asks the model, without iterations. flow: of a flow model."""
    pairs = refinement == EXTRAPOLATED and may_pair(steps, 0, flow)
    return evaluations(torch.arange(steps, -1.0, -1.0), 0, REFINEMENTS[refinement], pairs)
