"""What anyone might give to a node, as strategies of hypothesis: by the type of an input good
values, nearly good ones and nonsense.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st
from tokenflow_pack.host.files.folders import SUFFIX
from tokenflow_pack.tokenflow_ops import Injection
from tokenflow_pack.tokenflow_ops.carrying.given import GivenKeyframes
from torch import Tensor

from ..helpers import NEGATIVE, POSITIVE, SOURCE, Coder, Decoder, video
from ..once import once_a_session
from ..small import extracted, inverted, matched, tiny_model
from . import bad_models
from .bad_input import CLIP, stored

Values = st.SearchStrategy[Any]
FLOATS = torch.float32, torch.float16, torch.bfloat16, torch.float64
OTHERS = torch.uint8, torch.int64, torch.bool, torch.complex64
FILLS = 0.0, 0.25, 1.0, -1.0, 1.2, 255.0, 1e30, math.nan, math.inf
# Steps, and what multiplies them: more of them are good as well, and take long.
FEW = {"steps": (1, 2), "iterations": (0, 1), "width": (0, 24), "height": (0, 24)}
SAMPLERS = "euler", "heun", "dpm_2", "uni_pc", "dpmpp_2m_sde", "lcm", "ddim"


def tensors(shapes: Values) -> Values:
    """Random numbers or one number throughout, of any type."""
    return st.builds(
        tensor,
        shapes,
        st.sampled_from([None, None, None, *FILLS]),
        st.sampled_from([*FLOATS, *FLOATS, *OTHERS]),
    )


def tensor(shape: tuple[int, ...], fill: float | None, dtype: torch.dtype) -> Tensor:
    """fill: all its values; None: random ones from 0 to 1."""
    if fill is None:
        return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if fill == 0.25 and math.prod(shape):  # a single NaN among good numbers
        return (
            tensor(shape, None, torch.float32)
            .flatten()
            .index_fill(0, torch.tensor([0]), math.nan)
            .view(shape)
            .to(dtype)
        )
    return torch.full(shape, fill).to(dtype)


def sides(*usual: tuple[int, ...]) -> Values:
    """Shapes: usual ones, those with other numbers of frames, rows,
    columns and channels, and any at all.
    """
    near = st.sampled_from(usual).flatmap(
        lambda shape: st.tuples(
            *(st.sampled_from([side, side, 0, 1, 2, 3, 5, 17]) for side in shape)
        )
    )
    return st.one_of(
        st.sampled_from(usual),
        st.sampled_from(usual),
        near,
        st.lists(st.integers(0, 9), max_size=6).map(tuple),
    )


@once_a_session
def nonsense() -> Values:
    """Objects of all types that travel between nodes, and some that never do."""
    objects = [
        None,
        True,
        0,
        -1,
        1.5,
        math.nan,
        "",
        "text",
        b"x",
        [],
        {},
        (),
        object(),
        int,
        print,
        torch.zeros(2, 3),
        torch.zeros(()),
    ]
    own = [
        tiny_model(),
        inverted(*CLIP)[0],
        extracted(*CLIP),
        matched(*CLIP),
        Injection(),
        Decoder(),
        SOURCE,
        inverted(*CLIP)[1],
    ]
    return st.sampled_from(
        [
            *objects,
            *own,
            {"samples": None},
            [[]],
            [SOURCE],
            {"samples": SimpleNamespace(is_nested=True)},
        ]
    )


def numbers(wanted: Any) -> Values:
    """Of an INT or FLOAT input."""
    edge = [wanted.min, wanted.max, wanted.min - 1, wanted.max + 1, wanted.default]
    if wanted.id in FEW:
        edge = [wanted.min - 1, wanted.max + 1, *FEW[wanted.id]]
    odd = [
        -1,
        10_000,
        2**63,
        2**64,
        -(2**64),
        10**400,
        math.nan,
        math.inf,
        -math.inf,
        1e308,
        True,
        "1",
        None,
        0.5,
    ]
    return st.one_of(
        st.sampled_from(edge),
        st.sampled_from(odd),
        st.integers(max_value=-1),
        st.floats(max_value=-0.001),
    )


def choices(wanted: Any) -> Values:
    options = [
        option for option in wanted.options if wanted.id != "sampler_name" or option in SAMPLERS
    ]
    return st.one_of(
        st.sampled_from(options), st.sampled_from(options).map(str.upper), texts(), st.just(options)
    )


def texts() -> Values:
    odd = [
        "\ud800",
        "\0",
        "a\0b",
        "x" * 10**5,
        "a, b",
        "a\nb",
        "$x$",
        "\u202e",
        "%",
        "{}",
        "ä" * 201,
        "source",
        " ",
    ]
    return st.one_of(st.text(max_size=20), st.sampled_from(odd))


def names() -> Values:
    """Of files: what they are made of, and what they should not be made of."""
    parts = st.one_of(
        st.sampled_from(
            ["..", ".", "", " ", "~", "%year%", "a", "ä", "CON", "[output]", "C:", "x" * 200]
        ),
        st.text(max_size=5),
    )
    joined = st.builds(
        lambda by, listed: by.join(listed),
        st.sampled_from(["/", "\\", ""]),
        st.lists(parts, min_size=1, max_size=4),
    )
    ended = st.builds(
        lambda name, end: name + end,
        joined,
        st.sampled_from(["", SUFFIX, f"{SUFFIX} [output]", f"{SUFFIX} [temp]"]),
    )
    return st.one_of(joined, ended, texts(), st.builds(stored))


def images(wanted: Any = None) -> Values:
    return tensors(
        sides(
            (2, 64, 64, 3),
            (2, 16, 24, 3),
            (2, 9, 5, 4),
            (2, 12, 64, 3),
            (3, 16, 24, 3),
            (1, 16, 16, 3),
        )
    )


def masks(wanted: Any) -> Values:
    return tensors(sides((2, 8, 8), (1, 64, 64), (5, 7), (2, 1, 8, 8), (3, 8, 8)))


def latents(wanted: Any) -> Values:
    samples = tensors(sides((2, 4, 8, 8), (1, 4, 3, 5), (2, 16, 8, 8), (1, 4, 2, 8, 8)))
    more = st.sampled_from(
        [{}, {}, {"noise_mask": torch.zeros(1, 8, 8)}, {"batch_index": [7]}, {"type": "audio"}]
    )
    return st.builds(lambda tensor, others: {"samples": tensor, **others}, samples, more)


def prompts(wanted: Any) -> Values:
    embeddings = tensors(sides((1, 4, 32), (2, 3, 32), (1, 77, 48), (4, 32)))
    options = st.sampled_from(
        [{}, {}, {"mask": torch.ones(1, 8, 8)}, {"area": (4, 4, 0, 0)}, {"pooled_output": None}]
    )
    made = st.lists(
        st.builds(lambda embedding, more: [embedding, dict(more)], embeddings, options), max_size=2
    )
    return st.one_of(st.sampled_from([SOURCE, POSITIVE, NEGATIVE, [*SOURCE, *NEGATIVE]]), made)


def models(wanted: Any) -> Values:
    some = bad_models
    makers: list[Callable[[], Any]] = [
        some.no_unet,
        some.autoencoder,
        some.video_model,
        some.flow_model,
        some.distilled,
        some.broken,
    ]
    makers += [
        some.merged,
        some.sliding,
        some.caching,
        lambda: tiny_model(9),
        lambda: tiny_model().clone(),
    ]
    return st.sampled_from(makers).map(lambda make: make())


class NanDecoder(Decoder):
    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents) * math.nan


class SmallDecoder(Decoder):
    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents)[:, ::8, ::8]


class NoDecoder:
    decode = None


def decoders(wanted: Any) -> Values:
    return st.sampled_from(
        [
            Decoder(),
            Coder(),
            NanDecoder(),
            SmallDecoder(),
            NoDecoder(),
            SimpleNamespace(decode=lambda latents: "picture"),
        ]
    )


def videos(wanted: Any) -> Values:
    """Of any frames, with and without sound; one that is none."""
    sound = st.sampled_from([None, torch.zeros(2, 9000), torch.ones(5, 30), torch.zeros(1, 0)])
    broken = SimpleNamespace(get_components=lambda: None, save_to=print)
    return st.one_of(st.builds(video, images(), st.just(8), sound), st.just(broken))


CLIPS = (CLIP, (1, (8, 8)), (3, (8, 8)), (2, (8, 16)))


def inversions(wanted: Any) -> Values:
    """Of other clips, of another model, with prompts that no file can hold."""

    def changed(clip: Any, conditioning: Any, fingerprint: Any) -> Any:
        own = inverted(*clip)[0]
        return dataclasses.replace(
            own,
            conditioning=conditioning or own.conditioning,
            fingerprint=fingerprint or own.fingerprint,
        )

    odd = [
        None,
        None,
        [[SOURCE[0][0], {"set": {1, 2}}]],
        [[SOURCE[0][0], {"text": "\ud800", "x": math.nan}]],
    ]
    return st.builds(
        changed,
        st.sampled_from(CLIPS),
        st.sampled_from(odd),
        st.sampled_from([None, None, "", "f" * 64]),
    )


def features(wanted: Any) -> Values:
    return st.sampled_from(CLIPS).map(lambda clip: extracted(*clip))


def found(wanted: Any) -> Values:
    return st.one_of(
        st.sampled_from(CLIPS).map(lambda clip: matched(*clip)), st.builds(bad_models.other_layers)
    )


def injections(wanted: Any) -> Values:
    share = st.sampled_from([0.0, 0.5, 1.0])
    return st.builds(Injection, share, share, st.sampled_from(["decoder", "late decoder"]))


def keyframes(wanted: Any) -> Values:
    """None, and of other clips; some of latents that are no numbers."""

    def made(clip: Any, scale: float) -> GivenKeyframes:
        samples = scale * inverted(*clip)[0].latents[-1]
        return GivenKeyframes((0,), samples, torch.ones(len(samples), 8, 8))

    return st.one_of(
        st.none(),
        st.builds(made, st.sampled_from(CLIPS), st.sampled_from([1.0, 0.0, math.nan, math.inf])),
    )


KINDS: dict[str, Callable[[Any], Values]] = {
    "INT": numbers,
    "FLOAT": numbers,
    "COMBO": choices,
    "STRING": lambda wanted: texts(),
    "BOOLEAN": lambda wanted: st.booleans(),
    "IMAGE": images,
    "MASK": masks,
    "LATENT": latents,
    "CONDITIONING": prompts,
    "MODEL": models,
    "VAE": decoders,
    "VIDEO": videos,
    "CLIP": lambda wanted: st.none(),
    "CLIP_VISION": lambda wanted: st.none(),
    "TOKENFLOW_INVERSION": inversions,
    "TOKENFLOW_FEATURES": features,
    "TOKENFLOW_CORRESPONDENCES": found,
    "TOKENFLOW_INJECTION": injections,
    "TOKENFLOW_KEYFRAMES": keyframes,
}


def values(wanted: Any) -> Values:
    """Of an input of a node's schema."""
    if wanted.id in ("file", "filename_prefix"):
        return st.one_of(names(), names(), nonsense())
    kinds = str(wanted.get_io_type()).split(",")
    of_kind = st.one_of(*(KINDS[kind](wanted) for kind in kinds))
    return st.one_of(of_kind, of_kind, of_kind, nonsense())
