"""Plug-and-Play (Tumanyan et al., CVPR 2023): what the edited branch takes from the source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Injection:
    """How long and where the source's features replace the edit's.

    The schedule is the whole one that the source was inverted on: an edit that starts further down
    has its first steps behind it.

    Attributes:
        attention_until: Share of the schedule with the source's queries and keys in the decoder's
            self-attention, 0 to 1.
        features_until: Share of the schedule with the source's ResBlock features, 0 to 1.
        layers: "decoder" (every decoder self-attention block but the first, the paper's 4 to 11 of
            SD 1.5) or "late decoder" (the later half of those: a looser hold on the layout).

    Raises:
        ValueError: For a share outside 0 to 1 or another choice of layers.

    Examples:
        >>> injection = Injection(attention_until=0.5, features_until=0.75)
        >>> [injection.attention_at(step, steps=4) for step in range(4)]
        [True, True, False, False]
        >>> [injection.features_at(step, steps=4) for step in range(4)]
        [True, True, True, False]
    """

    attention_until: float = 0.5
    features_until: float = 0.8
    layers: str = "decoder"

    def __post_init__(self) -> None:
        for name in ("attention_until", "features_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.layers not in ("decoder", "late decoder"):
            raise ValueError(f"layers must be 'decoder' or 'late decoder', got {self.layers!r}")

    def attention_at(self, step: int, steps: int) -> bool:
        """Tells whether queries and keys are injected at a step.

        Args:
            step: Counted from 0.
            steps: Steps of the whole schedule.

        Returns:
            True for the first `attention_until` of the steps, rounded down.
        """
        return step < int(self.attention_until * steps)

    def features_at(self, step: int, steps: int) -> bool:
        """Tells whether ResBlock features are injected at a step.

        Args:
            step: Counted from 0.
            steps: Steps of the whole schedule.

        Returns:
            True for the first `features_until` of the steps, rounded down.
        """
        return step < int(self.features_until * steps)
