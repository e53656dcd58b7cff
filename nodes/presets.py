"""What the sampler's many inputs are where the user leaves them to one: how much of the method is
traded for time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..tokenflow_ops import ATTENTION, CARRY_UNTIL, DEEP_FEATURES, spread

BY_PRESET, NUMBER_BY_PRESET = "as preset", -1  # for a choice, and for numbers
MOST_KEYFRAMES = 4096


@dataclass(frozen=True)
class Preset:
    """Choices for an edit.

    propagation: what frames take from keyframes, one of PROPAGATIONS. carry_until: until which
    share of the schedule pictures are carried. steps: what share of the inverted steps TokenFlow
    Sampler takes. attended_keyframes: to how many a keyframe attends at most, 0 for the mode's own
    number.
    """

    propagation: str
    carry_until: float
    steps: float = 1.0
    attended_keyframes: int = 0

    def but(self, propagation: str, carry_until: float, attended_keyframes: int) -> Preset:
        """With what the user chose instead of BY_PRESET or NUMBER_BY_PRESET.

        No keyframes mean that too, as in older workflows.
        """
        return Preset(
            self.propagation if propagation == BY_PRESET else propagation,
            self.carry_until if carry_until < 0 else carry_until,
            self.steps,
            attended_keyframes if attended_keyframes > 0 else self.attended_keyframes,
        )

    def sigmas(self, levels: torch.Tensor) -> torch.Tensor:
        """Of a schedule's noise levels (S + 1,) those that are sampled: the first, the last, and as
        many between them as the share says.
        """
        steps = len(levels) - 1
        taken = max(1, round(self.steps * steps))
        return levels[spread(steps + 1, taken + 1)]


BALANCED = "balanced"
PRESETS = {
    BALANCED: Preset(DEEP_FEATURES, CARRY_UNTIL),
    "faithful": Preset(ATTENTION, 0.0, attended_keyframes=MOST_KEYFRAMES),
    "fast": Preset(DEEP_FEATURES, CARRY_UNTIL, 0.5),
    "draft": Preset(DEEP_FEATURES, CARRY_UNTIL, 0.25),
}
