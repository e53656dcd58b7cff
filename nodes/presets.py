"""What the sampler's many inputs are where the user leaves them to one preset.

A preset says how much of the method is traded for time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..tokenflow_ops import ATTENTION, CARRY_UNTIL, DEEP_FEATURES, spread
from ..tokenflow_ops.propagation import CHANGES, REPEATS, Repeats

BY_PRESET, NUMBER_BY_PRESET = "as preset", -1  # for a choice, and for numbers
MOST_KEYFRAMES = 4096
# For as long as Plug-and-Play holds the layout; longer takes less time, and leaves less detail.
TRANSFORMERS_CARRY_UNTIL, LEAN_TRANSFORMERS_CARRY_UNTIL = 0.5, 0.65
# Every second step after pictures are carried.
LEAN = Repeats(0.0, 1.0, apart=1.0)
TRANSFORMERS_REPEAT = Repeats(TRANSFORMERS_CARRY_UNTIL, 1.0, apart=0.1, takes=CHANGES)


@dataclass(frozen=True)
class Preset:
    """Choices for an edit.

    Attributes:
        propagation: What frames take from keyframes, one of PROPAGATIONS.
        carry_until: Until which share of SD's schedule, by its noise, pictures are carried, 0 to 1.
        steps: What share of the inverted steps TokenFlow Sampler takes, above 0 to 1.
        attended_keyframes: To how many a keyframe attends at most, 0 for the mode's own number.
        guides_along: Whether frames take the guidance of the keyframes.
        repeats: Which steps take what is left of the step before, None for none.
        merges: Whether a keyframe sees the others' tokens merged, where there are many.
        carry_on_transformers: What `carry_until` is on transformers.
    """

    propagation: str
    carry_until: float
    steps: float = 1.0
    attended_keyframes: int = 0
    guides_along: bool = False
    repeats: Repeats | None = None
    merges: bool = False
    carry_on_transformers: float = TRANSFORMERS_CARRY_UNTIL

    def but(self, propagation: str, carry_until: float, attended_keyframes: int) -> Preset:
        """Puts in what the user chose instead of BY_PRESET or NUMBER_BY_PRESET.

        Who chooses attention's output asks for the paper's way, and gets it: nothing is merged or
        taken from another step, and every frame has its own guidance.

        Args:
            propagation: One of PROPAGATIONS, or BY_PRESET.
            carry_until: Share of SD's schedule, 0 to 1; below 0 as the preset has it.
            attended_keyframes: To how many a keyframe attends at most; 0 or less as the preset has
                it (0 meant that in older workflows).

        Returns:
            The preset with these choices in place of its own.
        """
        chosen = self.propagation if propagation == BY_PRESET else propagation
        repeats = None if propagation == ATTENTION else self.repeats
        if repeats and chosen == ATTENTION:  # a transformer's, by preset
            repeats = TRANSFORMERS_REPEAT
        return replace(
            self,
            propagation=chosen,
            carry_until=self.carry_until if carry_until < 0 else carry_until,
            attended_keyframes=attended_keyframes
            if attended_keyframes > 0
            else self.attended_keyframes,
            guides_along=self.guides_along and propagation != ATTENTION,
            repeats=repeats,
            merges=self.merges and propagation != ATTENTION,
        )

    def on_transformers(self) -> Preset:
        """Puts in what is better there.

        Deep features are a UNet's: what a transformer's inner blocks add holds the keyframe's own
        noise, and leaves it on other frames. There attention's output is carried, and pictures for
        longer: that is steadier and as right, and quicker.

        Returns:
            The preset as it is for transformers.
        """
        return replace(self, propagation=ATTENTION, carry_until=self.carry_on_transformers)

    def sigmas(self, levels: torch.Tensor) -> torch.Tensor:
        """Returns those of a schedule's noise levels (S + 1,) that are sampled.

        They are the first, the last, and as many between them as the share says.
        """
        steps = len(levels) - 1
        taken = max(1, round(self.steps * steps))
        return levels[spread(steps + 1, taken + 1)]


BALANCED = "balanced"
PRESETS = {
    BALANCED: Preset(DEEP_FEATURES, CARRY_UNTIL, guides_along=True, repeats=REPEATS, merges=True),
    "faithful": Preset(
        ATTENTION, 0.0, attended_keyframes=MOST_KEYFRAMES, carry_on_transformers=0.0
    ),
    "fast": Preset(
        DEEP_FEATURES, CARRY_UNTIL, 0.5, guides_along=True, repeats=REPEATS, merges=True
    ),
    "draft": Preset(
        DEEP_FEATURES, CARRY_UNTIL, 0.25, guides_along=True, repeats=REPEATS, merges=True
    ),
    "lean": Preset(
        DEEP_FEATURES,
        CARRY_UNTIL,
        guides_along=True,
        repeats=LEAN,
        merges=True,
        carry_on_transformers=LEAN_TRANSFORMERS_CARRY_UNTIL,
    ),
}
