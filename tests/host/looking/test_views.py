"""Preview Features, Preview Correspondences and Check Reconstruction on a tiny model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenflow_pack.host.measuring.reconstruction import reconstruct_frames
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.looking import views
from tokenflow_pack.nodes.looking.reconstruction import CheckReconstruction
from tokenflow_pack.nodes.looking.views import PreviewCorrespondences, PreviewFeatures
from tokenflow_pack.reporting.plots import heat_map, plot_timeline
from torch import Tensor

from ..helpers import (
    FRAMES,
    SIZE,
    STEPS,
    Decoder,
    call,
    extracted,
    interrupt_after,
    interrupted,
    inverted,
    matched,
    tiny_model,
    watched,
)

HEIGHT, WIDTH = (side * 8 for side in SIZE)
PICTURES = torch.rand(FRAMES, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
LAYER = "middle_block.1.transformer_blocks.0.attn1"
FEATURES, CORRESPONDENCES, CHECK = (
    "Preview Features",
    "Preview Correspondences",
    "Check Reconstruction",
)


def refused(node: Any, *given: Any, **inputs: Any) -> str:
    with pytest.raises(NodeError) as error:
        call(node.execute, *given, **inputs)
    return str(error.value)


def cells(picture: Tensor, size: int) -> Tensor:
    """One pixel of every cell; fails unless all its pixels are the same."""
    found = picture[:, ::size, ::size]
    assert torch.equal(found.repeat_interleave(size, 1).repeat_interleave(size, 2), picture)
    return found


@pytest.mark.parametrize("resolution", views.RESOLUTIONS)
def test_each_resolution_has_its_tokens_as_squares(resolution: str) -> None:
    (components,) = call(PreviewFeatures.execute, extracted(), resolution)
    assert components.shape == (FRAMES, HEIGHT, WIDTH, 3)
    tokens = cells(components, 8 * 2 ** views.RESOLUTIONS.index(resolution))
    assert tokens.flatten(0, 2).std(0).min() > 0.1


def test_stored_and_computed_features_look_alike_and_levels_and_layers_do_not() -> None:
    (stored,) = call(PreviewFeatures.execute, extracted())
    (computed,) = call(PreviewFeatures.execute, extracted(storage="recompute"))
    torch.testing.assert_close(computed, stored, atol=1e-3, rtol=0)
    (noisy,) = call(PreviewFeatures.execute, extracted(), noise_level=1.0)
    assert (noisy - stored).abs().mean() > 0.05
    (middle,) = call(PreviewFeatures.execute, extracted(), layer=f" {LAYER} ")
    assert torch.equal(middle, call(PreviewFeatures.execute, extracted(), views.RESOLUTIONS[3])[0])


def test_some_frames_of_a_long_clip_are_spread_over_it() -> None:
    frames = torch.tensor([0, 2, 4])
    (components,) = call(PreviewFeatures.execute, extracted(), most_frames=3)
    assert components.shape[0] == 3
    every = call(BuildCorrespondences.execute, extracted(), 1, backend="torch")[0]
    rebuilt, confidence, motion, _ = call(
        PreviewCorrespondences.execute, every, PICTURES, most_frames=3
    )
    torch.testing.assert_close(rebuilt, PICTURES[frames])
    torch.testing.assert_close(confidence, heat_map(torch.ones(3, *SIZE), PICTURES[frames]))
    assert torch.equal(motion, torch.ones(3, HEIGHT, WIDTH, 3))
    assert len(call(PreviewCorrespondences.execute, every, PICTURES, most_frames=0)[0]) == FRAMES


@pytest.mark.parametrize(("height", "width"), [(HEIGHT, WIDTH), (67, 135)])
def test_pictures_of_matches_have_the_size_of_what_was_encoded(height: int, width: int) -> None:
    frames = torch.rand(FRAMES, height, width, 4, generator=torch.Generator().manual_seed(1))
    *pictures, timeline = call(PreviewCorrespondences.execute, matched(), frames)
    for picture in pictures:
        assert picture.shape == (FRAMES, HEIGHT, WIDTH, 3)
        assert 0 <= picture.min() <= picture.max() <= 1
    assert timeline.shape == (1, 480, 800, 3)


def test_doubtful_matches_are_redder() -> None:
    grey = torch.full((1, 4, 4, 3), 0.5)
    red, yellow, blue = (
        heat_map(torch.full((1, 2, 2), value), grey)[0, 0, 0] for value in (0.0, 0.5, 1.0)
    )
    assert red[0] > red[2] + 0.2
    assert blue[2] > blue[0] + 0.2
    assert yellow[:2].min() > yellow[2]


def test_the_timeline_has_every_steps_keyframes_and_the_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(views, "plot_timeline", lambda *given: asked.append(given))
    every = call(BuildCorrespondences.execute, extracted(), 1, backend="torch")[0]
    call(PreviewCorrespondences.execute, every, PICTURES, attended_keyframes=2)
    call(PreviewCorrespondences.execute, matched(), PICTURES)
    drawn = [step.keyframes.tolist() for step in matched().steps]
    assert asked == [
        ([list(range(FRAMES))] * STEPS, FRAMES, [(0, 1), (1, 3), (3, 5)], []),
        (drawn, FRAMES, [(0, FRAMES)], []),
    ]
    plain = plot_timeline(drawn, FRAMES)
    assert not torch.equal(plot_timeline(drawn, FRAMES, [(0, 2), (2, 5)]), plain)
    assert not torch.equal(plot_timeline(drawn, FRAMES, [(0, 5)], [1]), plain)
    assert torch.equal(plot_timeline([[0]], 1, [(0, 1)]), plot_timeline([[0]], 1))


def test_what_does_not_fit_is_refused() -> None:
    text = refused(PreviewFeatures, extracted(), layer="attn1")
    assert text.startswith(
        f"{FEATURES}, input 'layer': no self-attention layer is called 'attn1'. "
        "Leave it empty, or take output_blocks"
    )
    shapes = {name: shape for name, shape in extracted().shapes.items() if shape[0] > 100}
    fine = type(extracted())(
        extracted().inversion,
        shapes,
        {name: (name,) for name in shapes},
        (0,),
        extracted().store,
    )
    text = refused(PreviewFeatures, fine, "2 x coarser")
    assert text == (
        f"{FEATURES}, input 'resolution': 2 x coarser, 8 x 4 tokens; this model has 16 x 8. "
        "Choose a finer one."
    )
    assert refused(PreviewCorrespondences, matched(), PICTURES[:2]).startswith(
        f"{CORRESPONDENCES}, input 'frames': 2 images for 5 inverted"
    )


@pytest.mark.parametrize("last", [1, FRAMES + 1])
def test_looking_at_matches_counts_frames_and_can_be_stopped(
    last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = interrupt_after(last, 2 * FRAMES, monkeypatch)
    with interrupted():
        call(PreviewCorrespondences.execute, matched(), PICTURES)
    assert counted == [*range(1, last + 1)]


def decoded(latents: Tensor) -> Tensor:
    out = tiny_model().get_model_object("latent_format").process_out(latents)
    return Decoder().decode(out).clamp(0, 1)


def check(*given: Any, **inputs: Any) -> tuple[Any, ...]:
    return call(
        CheckReconstruction.execute,
        tiny_model(),
        *(given or (inverted(FRAMES, SIZE)[0], Decoder())),
        **inputs,
    )


def test_the_reconstruction_is_the_plain_hosts_and_measured_beside_the_autoencoder() -> None:
    inversion, noisy, _ = inverted(FRAMES, SIZE)
    source = decoded(inversion.latents[-1])
    frames = (source + 0.05).clamp(0, 1)
    pictures, comparison, plot, text = check(frames=frames, most_frames=3)
    chosen = torch.tensor([0, 2, 4])
    with torch.inference_mode():
        found = reconstruct_frames(
            CHECK, tiny_model(), inversion, [], 1.0, noisy["samples"], chosen
        )
    torch.testing.assert_close(pictures, decoded(found), atol=1e-5, rtol=0)
    first, second, third = comparison[:, :HEIGHT].chunk(3, 2)
    assert torch.equal(first, frames[chosen])
    assert torch.equal(second, pictures)
    torch.testing.assert_close(third, (5 * (first - second).abs()).clamp(max=1))
    assert plot.shape == (1, 480, 800, 3)

    def psnr(clip: Tensor) -> Tensor:
        return -10 * (clip - frames[chosen]).square().mean((1, 2, 3)).log10()

    back, alone = psnr(pictures), psnr(source[chosen])
    lines = text.splitlines()
    assert lines[0] == "3 of 5 frames sampled back from the noise; PSNR to the source"
    assert (
        lines[1].split(None, 1)[1]
        == f"{back.mean():.1f} dB (lowest, frame {int(chosen[back.argmin()])}: {back.min():.1f})"
    )
    assert lines[2].startswith("autoencoder alone ")
    assert f"{alone.mean():.1f} dB" in lines[2]
    assert lines[3].split()[-2:] == [f"{alone.mean() - back.mean():.1f}", "dB"]


def test_without_frames_the_autoencoders_pictures_are_the_source() -> None:
    _, comparison, _, text = check(most_frames=0)
    assert torch.equal(
        comparison[:, :HEIGHT, :WIDTH], decoded(inverted(FRAMES, SIZE)[0].latents[-1])
    )
    assert text.startswith("5 of 5 frames")
    assert "autoencoder alone" not in text


def test_the_margin_that_encoding_cuts_off_is_cut_off() -> None:
    frames = torch.nn.functional.pad(PICTURES, (0, 0, 3, 4, 1, 1))
    _, comparison, _, _ = check(frames=frames, most_frames=2)
    assert torch.equal(comparison[:, :HEIGHT, :WIDTH], PICTURES[[0, 4]])


@pytest.mark.parametrize("scale", [1.25, 2], ids=["another shape", "the same, larger"])
def test_pictures_that_were_not_encoded_are_refused_before_anything_is_sampled(
    scale: float,
) -> None:
    def sampled(*_: Any) -> None:
        raise AssertionError

    larger = torch.zeros(FRAMES, int(HEIGHT * scale), int(WIDTH * scale), 3)
    for wrong in (larger, PICTURES[:, 1:]):
        with pytest.raises(
            NodeError, match=r"input 'frames': frames of .* Connect the frames that were encoded"
        ):
            call(
                CheckReconstruction.execute,
                watched(tiny_model(), sampled),
                inverted(FRAMES, SIZE)[0],
                Decoder(),
                frames=wrong,
            )


class Broken:
    def decode(self, latents: Tensor) -> Tensor:
        raise RuntimeError("no such thing")


class Video:
    def decode(self, latents: Tensor) -> Tensor:
        return torch.zeros(1, *Decoder().decode(latents).shape)


def test_a_reconstruction_that_cannot_be_checked_is_refused() -> None:
    inversion = inverted(FRAMES, SIZE)[0]
    given = tiny_model(), inversion, Decoder()
    assert refused(CheckReconstruction, *given, frames=PICTURES[:2]).startswith(
        f"{CHECK}, input 'frames': 2 images for 5 inverted frames."
    )
    assert refused(CheckReconstruction, *given, cfg=2.0).startswith(
        f"{CHECK}, input 'negative': nothing connected with cfg 2.0."
    )
    assert refused(CheckReconstruction, tiny_model(1), inversion, Decoder()).startswith(
        f"{CHECK}, input 'model': "
    )
    for vae, found in (
        (Broken(), "RuntimeError: no such thing"),
        (Video(), "shape (1, 1, 64, 128, 3)"),
    ):
        text = refused(CheckReconstruction, tiny_model(), inversion, vae, most_frames=1)
        assert text.startswith(f"{CHECK}, input 'vae': it cannot decode the inverted latents (")
        assert found in text
