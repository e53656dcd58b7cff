"""Plug-and-Play (Tumanyan et al., CVPR 2023): what the edited branch takes from the source."""

from __future__ import annotations

from dataclasses import dataclass

from .parameterization import before

# Where ResBlock features are taken over: in the paper's block, or in one block of every resolution
# below the full one.
ONE_BLOCK, EVERY_RESOLUTION = FEATURES_IN = "one block", "every resolution"


@dataclass(frozen=True)
class Injection:
    """How long and where the source's features replace the edit's.

    Shares count on Stable Diffusion's own schedule, as the authors give them, and stand for the
    noise that is left there: 0.5 is a noise over signal of 1.62, 0.8 one of 0.57. So they mean the
    same with every schedule, scheduler, number of steps and cut.

    Attributes:
        attention_until: Share of the schedule with the source's queries and keys in the decoder's
            self-attention, 0 to 1.
        features_until: Share of the schedule with the source's ResBlock features, 0 to 1.
        layers: "decoder" (every decoder self-attention block but the first, the paper's 4 to 11 of
            SD 1.5) or "late decoder" (the later half of those: a looser hold on the layout).
        features_in: Where ResBlock features are taken over, one of FEATURES_IN.

    Raises:
        ValueError: For a share outside 0 to 1 or another choice of layers or blocks.

    Examples:
        >>> injection = Injection(attention_until=0.5, features_until=0.8)
        >>> [injection.attention_at(noise) for noise in (14.6, 2.0, 1.0, 0.03)]
        [True, True, False, False]
        >>> [injection.features_at(noise) for noise in (14.6, 2.0, 1.0, 0.03)]
        [True, True, True, False]
    """

    attention_until: float = 0.5
    features_until: float = 0.8
    layers: str = "decoder"
    features_in: str = ONE_BLOCK

    def __post_init__(self) -> None:
        for name in ("attention_until", "features_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.layers not in ("decoder", "late decoder"):
            raise ValueError(f"layers must be 'decoder' or 'late decoder', got {self.layers!r}")
        if self.features_in not in FEATURES_IN:
            raise ValueError(f"features_in must be one of {FEATURES_IN}, got {self.features_in!r}")

    def attention_at(self, noise_over_signal: float) -> bool:
        """Tells whether queries and keys are injected in a step that begins at a noise level."""
        return before(self.attention_until, noise_over_signal)

    def features_at(self, noise_over_signal: float) -> bool:
        """Tells whether ResBlock features are injected in a step that begins at a noise level."""
        return before(self.features_until, noise_over_signal)
