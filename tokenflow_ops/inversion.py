"""DDIM inversion of the source frames, and what it leaves (paper, section 3 and stage 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .storage.counted import Counted

# So many steps of a UNet's schedule lie close enough to be made in pairs, where there is little
# noise: in this share of the steps.
PAIRS_FROM, PAIRED = 40, 0.6
# How much of the pictures' slope is believed over two steps. With all of it what was seen a little
# wrongly is twice as wrong in the next pair, and on some clips it grows from pair to pair.
FOLLOWED = 0.25
# More evaluations at the first step of an extrapolated inversion, which has nothing to start from
# and multiplies the noise level the most. Where steps lie close enough for pairs it is a short one.
FIRST_STEP_CALLS, FIRST_OF_PAIRS_CALLS = 3, 1


def invert(
    epsilon: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    sigmas: Tensor,
    iterations: int = 0,
    extrapolate: int = 0,
    pairs: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Integrates dx/dsigma = eps(x, sigma) upwards from sigma 0.

    It is the reverse of the deterministic DDIM (Euler) sampler. In noise-over-signal coordinates
    x_ve = x / sqrt(alpha_bar) DDIM is an Euler step. The noise is estimated at the *target* sigma,
    where the sampler will estimate it, so `iterations` fixed-point steps x_{j+1} <- x_j +
    (sigma_{j+1} - sigma_j) eps(x_{j+1}, sigma_{j+1}) make the step the sampler's exact inverse.

    Args:
        epsilon: Predicts the noise from (x, sigma), in the shape of x.
        x0: Clean latents, (N, C, h, w).
        sigmas: Noise levels, (S+1,), descending, the last one 0.
        iterations: Fixed-point steps; 0 is plain DDIM inversion.
        extrapolate: 0 for none. 1: start each step's iterations not at x_j but where the picture
            that the model saw in the last two steps, x - sigma eps, continues linearly over log
            sigma. This costs no evaluation, except FIRST_STEP_CALLS at the first step (in pairs
            FIRST_OF_PAIRS_CALLS). n > 1: from the third step on only each n-th one up to the
            noisiest is evaluated, the others end where the picture continues.
        pairs: Whether where there is little noise, from the third step on, two steps are made with
            one evaluation (see `makes_pair` and `_two_steps`).

    Yields:
        (index, x) with x the latents at sigmas[index], from index S (x0 itself) to 0.

    Examples:
        Where the predicted noise is always 1, x grows as sigma does:

        >>> sigmas = torch.tensor([2.0, 0.5, 0.0])
        >>> path = invert(lambda x, sigma: torch.ones_like(x), torch.zeros(1, 1, 1, 1), sigmas)
        >>> [(index, x.item()) for index, x in path]
        [(2, 0.0), (1, 0.5), (0, 2.0)]
    """
    x, steps = x0, len(sigmas) - 1
    pictures: list[tuple[Tensor, Tensor]] = []  # (log sigma, picture) of the last two steps
    picture: Tensor | None
    yield steps, x
    index = steps - 1
    while index >= 0:
        known, sigma = sigmas[index + 1], sigmas[index]
        if pairs and len(pictures) == 2 and makes_pair(index, steps):
            levels = known, sigma, sigmas[index - 1]
            between, x, picture = _two_steps(epsilon, x, pictures, levels)
            yield index, between
            del between
            index, sigma = index - 1, levels[-1]
        else:
            calls, guess = 1 + iterations, x
            if extrapolate and pictures:
                guess = _toward(_continued(pictures, sigma), x, known, sigma)
                if len(pictures) == 2 and index % extrapolate:
                    calls = 0
            elif extrapolate:
                calls += FIRST_OF_PAIRS_CALLS if pairs else FIRST_STEP_CALLS
            x, picture = _step(epsilon, x, guess, (known, sigma), calls)
        if picture is not None:
            pictures = [*pictures[-1:], (sigma.log(), picture)]
        yield index, x
        index -= 1


def may_pair(steps: int, iterations: int, flow: bool = False) -> bool:
    """Tells whether an extrapolated inversion loses next to nothing in pairs of steps.

    Args:
        steps: Of the whole schedule.
        iterations: As of `invert`; who asks for them wants every step exact.
        flow: Whether the model is a flow model, whose steps with little noise lie further apart.

    Returns:
        What `invert` takes as `pairs`.
    """
    return steps >= PAIRS_FROM and not iterations and not flow


def makes_pair(index: int, steps: int) -> bool:
    """Tells whether an inversion in pairs makes a step and the next one together.

    Args:
        index: The step ends at sigmas[index], counted as by `invert`.
        steps: How many are inverted.

    Returns:
        Whether both lie where there is little noise.
    """
    return steps - (index - 1) <= PAIRED * steps


def _step(
    epsilon: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    x: Tensor,
    between: tuple[Tensor, Tensor],
    calls: int,
) -> tuple[Tensor, Tensor | None]:
    """Iterates a step from a guess x. Returns where it ends, and the picture that was seen there.

    A function of its own, so that what it has made goes before the next step: of a long clip every
    tensor counts.
    """
    known, sigma = between
    seen = noise = None
    for _ in range(calls):
        seen, noise = x, epsilon(x, sigma)
        x = start + (sigma - known) * noise
    return x, None if seen is None or noise is None else seen - sigma * noise


def _two_steps(
    epsilon: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    pictures: list[tuple[Tensor, Tensor]],
    levels: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Makes two steps from x with one evaluation, at the end of the second.

    Not in the paper. Where little noise is left the picture changes slowly and evenly from step to
    step: at the first step's end it is taken from the line between its neighbours', over log sigma.
    Returns where both steps end, and the picture that was seen.
    """
    known, between, sigma = levels
    reached = _toward(_continued(pictures, between, FOLLOWED), x, known, between)
    seen = _toward(_continued(pictures, sigma, FOLLOWED), reached, between, sigma)
    noise = epsilon(seen, sigma)
    picture = seen - sigma * noise
    line = [pictures[-1], (sigma.log(), picture)]
    reached = _toward(_continued(line, between), x, known, between)
    return reached, reached + (sigma - between) * noise, picture


def _toward(picture: Tensor, x: Tensor, known: Tensor, sigma: Tensor) -> Tensor:
    """Where a step from x at the level `known` ends if this picture is seen at its end, `sigma`."""
    return x + (sigma - known) * (x - picture) / known


def _continued(
    pictures: list[tuple[Tensor, Tensor]], sigma: Tensor, followed: float = 1.0
) -> Tensor:
    """The line through the last two pictures over log sigma, at `sigma`.

    The last picture if there is only one. followed: how much of the line's slope is believed.
    """
    (before, first), (after, last) = pictures[0], pictures[-1]
    return (
        last
        if len(pictures) == 1
        else last + followed * (sigma.log() - after) / (after - before) * (last - first)
    )


@dataclass(frozen=True)
class Inversion(Counted):
    """A source clip's path from its latents to noise.

    Attributes:
        sigmas: (S+1,) float32, descending, the last one 0; noise over signal, as ComfyUI's
            samplers count.
        latents: (S+1, N, C, h, w) float32 in the model's latent space, latents[j] at sigmas[j].
        conditioning: The source prompt, in the host's own form.
        fingerprint: What it was made with, see the host's `fingerprint`.
        steps: Steps of the whole schedule, of which the last S were inverted.
        scheduler: The schedule's name.
        mask: (1 or N, H, W) in [0, 1] at any size, 1 where the clip is to be edited, or None
            for everywhere.

    Raises:
        ValueError: If shapes or order do not fit.
    """

    sigmas: Tensor
    latents: Tensor
    conditioning: Any
    fingerprint: str
    steps: int
    scheduler: str
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if (
            self.latents.ndim != 5
            or self.sigmas.ndim != 1
            or len(self.sigmas) != len(self.latents)
            or len(self.sigmas) < 2
        ):
            sigmas, latents = tuple(self.sigmas.shape), tuple(self.latents.shape)
            raise ValueError(
                f"need S+1 sigmas and (S+1, N, C, h, w) latents, got {sigmas} and {latents}"
            )
        if not bool((self.sigmas[:-1] > self.sigmas[1:]).all()) or self.sigmas[-1] != 0:
            raise ValueError("sigmas must fall strictly and end at 0")
        if self.mask is not None and (
            self.mask.ndim != 3 or len(self.mask) not in (1, self.frames)
        ):
            raise ValueError(f"need one mask (H, W) or {self.frames}, got {tuple(self.mask.shape)}")

    def held(self) -> Iterable[Tensor]:
        return self.sigmas, self.latents

    @property
    def frames(self) -> int:
        """N, the number of source frames."""
        return self.latents.shape[1]

    @property
    def skipped(self) -> int:
        """Steps of the whole schedule before the first of the S, none if all were inverted."""
        return self.steps - (len(self.sigmas) - 1)

    def step_of(self, sigma: float) -> int:
        """Returns the step (0 to S-1) in which `sigma` lies.

        It is the last one that starts at or above `sigma`, else the first.
        """
        # A sampler's sigma went through other arithmetic: allow a relative hair.
        at_or_above = int((self.sigmas[:-1] >= sigma * (1 - 1e-4)).sum())
        return max(0, at_or_above - 1)

    def closest_step(self, sigma: float) -> int:
        """Returns the step (0 to S-1) that starts closest to `sigma`, by their ratio."""
        return int((self.sigmas[:-1].log() - math.log(max(sigma, 1e-10))).abs().argmin())

    def latents_at(self, sigma: float) -> Tensor:
        """Returns the source latents (N, C, h, w) at `sigma`.

        They are linearly interpolated between the two stored neighbours.
        """
        step = self.step_of(sigma)
        high, low = float(self.sigmas[step]), float(self.sigmas[step + 1])
        share = min(1.0, max(0.0, (high - sigma) / (high - low)))
        if share < 1e-4 * high / (high - low):
            return self.latents[step]
        return torch.lerp(self.latents[step], self.latents[step + 1], share)
