"""Rerender-A-Video whole, as the paper's table runs it: its parts, and the row on a small clip."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenflow_pack.tokenflow_ops import Inversion
from torch import Tensor

from bench.tools.case import Case, Editable, Settings, World, channels_first
from bench.tools.paper import rerender
from bench.tools.paper.rerender import Fusion, Keyframes, Sampling, encoded, fused_euler, overlaid
from bench.tools.paper.rows import ROWS, Prepared

from ..helpers import inverted, pictures, relative_error, tiny_model
from ..once import once_a_module

(ROW,) = (row for row in ROWS if row.keyframes)
FRAMES, STEPS = 4, 5  # pixels are fused in the fourth step


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@once_a_module
def prepared() -> Prepared:
    settings = Settings(frames=FRAMES, steps=STEPS, interval=2)
    with torch.inference_mode():
        return Prepared(Case.numbered(World(), settings), seed=1)


@once_a_module
def row() -> Tensor:
    with torch.inference_mode():
        found = prepared().correspondences(ROW)
        return prepared().edit(ROW, found, "gold")


def test_every_nth_frame_is_a_keyframe_and_the_last_one() -> None:
    clip = prepared().case
    keyframes = Keyframes(clip)
    assert keyframes.numbers == [0, 2, 3]
    assert torch.equal(keyframes.source, clip.source[[0, 2, 3]])
    assert keyframes.asked("gold") == clip.asked("gold") != keyframes.caption


def test_pixels_are_fused_in_the_middle_steps() -> None:
    """Against the steps of DDIM, written down from the noise that is found."""
    inversion: Inversion = inverted()[0]
    clean = inversion.latents[-1]
    target, weight = random(*clean.shape), random(*clean[:, :1].shape, seed=1).sigmoid()
    sigmas = torch.cat([torch.linspace(10, 1, 20), torch.zeros(1)])

    def model(x: Tensor, sigma: Tensor, scale: float) -> Tensor:
        return scale * x / (1 + sigma.view(-1, 1, 1, 1))

    start, x = random(*clean.shape, seed=2), random(*clean.shape, seed=2)
    for i, (now, following) in enumerate(pairwise(sigmas.tolist())):
        if 11 <= i <= 15:  # of 20, as in the authors' code
            noise = inversion.latents_at(now) - clean
            x = (1 - weight) * x + weight * (target + noise)
        denoised = model(x, torch.full((len(x),), now), 0.7)
        x = denoised + following * (x - denoised) / now
    fusion = Fusion(inversion, target, weight)
    seen = list[int]()
    found = fused_euler(
        model,
        start,
        sigmas,
        {"scale": 0.7},
        lambda info: seen.append(info["i"]),
        fusion=fusion,
    )
    assert relative_error(found, x) < 1e-5
    assert seen == list(range(20))
    plain = fused_euler(model, start, sigmas, {"scale": 0.7}, fusion=Fusion.none(inversion))
    assert relative_error(found, plain) > 0.1


def test_without_fusion_it_is_the_mode() -> None:
    with torch.inference_mode():
        keyframes, found = prepared().keyframes, prepared().correspondences(ROW)
        world = keyframes.world
        sample = Sampling(keyframes, found, "gold", world.model, injected=True)
        ours = sample(Fusion.none(found.features.inversion))
        mode = channels_first(keyframes.edit(found, "gold", "rerender"))
    assert relative_error(ours, mode) < 1e-3


def test_a_keyframe_shows_what_it_shares_with_the_others() -> None:
    noise = random(1, 3, 12, 18).sigmoid()
    plane = torch.nn.functional.interpolate(noise, scale_factor=8, mode="bicubic")[0].clamp(0, 1)
    source = torch.stack([plane[:, :, 6 * i : 6 * i + 120] for i in range(3)])
    paints = torch.tensor([0.2, 0.6, 1.0])
    edited = paints.view(3, 1, 1, 1).expand_as(source).contiguous()
    picture, hidden = overlaid(source, edited, 2)

    def mean(maps: Tensor, columns: slice) -> float:
        return float(maps[0, :, 16:-16, columns].mean())

    # 12 pixels came in since the first frame, 6 since the one before; edges are soft.
    assert mean(picture, slice(16, 96)) == pytest.approx(0.2, abs=0.01)
    assert mean(picture, slice(-4, None)) == pytest.approx(1.0, abs=0.01)
    assert 0.5 < mean(picture, slice(-12, -8)) < 0.9
    assert mean(hidden[None], slice(16, 96)) == pytest.approx(0, abs=0.01)
    assert mean(hidden[None], slice(-4, None)) == 1


class Dimming:
    """An autoencoder that loses a tenth at every way in, and all of what is too bright."""

    def encode(self, pixels: Tensor) -> Tensor:
        code = 0.9 * torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return code[:, [0, 1, 2, 0]]

    def decode(self, code: Tensor) -> Tensor:
        picture = torch.nn.functional.interpolate(code[:, :3], scale_factor=8).movedim(1, -1)
        return torch.where(picture > 0.95, 0, picture)


def test_less_is_lost_in_the_autoencoder_and_nowhere_more() -> None:
    picture = torch.full((1, 3, 64, 64), 0.5)
    picture[..., 56:] = 1.0
    code = encoded(Dimming(), picture)
    assert torch.allclose(code[..., :6], torch.tensor(0.5 * 0.99))
    # Corrected it would be 0.99, which is decoded to nothing; so it and what is around stay.
    assert torch.allclose(code[..., 7], torch.tensor(0.9))
    assert torch.allclose(code[..., 6], torch.tensor(0.45))


def test_what_is_fused_is_in_the_models_latent_space(monkeypatch: pytest.MonkeyPatch) -> None:
    source, inversion, seen = pictures(), inverted()[0], list[Fusion]()
    edited = channels_first(1 - source)

    def sampling(*_: Any) -> Any:
        def sample(fusion: Fusion) -> Tensor:
            seen.append(fusion)
            return edited

        return sample

    monkeypatch.setattr(rerender, "Sampling", sampling)
    monkeypatch.setattr(rerender, "between_keyframes", lambda clip, *_: clip)
    world: Any = SimpleNamespace(vae=Dimming())
    keyframes = Keyframes(Editable(world, Settings(interval=1), source, ""))
    found = SimpleNamespace(features=SimpleNamespace(inversion=inversion))
    rerender.rerendered(keyframes, found, "", tiny_model())
    (fusion,) = {id(one): one for one in seen}.values()
    assert len(seen) == len(source)
    assert not fusion.weight[0].any()
    assert set(fusion.weight[1:].unique().tolist()) >= {0.0, 0.5}
    for number in range(1, len(source)):
        picture, _ = overlaid(channels_first(source), edited, number)
        wanted = tiny_model().model.process_latent_in(encoded(Dimming(), picture))
        assert torch.equal(fusion.latents[number], wanted[0])


def test_the_row_makes_the_whole_clip() -> None:
    case = prepared().case
    clip = row()
    assert clip.shape == case.source.shape
    assert torch.isfinite(clip).all()
    overlaps = case.known.overlaps(channels_first(clip), "gold")
    # The frame between is as right as the keyframes, and none of them held.
    assert float(overlaps.min()) > 0.3
    assert relative_error(clip[1], clip[0]) > 0.01
    assert relative_error(clip[1], clip[2]) > 0.01


def test_fused_pixels_bring_the_keyframes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerender, "STRENGTH", 0.0)
    with torch.inference_mode():
        found = prepared().correspondences(ROW)
        apart = prepared().edit(ROW, found, "gold")
        case = prepared().case
        assert case.figures(row(), "gold").warp < case.figures(apart, "gold").warp
    assert torch.equal(row()[0], apart[0])
    assert relative_error(row()[-1], apart[-1]) > 1e-3
