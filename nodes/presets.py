"""What the sampler's many inputs are where the user leaves them to one: how much of the method is traded for time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

DEEP, ATTENTION = PROPAGATIONS = "deep features", "attention"
BY_PRESET = "as preset"


@dataclass(frozen=True)
class Preset:
    """What frames take from keyframes, one of PROPAGATIONS; until which share of the schedule pictures are carried; what share of the
    inverted steps TokenFlow Sampler takes."""

    propagation: str
    carry_until: float
    steps: float = 1.0

    def but(self, propagation: str, carry_until: float) -> Preset:
        """With what the user chose instead: BY_PRESET and a negative share leave it to the preset."""
        return Preset(
            self.propagation if propagation == BY_PRESET else propagation, self.carry_until if carry_until < 0 else carry_until, self.steps
        )

    def sigmas(self, levels: torch.Tensor) -> torch.Tensor:
        """Of a schedule's noise levels (S + 1,) those that are sampled: the first, the last, and as many between them as the share says."""
        steps = len(levels) - 1
        taken = max(1, round(self.steps * steps))
        return levels[torch.linspace(0, steps, taken + 1).round().long()]


BALANCED = "balanced"
PRESETS = {
    BALANCED: Preset(DEEP, 0.2),
    "faithful": Preset(ATTENTION, 0.0),
    "fast": Preset(DEEP, 0.2, 0.5),
    "draft": Preset(DEEP, 0.2, 0.25),
}
