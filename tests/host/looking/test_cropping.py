"""Clips whose sides are no multiples of the VAE's factor: what VAE Encode cuts off is cut off
wherever they are compared, and told.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenflow_pack.host.files.demo_model import load_demo_model
from tokenflow_pack.host.measuring.cropping import common_size, crop, encoded_size
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.looking.comparison import CompareClips
from tokenflow_pack.nodes.looking.metrics import Metrics
from tokenflow_pack.nodes.looking.views import PreviewCorrespondences, PreviewFeatures
from tokenflow_pack.nodes.sampling.apply import Apply
from tokenflow_pack.nodes.sampling.sampler import Sampler
from torch import Tensor

from ..helpers import NEGATIVE, POSITIVE, Decoder, applied, call, edit, invert, tiny_model
from ..tiny_models import TinyVAE
from .test_views import check

FRAMES = 2
# Pixels, and latents of a factor of 8.
GIVEN, USED, LATENTS = (60, 86), (56, 80), (7, 10)
MODE = {"consistency": "rerender"}  # which looks at the source frames
TOLD = "frames: the middle 80 x 56 of 86 x 60 pixels, as VAE Encode crops"


def random(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.rand(FRAMES, height, width, channels, generator=torch.Generator().manual_seed(0))


def host_crop(pictures: Tensor, factor: int) -> Tensor:
    """What the host's VAE Encode encodes."""
    vae = load_demo_model()[2]
    vae.downscale_ratio = factor
    cropped: Tensor = vae.vae_encode_crop_pixels(pictures)
    return cropped


PICTURES = random(*GIVEN)
CROPPED = host_crop(PICTURES, 8)


@pytest.mark.parametrize("factor", [1, 4, 8, 16])
@pytest.mark.parametrize("size", [(480, 854), (64, 64), (71, 135), (97, 32), (24, 31), (16, 39)])
def test_the_crop_is_the_hosts(size: tuple[int, int], factor: int) -> None:
    pictures = random(*size, channels=1)
    wanted = host_crop(pictures, factor)
    height, width = wanted.shape[1:3]
    assert encoded_size(size, (height // factor, width // factor)) == (height, width)
    assert torch.equal(crop(pictures, (height, width)), wanted)
    assert torch.equal(crop(pictures[..., 0], (height, width)), wanted[..., 0])


@pytest.mark.parametrize("latents", [(59, 106), (60, 107), (61, 106), (480, 853), (1000, 1000)])
def test_other_latents_are_not_of_these_pictures(latents: tuple[int, int]) -> None:
    assert encoded_size((480, 854), latents) is None


@pytest.mark.parametrize(
    ("sizes", "common"),
    [
        ([(480, 854), (480, 848)], (480, 848)),
        ([(480, 848), (480, 854)], (480, 848)),
        ([(487, 854), (480, 848), (480, 854)], (480, 848)),
        ([(35, 31), (32, 28)], (32, 28)),  # of the embedded model's factor, 4
        ([(480, 856), (480, 848)], "1"),
        ([(480, 854), (480, 854), (472, 848)], "2"),
        ([(480, 854), (479, 853)], "1"),  # the size of no latents
        ([(1080, 1920), (512, 512)], "1"),
    ],
)
def test_clips_come_to_the_size_of_the_decoded_ones_unless_more_is_missing(
    sizes: list[tuple[int, int]], common: Any
) -> None:
    assert common_size({str(i): size for i, size in enumerate(sizes)}) == common


@pytest.fixture(scope="module")
def correspondences() -> Any:
    """Of a clip as the host's VAE Encode makes it."""
    inversion = invert(tiny_model(), {"samples": TinyVAE().encode(CROPPED) / 50}, steps=2)[0]
    assert tuple(inversion.latents.shape[-2:]) == LATENTS
    features = call(ExtractFeatures.execute, tiny_model(), inversion)[0]
    return call(BuildCorrespondences.execute, features, 2, frames=CROPPED)[0]


def run(node: Any, *given: Any, **inputs: Any) -> tuple[tuple[Any, ...], list[str]]:
    """A node's outputs and the lines that it says."""
    (out,) = call(lambda: [node.execute(*given, **inputs)])
    shown = getattr(out.ui, "as_dict", lambda: out.ui or {"text": [""]})()
    return out.args, shown["text"][0].splitlines()


def test_source_frames_are_cut_as_they_were_encoded(correspondences: Any) -> None:
    features = correspondences.features
    for node, given in (
        (BuildCorrespondences, (features, 2)),
        (PreviewCorrespondences, (correspondences,)),
        (PreviewFeatures, (features,)),
    ):
        (found, said), (wanted, plain) = (
            run(node, *given, frames=frames) for frames in (PICTURES, CROPPED)
        )
        for one, other in zip(found, wanted, strict=True):
            assert not isinstance(one, Tensor) or torch.equal(one, other)
        assert said == [*plain, TOLD]


def test_the_check_compares_what_was_encoded_and_says_so(correspondences: Any) -> None:
    (_, found, _, said), (_, wanted, _, plain) = (
        check(correspondences.features.inversion, Decoder(), frames=frames)
        for frames in (PICTURES, CROPPED)
    )
    assert torch.equal(found, wanted)
    assert said.splitlines() == [*plain.splitlines(), TOLD]


def test_the_motion_is_that_of_what_was_encoded(correspondences: Any) -> None:
    asked = {"correspondences": correspondences, **MODE}
    assert torch.equal(edit(frames=PICTURES, **asked), edit(frames=CROPPED, **asked))


def half(height: int, width: int) -> Tensor:
    """A mask of what lies left of the middle."""
    mask = torch.zeros(1, height, width)
    mask[..., : width // 2] = 1
    return mask


def test_a_mask_on_the_source_frames_is_cut_with_them(correspondences: Any) -> None:
    mask = half(*GIVEN)
    mask[..., :3] = 0  # which VAE Encode cuts off
    found = edit(correspondences=correspondences, mask=mask)
    assert torch.equal(found, edit(correspondences=correspondences, mask=half(*USED)))
    for shaped in (mask[0], mask[:, None]):
        assert torch.equal(found, edit(correspondences=correspondences, mask=shaped))


def test_a_mask_of_another_size_is_scaled_as_the_host_does(correspondences: Any) -> None:
    found = edit(correspondences=correspondences, mask=half(2 * USED[0], 4 * USED[1]))
    assert torch.equal(found, edit(correspondences=correspondences, mask=half(*LATENTS)))


def test_sampler_and_apply_say_what_they_cut(correspondences: Any) -> None:
    given = tiny_model(), correspondences
    assert run(Apply, *given, **MODE, frames=PICTURES, mask=half(*GIVEN))[1] == [
        TOLD,
        TOLD.replace("frames", "mask"),
    ]
    assert run(Apply, *given, **MODE, frames=CROPPED, mask=half(*USED))[1] == []
    asked = {**MODE, "cfg": 4.0, "frames": PICTURES}
    assert run(Sampler, given[0], POSITIVE, NEGATIVE, given[1], **asked)[1] == [TOLD]


def test_frames_that_were_not_encoded_are_refused_before_anything_is_sampled(
    correspondences: Any,
) -> None:
    with pytest.raises(
        NodeError, match=r"'frames': frames of 92 x 60 pixels, which .* latents of 10 x 7\. Connect"
    ):
        applied(correspondences=correspondences, **MODE, frames=random(60, 92))


@pytest.mark.parametrize("size", [(480, 854), (483, 848)])
def test_clips_are_compared_where_they_overlap(size: tuple[int, int]) -> None:
    source, edited = random(*size), random(480, 848)
    cropped = host_crop(source, 8)
    for node in (CompareClips, Metrics):
        found, said = run(node, source, edited, reference=source)
        wanted = call(node.execute, cropped, edited, reference=cropped)
        assert torch.equal(found[0], wanted[0]) if node is CompareClips else found[2] == wanted[2]
        told = f"the middle 848 x 480 of {size[1]} x {size[0]} pixels, as VAE Encode crops"
        assert said[-2:] == [f"source: {told}", f"edit_2: {told}"]
    assert run(CompareClips, edited, edited)[1] == []
