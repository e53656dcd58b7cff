"""Patches between the host and the UNet (model_function_wrapper: Tiled Diffusion and its like) that
hand it other things than the host.

Whole conditionings with all their keys go on working. All else is one error, in every mode and
already at the inversion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.modes import MODES
from tokenflow_pack.nodes.features import ExtractFeatures
from torch import Tensor
from torch.nn.functional import interpolate

import nodes

from ..helpers import SOURCE, call, injection, invert, relative_error
from ..small import applied, edit, inverted, matched, stock, tiny_model
from ..tiny_models import moving_clip

CLIP = 3, (8, 16)
Apply = Callable[..., Tensor]
Wrapper = Callable[[Apply, dict[str, Any]], Tensor]


def rows(c: dict[str, Any], chosen: Any, total: int) -> dict[str, Any]:
    """What goes with some of a batch's rows, the keys of transformer_options as they are."""
    return {
        name: part[chosen] if isinstance(part, Tensor) and len(part) == total else part
        for name, part in c.items()
    }


def some(apply_model: Apply, args: dict[str, Any], chosen: Any, **keys: Any) -> Tensor:
    total = len(args["input"])
    c = rows(args["c"], chosen, total)
    c["transformer_options"] = c["transformer_options"] | keys
    return apply_model(args["input"][chosen], args["timestep"][chosen], **c)


def tiled(apply_model: Apply, args: dict[str, Any]) -> Tensor:
    return torch.cat(
        [apply_model(part, args["timestep"], **args["c"]) for part in args["input"].chunk(2, -1)],
        -1,
    )


def enlarged(apply_model: Apply, args: dict[str, Any]) -> Tensor:
    found = apply_model(interpolate(args["input"], scale_factor=2), args["timestep"], **args["c"])
    return interpolate(found, scale_factor=0.5)


def first_apart(apply_model: Apply, args: dict[str, Any]) -> Tensor:
    return torch.cat(
        [some(apply_model, args, slice(0, 1)), some(apply_model, args, slice(1, None))]
    )


def doubled(apply_model: Apply, args: dict[str, Any]) -> Tensor:
    total = len(args["input"])
    return some(apply_model, args, torch.arange(total).repeat(2))[:total]


def turned(apply_model: Apply, args: dict[str, Any]) -> Tensor:
    """The last frame first."""
    total = len(args["input"])
    order = (
        torch.arange(total).unflatten(0, (-1, CLIP[0])).flip(1).flatten()
        if total % CLIP[0] == 0
        else torch.arange(total).flip(0)
    )
    return some(apply_model, args, order)[order.argsort()]


def without_uuids(apply_model: Apply, args: dict[str, Any]) -> Tensor:
    options = {
        name: value for name, value in args["c"]["transformer_options"].items() if name != "uuids"
    }
    return apply_model(
        args["input"], args["timestep"], **args["c"] | {"transformer_options": options}
    )


def without_options(apply_model: Apply, args: dict[str, Any]) -> Tensor:
    return apply_model(args["input"], args["timestep"], **args["c"] | {"transformer_options": {}})


def remembered(apply_model: Apply, args: dict[str, Any]) -> Tensor:
    """As a cache that takes an earlier answer."""
    return 0.5 * args["input"]


TILES, REBUILT = r"cuts frames into tiles \(Tiled Diffusion", "rebuilds the batch"
UNSEEN = (
    "no batch with what TokenFlow hands over: a patch on the model leaves calls out or drops "
    r".* \(caches such as TeaCache\)"
)
REFUSED: dict[str, tuple[Wrapper, str]] = {
    "tiles": (
        tiled,
        f"pictures of 8 x 8 latent pixels instead of 16 x 8: a patch on the model {TILES}",
    ),
    "another size": (
        enlarged,
        "pictures of 32 x 16 latent pixels instead of 16 x 8: a patch on the model enlarges frames",
    ),
    "one row cut off": (
        first_apart,
        r"a batch of [01] instead of \d x \d pictures: "
        "a patch on the model cuts the batch between frames",
    ),
    "rows twice": (
        doubled,
        r"a batch of \d+ instead of \d x \d pictures: a patch on the model repeats frames",
    ),
    "another order": (turned, "frames in another order: a patch on the model rearranges the batch"),
    "no uuids": (
        without_uuids,
        f"its batch without the keys of its conditionings: a patch on the model {REBUILT}",
    ),
    "no options": (without_options, UNSEEN),
    "no call": (remembered, UNSEEN),
}


def wrapped(model: Any, wrapper: Wrapper) -> Any:
    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone


STAGES: dict[str, Callable[[Wrapper], Any]] = {
    "DDIM Invert Video": lambda wrapper: invert(
        wrapped(tiny_model(), wrapper), moving_clip(CLIP[0], *CLIP[1])
    ),
    "Extract SA Features": lambda wrapper: call(
        ExtractFeatures.execute, wrapped(tiny_model(), wrapper), inverted(*CLIP)[0]
    ),
    "Apply TokenFlow": lambda wrapper: stock(
        wrapped(applied(correspondences=matched(*CLIP)), wrapper), clip=CLIP
    ),
}


def short(wrapper: Wrapper, mode: str = "tokenflow") -> Tensor:
    return edit(
        wrapped(tiny_model(), wrapper),
        correspondences=matched(*CLIP),
        consistency=mode,
        injection=injection(),
        start=0.6,
    )


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("stage", STAGES)
def test_other_rows_are_refused_at_every_stage(stage: str, name: str) -> None:
    wrapper, found = REFUSED[name]
    with pytest.raises(
        NodeError, match=f"{stage}, input 'model': the UNet gets {found}.*Remove it"
    ):
        STAGES[stage](wrapper)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("mode", MODES)
def test_other_rows_are_refused_in_every_mode(mode: str, name: str) -> None:
    wrapper, found = REFUSED[name]
    with pytest.raises(
        NodeError, match=f"TokenFlow Sampler, input 'model': the UNet gets {found}.*Remove it"
    ):
        short(wrapper, mode)


def by_conditioning(apply_model: Apply, args: dict[str, Any]) -> Tensor:
    options, order = args["c"]["transformer_options"], range(len(args["cond_or_uncond"]))
    parts = torch.arange(len(args["input"])).chunk(len(order))
    keys = [{name: [options[name][i]] for name in ("uuids", "cond_or_uncond")} for i in order]
    # The last one first.
    found = {i: some(apply_model, args, parts[i], **keys[i]) for i in reversed(order)}
    return torch.cat([found[i] for i in order])


@pytest.mark.parametrize("mode", MODES)
def test_whole_conditionings_with_their_keys_go_on_working(mode: str) -> None:
    def unchanged(apply_model: Apply, args: dict[str, Any]) -> Tensor:
        return apply_model(args["input"], args["timestep"], **args["c"])

    assert relative_error(short(by_conditioning, mode), short(unchanged, mode)) < 1e-5


def test_where_nothing_of_ours_is_done_such_patches_are_the_plain_hosts() -> None:
    model = wrapped(tiny_model(), tiled)
    found = edit(model, correspondences=matched(*CLIP), consistency="per frame")
    assert torch.equal(found, stock(model, clip=CLIP))


@pytest.mark.parametrize("side", [32, 512])
def test_a_prompt_for_an_area_is_no_tile(side: int) -> None:
    """The host itself cuts the frame for it, at the frame's border at last."""
    area = nodes.ConditioningSetArea().append(SOURCE, side, side, 32, 32, 1.0)[0]
    assert invert(tiny_model(), moving_clip(2, 8, 16), positive=[*SOURCE, *area])[0].frames == 2


def test_frames_that_are_the_same_have_no_order() -> None:
    one = moving_clip(1, *CLIP[1])["samples"].expand(3, -1, -1, -1)
    inversion = invert(wrapped(tiny_model(), turned), {"samples": one})[0]
    assert torch.equal(inversion.latents[:, 0], inversion.latents[:, 2])
