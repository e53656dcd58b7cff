"""A few numbers of a model's weights, by which the same weights are known in any type.

A type keeps a number to within a step: 2^-10 of a number near one in float16, 2^-3 in float8_e4m3.
So each number is kept with the step that its weights are known to, and two models are the same
where no number differs by more than both its steps together.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# The types that checkpoints are stored in.
TYPES = torch.float8_e5m2, torch.float8_e4m3fn, torch.bfloat16, torch.float16
# Of weights in none of these, as a fraction of a number and of the smallest one that it holds for:
# sums in float32 differ by less.
FINEST, SMALLEST = 2.0**-16, 2.0**-6
# Numbers of each weight that are kept, and that are looked at to see how finely it is stored.
KEPT, SAMPLED = 2, 1024
# The exponent of a step that says nothing is known.
UNKNOWN = 127


@dataclass(frozen=True)
class Numbers:
    """Numbers of weights, and how far each may be off.

    Attributes:
        values: (n,) float32.
        steps: (n,) float32; infinite where a number cannot be read.
    """

    values: Tensor
    steps: Tensor

    @classmethod
    def unknown(cls) -> Numbers:
        """Makes those of a weight that cannot be read."""
        return cls(torch.zeros(KEPT), torch.full((KEPT,), torch.inf))

    @classmethod
    def of(cls, weight: Tensor) -> Numbers:
        """Takes KEPT numbers spread over a weight of any shape.

        Their steps are the largest of all types that hold the weight's numbers. What the weight is
        stored in says less: a checkpoint in float8 may be loaded in float32.
        """
        flat = weight.detach().reshape(-1)
        if not len(flat):
            return cls.unknown()
        sample = flat[:: -(-len(flat) // SAMPLED)].to("cpu").float().as_subclass(Tensor)
        values = sample[torch.linspace(0, len(sample) - 1, KEPT + 2)[1:-1].round().long()]
        if not torch.isfinite(sample).all():
            return cls.unknown()
        steps = _steps(values, FINEST, SMALLEST)
        for kind in TYPES:
            if torch.equal(sample.to(kind).float(), sample):
                limits = torch.finfo(kind)
                steps = torch.maximum(steps, _steps(values, limits.eps, limits.tiny))
        return cls(values, steps)

    @classmethod
    def joined(cls, parts: Iterable[Numbers]) -> Numbers:
        """Joins several, one after another."""
        kept = list(parts)
        return cls(
            torch.cat([part.values for part in kept]), torch.cat([part.steps for part in kept])
        )

    def times(self, factor: float) -> Numbers:
        """Returns those of the weights multiplied by `factor`."""
        return Numbers(
            self.values * factor,
            self.steps * abs(factor) if factor else torch.zeros_like(self.steps),
        )

    def plus(self, other: Numbers) -> Numbers:
        """Returns those of the sum of two weights of the same shape."""
        return Numbers(self.values + other.values, self.steps + other.steps)

    def distance(self, other: Numbers) -> float:
        """Returns the largest difference of two numbers over their steps together.

        Args:
            other: Of another weight.

        Returns:
            At most 1 for the same weights, infinite for other counts.
        """
        if len(self.values) != len(other.values):
            return float("inf")
        ratios = (self.values - other.values).abs() / (self.steps + other.steps).clamp(
            min=2.0**-UNKNOWN
        )
        return float(ratios.max()) if len(ratios) else 0.0

    def to_text(self) -> str:
        """Writes values in float32 and the exponents of the steps, in base64."""
        known = torch.isfinite(self.steps)
        exponents = torch.where(
            known, self.steps.clamp(min=2.0**-UNKNOWN).log2().ceil(), UNKNOWN
        ).to(torch.int8)
        values = torch.where(known, self.values, 0.0)
        return base64.b64encode(
            values.numpy().astype("<f4").tobytes() + exponents.numpy().tobytes()
        ).decode()

    @classmethod
    def from_text(cls, text: str) -> Numbers:
        """Reads what `to_text` has written.

        Args:
            text: In base64.

        Returns:
            The numbers.

        Raises:
            ValueError: For anything else.
        """
        kept = base64.b64decode(text, validate=True)
        count, rest = divmod(len(kept), 5)
        if rest or not count:
            raise ValueError(f"{len(kept)} bytes are no numbers with their steps")
        values = torch.frombuffer(bytearray(kept[: 4 * count]), dtype=torch.float32)
        exponents = torch.frombuffer(bytearray(kept[4 * count :]), dtype=torch.int8).float()
        if not torch.isfinite(values).all():
            raise ValueError("numbers that are NaN or infinite")
        return cls(values, torch.where(exponents == UNKNOWN, torch.inf, torch.exp2(exponents)))


def _steps(values: Tensor, fraction: float, smallest: float) -> Tensor:
    """From each number to the next one of a type.

    `fraction` of the power of two below it, which is nowhere less than `smallest`.
    """
    _, exponents = torch.frexp(values.abs().clamp(min=smallest))
    return fraction * torch.exp2(exponents - 1.0)
