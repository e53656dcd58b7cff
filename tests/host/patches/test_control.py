"""ControlNets and T2I adapters: every frame gets its own hint,
in the keyframe pass and in every chunk of frames.
"""

from __future__ import annotations

import logging
from types import MethodType
from typing import Any

import comfy.controlnet
import pytest
import torch
from comfy import model_management
from comfy.cldm.cldm import ControlNet as ControlModel
from comfy.t2i_adapter.adapter import Adapter
from comfy_extras.nodes_controlnet import ControlNetInpaintingAliMamaApply
from tokenflow_pack.host.conditioning.controls import control_view, shallow_control
from tokenflow_pack.host.families.unet import deep_layers
from tokenflow_pack.host.validation.errors import NodeError
from torch import Tensor

import nodes

from ..helpers import (
    NEGATIVE,
    POSITIVE,
    STEPS,
    call,
    edit,
    frames_of,
    interrupted,
    matched,
    relative_error,
    stock,
    tiny_model,
    watched,
)
from ..once import once_a_module
from ..tiny_models import LAYOUT, random_conditioning, random_module

PASS = "tokenflow_pass"
ROUNDING = 1e-4
SHORT = 3
CLIP = SHORT, (8, 8)


@once_a_module
def controlnet(seed: int = 0, masked: bool = False) -> Any:
    """The host's ControlNet for the narrow UNet; a masked one takes a mask beside the hint."""
    layout = {
        name: value
        for name, value in LAYOUT.items()
        if name not in ("out_channels", "transformer_depth_output")
    }
    model = ControlModel(**layout, hint_channels=3 + masked, dtype=torch.float32)
    return comfy.controlnet.ControlNet(
        random_module(model, seed), load_device=torch.device("cpu"), concat_mask=masked
    )


@once_a_module
def adapter() -> Any:
    """The host's T2I adapter for the narrow UNet."""
    model = Adapter(
        cin=3 * 64, channels=[32, 64, 64, 64], nums_rb=2, ksize=1, sk=True, use_conv=False, xl=False
    )
    return comfy.controlnet.T2IAdapter(
        random_module(model, 0), model.input_channels, 8, "nearest-exact", torch.device("cpu")
    )


def apply(
    control: Any,
    image: Tensor,
    strength: float = 0.5,
    start: float = 0.0,
    end: float = 1.0,
    both: Any = None,
) -> tuple[Any, Any]:
    """Positive and negative under a control, on top of those that `both` have."""
    return nodes.ControlNetApplyAdvanced().apply_controlnet(
        *(both or (POSITIVE, NEGATIVE)), control, image, strength, start, end
    )


def short(*both: Any, **inputs: Any) -> Tensor:
    """An edit of few frames in two steps."""
    return edit(
        tiny_model(), *(both or (POSITIVE, NEGATIVE)), matched(*CLIP), **{"start": 0.6, **inputs}
    )


def hints(count: int, seed: int) -> Tensor:
    return torch.rand(count, 64, 64, 3, generator=torch.Generator().manual_seed(seed))


def controlled(*images: Tensor) -> tuple[Any, Any]:
    """Positive and negative under a chain of ControlNets, one for each batch of hint images."""
    both = POSITIVE, NEGATIVE
    for seed, image in enumerate(images):
        both = apply(controlnet(seed), image, both=both)
    return both


@pytest.fixture
def seen_hints(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, Tensor, int]]:
    """(control model, pass or None, hint rows, conditionings) of every ControlNet call."""
    seen: list[Any] = []
    get_control = comfy.controlnet.ControlNet.get_control

    def watched_control(
        self: Any, x: Tensor, t: Tensor, cond: Any, batched: int, options: dict[str, Any]
    ) -> Any:
        out = get_control(self, x, t, cond, batched, options)
        seen.append((self.control_model, options.get(PASS), self.cond_hint, batched))
        return out

    monkeypatch.setattr(comfy.controlnet.ControlNet, "get_control", watched_control)
    return seen


@pytest.mark.parametrize(
    "counts",
    [(SHORT,), (2,), (SHORT, SHORT), (SHORT, 1)],
    ids=["own", "repeating", "chained", "chained, single"],
)
def test_every_frame_has_its_own_hint(
    counts: tuple[int, ...], seen_hints: list[tuple[Any, Any, Tensor, int]]
) -> None:
    images = [hints(count, seed) for seed, count in enumerate(counts)]
    found = short(*controlled(*images), frames_per_pass=2)
    kinds = set()
    for control_model, frames_pass, rows, batched in seen_hints:
        kinds.add((id(control_model), type(frames_pass).__name__))
        image = images[0 if control_model is controlnet(0).control_model else 1].movedim(-1, 1)
        wanted = torch.cat([image[[i % len(image) for i in frames_pass.frames.tolist()]]] * batched)
        # Cond and uncond share the view of a pass, or the host would split them; frames between
        # keyframes are asked for cond alone.
        assert batched == (2 if type(frames_pass).__name__ == "KeyframePass" else 1)
        assert torch.equal(rows.expand_as(wanted) if len(rows) == 1 else rows, wanted)
    assert len(kinds) == 2 * len(counts)
    assert relative_error(found, short(*controlled(*images))) < ROUNDING
    assert relative_error(found, short()) > 10 * ROUNDING


def test_after_an_interrupt_the_plain_run_has_all_hints() -> None:
    images = hints(SHORT, 0), hints(SHORT, 1)
    wanted = stock(tiny_model(), *controlled(*images), clip=CLIP)
    positive, negative = controlled(*images)
    calls = []

    def stop(args: dict[str, Any]) -> None:
        calls.append(frames_of(args))
        model_management.interrupt_current_processing(len(calls) == 2)

    with interrupted():
        edit(watched(tiny_model(), stop), positive, negative, matched(*CLIP), frames_per_pass=2)
    assert len(calls) == 2
    assert torch.equal(stock(tiny_model(), positive, negative, clip=CLIP), wanted)


def test_methods_bound_to_a_control_are_bound_to_its_view() -> None:
    control = controlnet().copy().set_cond_hint(torch.arange(3.0).reshape(3, 1, 1, 1))
    control.mean_hint = MethodType(lambda self: float(self.cond_hint_original.mean()), control)
    view = control_view(control, torch.tensor([0, 2]), 3)
    assert view.cond_hint_original.flatten().tolist() == [0, 2]
    assert view.mean_hint() == 1
    view = control_view(control, torch.tensor([2]), 3)
    assert view.mean_hint() == 2
    assert control.mean_hint() == 1
    assert control.cond_hint_original.shape[0] == 3


def test_controls_that_cut_their_hints_themselves_are_told_the_frames() -> None:
    """As those of Advanced-ControlNet."""
    control = controlnet().copy().set_cond_hint(torch.zeros(5, 3, 8, 8))
    control.sub_idxs, control.full_latent_length, control.context_length = None, 0, 0
    view = control_view(control, torch.tensor([1, 4]), 5)
    assert (view.sub_idxs, view.full_latent_length, view.context_length) == ([1, 4], 5, 2)
    assert view.cond_hint_original is control.cond_hint_original
    assert control.sub_idxs is None


def test_reference_controls_are_refused() -> None:
    """Advanced-ControlNet's, wherever it stands in the chain."""
    reference = controlnet().copy().set_cond_hint(torch.zeros(1, 3, 8, 8))
    reference.ref_opts = None
    control = (
        controlnet()
        .copy()
        .set_cond_hint(torch.zeros(1, 3, 8, 8))
        .set_previous_controlnet(reference)
    )
    with pytest.raises(
        NodeError, match=r"TokenFlow Sampler, input 'negative': a Reference ControlNet"
    ):
        short(POSITIVE, [[NEGATIVE[0][0], {"control": control, "control_apply_to_uncond": False}]])


def test_the_users_conditionings_are_not_changed() -> None:
    positive, negative = controlled(hints(SHORT, 0))
    positive = nodes.ConditioningSetMask().append(
        positive, torch.ones(SHORT, 8, 8), "default", 1.0
    )[0]
    control = positive[0][1]["control"]

    def marks() -> list[Any]:
        parts = [repr(sorted(entry[1])) for entry in (*positive, *negative)]
        return [
            *parts,
            id(positive[0][1]["control"]),
            {name: id(value) for name, value in vars(control).items()},
        ]

    short(positive, negative)  # the host's own traces: attributes set in every run
    before, tensors = marks(), [positive[0][0].clone(), control.cond_hint_original.clone()]
    short(positive, negative, frames_per_pass=2)
    assert marks() == before
    assert torch.equal(positive[0][0], tensors[0])
    assert torch.equal(control.cond_hint_original, tensors[1])


def test_hints_with_a_mask_for_every_frame(seen_hints: list[tuple[Any, Any, Tensor, int]]) -> None:
    """As inpainting ControlNets take them."""
    image, mask = hints(SHORT, 0), (hints(SHORT, 1)[..., 0] > 0.5).float()
    both = call(
        ControlNetInpaintingAliMamaApply.execute,
        POSITIVE,
        NEGATIVE,
        controlnet(0, True),
        None,
        image,
        mask,
        0.5,
        0.0,
        1.0,
    )
    assert torch.isfinite(short(*both, frames_per_pass=2)).all()
    wanted = torch.cat([image * (1 - mask[..., None]), 1 - mask[..., None]], -1).movedim(-1, 1)
    assert {type(frames_pass).__name__ for _, frames_pass, _, _ in seen_hints} == {
        "KeyframePass",
        "PropagationPass",
    }
    for _, frames_pass, rows, batched in seen_hints:
        print(
            type(frames_pass),
            rows.shape,
            frames_pass.frames,
            (rows - torch.cat([wanted[frames_pass.frames]] * batched)).abs().amax((1, 2, 3)),
        )
        assert torch.equal(
            rows.expand(batched * len(frames_pass.frames), -1, -1, -1),
            torch.cat([wanted[frames_pass.frames]] * batched),
        )


def test_a_control_holds_from_its_start_to_its_end() -> None:
    """As if it had been connected for these steps only."""
    calls: list[tuple[float, bool]] = []

    def see(args: dict[str, Any]) -> None:
        calls.append((float(args["timestep"][0]), args["c"].get("control") is not None))

    edit(
        watched(tiny_model(), see),
        *apply(controlnet(), hints(SHORT, 0), start=0.25, end=0.75),
        matched(*CLIP),
        frames_per_pass=2,
    )
    levels = sorted({level for level, _ in calls}, reverse=True)
    assert len(levels) == STEPS
    assert {level for level, controlled in calls if controlled} == {levels[1]}
    assert all(controlled for level, controlled in calls if level == levels[1])


def test_controls_of_a_chain_keep_their_strengths() -> None:
    """Twice the same is once with both strengths; the order does not matter."""
    one, other = hints(SHORT, 0), hints(SHORT, 1)
    weak, strong = (apply(controlnet(0), one, strength) for strength in (0.25, 0.5))
    twice = apply(controlnet(0), one, 0.25, both=strong)
    assert (
        relative_error(short(*twice, frames_per_pass=2), short(*apply(controlnet(0), one, 0.75)))
        < ROUNDING
    )
    found = short(*apply(controlnet(1), other, 0.5, both=weak), frames_per_pass=2)
    assert (
        relative_error(
            found, short(*apply(controlnet(0), one, 0.25, both=apply(controlnet(1), other, 0.5)))
        )
        < ROUNDING
    )


# T2I adapters


@pytest.fixture
def seen_adapted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int, list[Tensor]]]:
    """(pass, conditionings, what the adapter made of the hints by resolution)
    of every call of an adapter.
    """
    seen: list[Any] = []
    get_control = comfy.controlnet.T2IAdapter.get_control

    def watched_control(
        self: Any, x: Tensor, t: Tensor, cond: Any, batched: int, options: dict[str, Any]
    ) -> Any:
        out = get_control(self, x, t, cond, batched, options)
        seen.append(
            (
                options[PASS],
                batched,
                [part for part in self.control_input["input"] if part is not None],
            )
        )
        return out

    monkeypatch.setattr(comfy.controlnet.T2IAdapter, "get_control", watched_control)
    return seen


@pytest.mark.parametrize("count", [SHORT, 2, 1])
def test_every_frame_has_its_own_hint_of_an_adapter(
    count: int, seen_adapted: list[tuple[Any, int, list[Tensor]]], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever conditionings share a batch:
    the second prompt is too long to be batched with the others.
    """
    image = hints(count, 0)
    other = random_conditioning(4, tokens=9)
    positive = nodes.ConditioningCombine().combine(POSITIVE, other)[0]
    with caplog.at_level(logging.WARNING):
        found = short(*apply(adapter(), image, both=(positive, NEGATIVE)), frames_per_pass=2)
    assert "could not be applied" not in caplog.text
    assert {batched for _, batched, _ in seen_adapted} == {1, 2}
    assert {type(frames_pass).__name__ for frames_pass, _, _ in seen_adapted} == {
        "KeyframePass",
        "PropagationPass",
    }
    with torch.inference_mode():
        wanted = [
            part for part in adapter().t2i_model(image.movedim(-1, 1))["input"] if part is not None
        ]
    for frames_pass, batched, parts in seen_adapted:
        rows = [i % count for i in frames_pass.frames.tolist()] * batched
        for part, whole in zip(parts, wanted, strict=True):
            torch.testing.assert_close(part.expand(len(rows), -1, -1, -1), whole[rows])
    assert (
        relative_error(found, short(*apply(adapter(), image, both=(positive, NEGATIVE)))) < ROUNDING
    )
    assert relative_error(found, short(positive, NEGATIVE)) > 10 * ROUNDING


def test_a_chain_of_a_controlnet_and_an_adapter() -> None:
    images = hints(SHORT, 0), hints(SHORT, 1)
    one = apply(adapter(), images[1], both=apply(controlnet(), images[0]))
    other = apply(controlnet(), images[0], both=apply(adapter(), images[1]))
    found = short(*one, frames_per_pass=2)
    assert relative_error(found, short(*other)) < ROUNDING
    assert relative_error(found, short(*apply(controlnet(), images[0]))) > 10 * ROUNDING


def test_residuals_for_blocks_that_do_not_run_are_left_out() -> None:
    """As the host takes them: the last of each list for the first block.

    SD 1.5 is below full resolution from input 3 to output 8.
    """
    deep = deep_layers(tiny_model().model.diffusion_model)
    names = {"input": 12, "middle": 1, "output": 12}
    left = shallow_control(
        {
            name: [f"{name} {number}" for number in reversed(range(count))]
            for name, count in names.items()
        },
        deep,
    )
    taken = {name: [left[name].pop() for _ in range(count)] for name, count in names.items()}
    assert taken["input"] == ["input 0", "input 1", "input 2", *[None] * 9]
    assert taken["middle"] == [None]
    assert taken["output"] == [*[None] * 9, "output 9", "output 10", "output 11"]


@pytest.mark.parametrize("kind", ["ControlNet", "adapter"])
def test_the_host_applies_every_residual_it_is_left(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    both = (
        controlled(hints(SHORT, 0)) if kind == "ControlNet" else apply(adapter(), hints(SHORT, 0))
    )
    short(*both, carry_until=0.0)
    assert "control could not be applied" not in caplog.text
