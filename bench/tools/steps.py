"""What runs in the steps of an inversion and of an edit: what costs are counted by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from comfy.samplers import calculate_sigmas
from tokenflow_pack.host.families import backbone_of
from tokenflow_pack.host.source import evaluations
from tokenflow_pack.nodes.inversion import EXTRAPOLATED, REFINEMENTS
from tokenflow_pack.nodes.presets import BY_PRESET, NUMBER_BY_PRESET, Preset
from tokenflow_pack.nodes.sampling.edit import preset_for
from tokenflow_pack.tokenflow_ops import Injection
from tokenflow_pack.tokenflow_ops.inversion import may_pair
from tokenflow_pack.tokenflow_ops.propagation import carries_pictures


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
    def of(levels: Sequence[float], chosen: Preset) -> Steps:
        """levels: noise over signal where the steps begin."""
        injection = Injection()
        keyframes = between = again = injected = 0
        left = False
        for begins, ends in pairwise([*levels, 0.0]):
            if left:
                again, left = again + 1, False
                continue
            carries = carries_pictures(chosen.carry_until, begins, ends)
            keyframes, between = keyframes + 1, between + (not carries)
            injected += injection.attention_at(begins) or injection.features_at(begins)
            left = (
                not carries and chosen.repeats is not None and chosen.repeats.follow(begins, ends)
            )
        return Steps(keyframes, between, again, injected)


def levels_of(sampling: Any, steps: int) -> tuple[float, ...]:
    """The noise levels at which so many steps begin. sampling: a model's, of the host."""
    return tuple(calculate_sigmas(sampling, "normal", steps)[:-1].tolist())


def repeated(model: Any, scheduler: str, steps: int, preset: str) -> int:
    """How many of an edit's steps take what keyframes have left in the step before.

    model: the host's, of any family. preset: one of PRESETS.
    """
    levels = calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)[:-1]
    over_signal = backbone_of(model).parameterization.noise_over_signal
    chosen = preset_for(preset, model).but(BY_PRESET, NUMBER_BY_PRESET, NUMBER_BY_PRESET)
    return Steps.of([over_signal(level) for level in levels.tolist()], chosen).again


def asked(steps: int, refinement: str, flow: bool = False) -> int:
    """How often an inversion asks the model, without iterations. flow: of a flow model."""
    pairs = refinement == EXTRAPOLATED and may_pair(steps, 0, flow)
    return evaluations(torch.arange(steps, -1.0, -1.0), 0, REFINEMENTS[refinement], pairs)
