"""Inversion against diffusers' DDIM and against itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from tokenflow_ops import Inversion, invert

BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "timestep_spacing": "leading",
}


def small_network(seed: int, strength: float = 0.1) -> Callable[[Tensor, Tensor], Tensor]:
    """A smooth noise estimate on x / sqrt(sigma^2 + 1), as an SD model sees its input."""
    generator = torch.Generator().manual_seed(seed)
    mix, lift = torch.randn(4, 4, generator=generator), torch.randn(4, 1, 1, generator=generator)

    def epsilon(x: Tensor, sigma: Tensor) -> Tensor:
        seen = x / (sigma**2 + 1) ** 0.5
        return strength * torch.tanh(torch.einsum("oc,nchw->nohw", mix, seen) + lift * sigma.log())

    return epsilon


def sigma_of(alpha_bar: Tensor) -> Tensor:
    return ((1 - alpha_bar) / alpha_bar) ** 0.5


def euler(epsilon: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    for high, low in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (low - high) * epsilon(x, high)
    return x


@pytest.fixture
def x0() -> Tensor:
    return torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def double(network: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, sigma: network(x.float(), sigma.float()).double()


def test_plain_inversion_is_diffusers_inverse_ddim(x0: Tensor) -> None:
    """Its steps run between the noise levels t - 1000 / n and t; ours between sigmas,
    the first one from 0.
    """
    steps, network = 10, double(small_network(1))
    scheduler = DDIMInverseScheduler(**BETAS, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    alphas = scheduler.alphas_cumprod.double()
    # The inverse scheduler's first step starts at `initial_alpha_cumprod`, 1 here: clean latents.
    levels = [alphas[t] for t in scheduler.timesteps.tolist()]
    x = x0.clone()
    expected = [x0]
    for t, alpha in zip(scheduler.timesteps, levels, strict=True):
        # In its step the noise is estimated on the latent it has, for the timestep it goes to.
        sigma = sigma_of(alpha)
        previous = scheduler.config.num_train_timesteps // steps
        known = t - previous
        known_alpha = alphas[known] if known >= 0 else scheduler.initial_alpha_cumprod.double()
        x = scheduler.step(network(x / known_alpha**0.5, sigma), t, x).prev_sample
        expected.append(x / alpha**0.5)
    sigmas = torch.stack(
        [*(sigma_of(alpha) for alpha in reversed(levels)), torch.zeros((), dtype=torch.float64)]
    )
    ours = [x for _, x in invert(network, x0, sigmas)]
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_refined_inversion_is_undone_by_diffusers_ddim(x0: Tensor) -> None:
    steps, network = 10, double(small_network(2))
    scheduler = DDIMScheduler(**BETAS, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    alphas = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    sigmas = torch.cat([sigma_of(alphas), torch.zeros(1, dtype=torch.float64)])
    *_, (_, noisy) = invert(network, x0, sigmas, iterations=30)
    x = noisy * alphas[0] ** 0.5
    for t, alpha, sigma in zip(scheduler.timesteps, alphas, sigmas, strict=False):
        x = scheduler.step(network(x / alpha**0.5, sigma), t, x).prev_sample
    torch.testing.assert_close(x, x0, rtol=1e-4, atol=1e-4)


def test_each_iteration_brings_it_closer_to_the_samplers_inverse(x0: Tensor) -> None:
    network = double(small_network(3))
    sigmas = torch.cat(
        [torch.logspace(1, -1, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    )
    errors = []
    for iterations in (0, 1, 2, 4):
        *_, (_, noisy) = invert(network, x0, sigmas, iterations)
        errors.append(float((euler(network, noisy, sigmas) - x0).norm() / x0.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize(("steps", "iterations"), [(1, 0), (2, 1), (7, 0), (7, 2), (8, 0)])
def test_an_extrapolated_step_starts_from_the_line_through_the_last_two_pictures(
    x0: Tensor, steps: int, iterations: int, every: int
) -> None:
    """And ends there, if it is none that the model is asked at."""
    network, x = small_network(4), x0.float()
    levels = [0.0, *torch.logspace(-1, 1, steps).tolist()]
    path, lines = [x], []  # lines: (log sigma, picture) where the model was asked
    for j, (low, high) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        noise = torch.zeros_like(x)
        if lines:
            (log_low, picture), (log_lower, lower) = (
                lines[-1],
                lines[-2] if lines[1:] else (float("-inf"), lines[-1][1]),
            )
            picture = picture + (picture - lower) * (math.log(high) - log_low) / (
                log_low - log_lower
            )
            noise = (path[j] - picture) / low
        guess = path[j] + (high - low) * noise
        if j < 2 or (steps - 1 - j) % every == 0:
            for _ in range(1 + iterations + (3 if j == 0 else 0)):
                noise = network(guess, torch.tensor(high))
                picture = guess - high * noise
                guess = path[j] + (high - low) * noise
            lines.append((math.log(high), picture))
        path.append(guess)
    found = list(invert(network, x, torch.tensor(levels).flip(0), iterations, extrapolate=every))
    assert [index for index, _ in found] == list(range(steps, -1, -1))
    for (_, one), wanted in zip(found, path, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 9, 13, 50])
def test_in_pairs_two_steps_with_little_noise_are_made_with_one_evaluation(
    x0: Tensor, steps: int
) -> None:
    """The sampler that is shown the pictures that were seen, and between them those on the line
    over log sigma, comes back exactly.
    """
    network, sigmas = double(small_network(4)), torch.zeros(steps + 1, dtype=torch.float64)
    sigmas[:-1] = torch.logspace(1, -1, steps, dtype=torch.float64)
    seen: dict[float, tuple[Tensor, Tensor]] = {}

    def epsilon(x: Tensor, sigma: Tensor) -> Tensor:
        noise = network(x, sigma)
        seen[float(sigma)] = noise, x - sigma * noise
        return noise

    path = dict(invert(epsilon, x0, sigmas, extrapolate=1, pairs=True))
    assert list(path) == list(range(steps, -1, -1))
    asked = [j for j in range(steps) if float(sigmas[j]) in seen]
    between = [j for j in range(steps) if j not in asked]
    # Every second one of the less noisy six tenths but their first two.
    assert between == [j for j in range(steps - 3, 0, -2) if 10 * (j - 1) >= 4 * steps][::-1]
    x = path[0]
    for j in range(steps):
        level, down = sigmas[j], sigmas[j + 1]
        if j in asked:
            x = x + (down - level) * seen[float(level)][0]
        else:
            (_, before), (_, after) = (seen[float(sigmas[k])] for k in (j + 1, j - 1))
            share = (level / down).log() / (sigmas[j - 1] / down).log()
            picture = before + share * (after - before)
            x = picture + down / level * (x - picture)
        torch.testing.assert_close(x, path[j + 1], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(x, x0, rtol=1e-8, atol=1e-8)


def test_extrapolation_makes_each_iteration_start_closer_and_ends_where_they_end(
    x0: Tensor,
) -> None:
    network = double(small_network(5))
    sigmas = torch.cat(
        [torch.logspace(1, -1, 16, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    )

    def error(iterations: int, extrapolate: int = 0) -> float:
        *_, (_, noisy) = invert(network, x0, sigmas, iterations, extrapolate)
        return float((euler(network, noisy, sigmas) - x0).norm())

    for iterations in range(3):
        assert error(iterations, extrapolate=1) < 0.5 * error(iterations)
    assert error(20, extrapolate=1) < 1e-6


def test_where_the_picture_is_a_line_over_log_sigma_one_evaluation_a_step_inverts_it_and_fewer_do(
    x0: Tensor,
) -> None:
    slope = torch.randn(x0.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    sigmas = torch.tensor([8.0, 5.0, 2.0, 0.5, 0.2, 0.0], dtype=torch.float64)

    def epsilon(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - x0 - slope * sigma.log()) / sigma

    def left_over(extrapolate: int) -> list[float]:
        path = dict(invert(epsilon, x0, sigmas, 0, extrapolate))
        # The first two steps do not know the line yet.
        return [
            float((euler(epsilon, path[j], sigmas[j : j + 2]) - path[j + 1]).norm())
            for j in (0, 1, 2)
        ]

    assert max(left_over(1)) < 1e-10
    assert max(left_over(2)) < 1e-10
    assert min(left_over(0)) > 0.1


def test_the_path_is_given_from_clean_to_noisy(x0: Tensor) -> None:
    sigmas = torch.tensor([3.0, 1.0, 0.0])
    path = list(invert(lambda x, sigma: torch.ones_like(x), x0, sigmas))
    assert [index for index, _ in path] == [2, 1, 0]
    for index, x in path:
        torch.testing.assert_close(x, x0 + sigmas[index])


def inversion(sigmas: list[float]) -> Inversion:
    levels = torch.tensor(sigmas)
    latents = levels[:, None, None, None, None] ** 2 * torch.ones(len(sigmas), 2, 4, 3, 3)
    return Inversion(levels, latents, None, "", len(sigmas) - 1, "normal")


def test_a_step_holds_the_noise_levels_from_its_own_down_to_the_next() -> None:
    path = inversion([10.0, 4.0, 1.0, 0.0])
    assert [
        path.step_of(s) for s in (20.0, 10.0, 10.0 * (1 - 1e-6), 9.0, 4.0, 2.0, 1.0, 0.5, 0.0)
    ] == [0, 0, 0, 0, 1, 1, 2, 2, 2]


def test_latents_between_two_noise_levels_are_interpolated() -> None:
    path = inversion([10.0, 4.0, 1.0, 0.0])
    assert torch.equal(path.latents_at(4.0), path.latents[1])
    assert torch.equal(path.latents_at(20.0), path.latents[0])
    torch.testing.assert_close(path.latents_at(7.0), (path.latents[0] + path.latents[1]) / 2)
    assert torch.equal(path.latents_at(0.0), path.latents[3])


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 0.5], [1.0, 1.0, 0.0], [0.0, 1.0]])
def test_paths_that_do_not_fall_to_zero_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="sigmas"):
        inversion(sigmas)


def test_a_single_image_is_no_path() -> None:
    with pytest.raises(ValueError, match="latents"):
        Inversion(torch.tensor([1.0, 0.0]), torch.zeros(2, 4, 3, 3), None, "", 1, "normal")
