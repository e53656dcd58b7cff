"""Where two prompts disagree, on noise drawn anew."""

from __future__ import annotations

import pytest
import torch

from tokenflow_ops import Inversion
from tokenflow_ops.masking.disagreement import LEVELS, disagreement, noised
from tokenflow_ops.parameterization import Parameterization


def test_predictions_differ_by_the_norm_over_channels() -> None:
    apart = torch.zeros(2, 1, 4, 5, 5)
    apart[0, 0, :2, 2, 2] = torch.tensor([3.0, 4.0])
    found = disagreement(apart)
    assert found.shape == (1, 5, 5)
    assert found[0, 2, 2] == pytest.approx(5 / 9 / 2)
    assert found[0, 0, 0] == 0


def test_what_has_another_sign_at_every_level_cancels_out() -> None:
    noise = torch.randn(1, 2, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    edit = torch.ones(2, 2, 4, 5, 5)
    found = disagreement(edit + torch.cat([noise, -noise]))
    torch.testing.assert_close(found, disagreement(edit))


def source(frames: int = 2) -> Inversion:
    latents = torch.randn(3, frames, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    return Inversion(torch.tensor([9.0, 3.0, 0.0]), latents, "prompt", "made", 2, "normal")


@pytest.mark.parametrize("flow", [False, True])
def test_the_source_is_noised_to_the_same_share_in_every_family(flow: bool) -> None:
    clean = source().latents[-1]
    path = noised(source(), Parameterization(flow))
    assert torch.equal(path.latents[-1], clean)
    assert (path.conditioning, path.fingerprint) == ("prompt", "made")
    drawn = []
    for level, sigma, latents in zip(LEVELS, path.sigmas, path.latents, strict=False):
        signal = 1 - float(sigma) if flow else 1.0
        assert float(sigma) / signal == pytest.approx(level)
        drawn.append((latents - signal * clean) / sigma)
        assert 0.7 < float(drawn[-1].std()) < 1.3
    assert len(drawn) == len(LEVELS)
    assert float((drawn[0] - drawn[1]).abs().mean()) > 0.5


def test_noise_is_the_same_each_time() -> None:
    first, second = (noised(source(), Parameterization()) for _ in range(2))
    assert torch.equal(first.latents, second.latents)
