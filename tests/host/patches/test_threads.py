"""Prompt and negative prompt at the same time, in two threads and on two copies of the model (the
host's MultiGPU CFG Split).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import comfy.ops
import pytest
import torch
from comfy import model_management
from comfy.ldm.modules.attention import CrossAttention
from tokenflow_pack.host.calls import PASS_KEY, HostAttention
from tokenflow_pack.host.conditioning.controls import control_view
from tokenflow_pack.modes import MODES
from tokenflow_pack.tokenflow_ops.passes import JointPass, KeyframePass, Pass, SparseCausalPass
from torch import Tensor

from ..helpers import injection, relative_error
from ..once import once_a_module
from ..small import applied, matched, stock
from .two_threads import in_two_threads

ROUNDING = 1e-5
REPEATED = 20
CLIP = 3, (8, 8)


@pytest.fixture(autouse=True)
def _often_switched() -> Iterator[None]:
    """Threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 100)
    yield
    sys.setswitchinterval(before)


@once_a_module
def patched(mode: str, **inputs: Any) -> Any:
    return applied(
        correspondences=matched(*CLIP, "recompute"),
        consistency=mode,
        injection=injection(),
        **inputs,
    )


@once_a_module
def alone(mode: str) -> Tensor:
    return stock(patched(mode), clip=CLIP)


def threads_of(model: Any) -> tuple[Any, set[int]]:
    """A clone that notes the threads in which the UNet runs."""
    seen: set[int] = set()
    clone = model.clone()

    def wrapper(apply_model: Any, args: dict[str, Any]) -> Tensor:
        seen.add(threading.get_ident())
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone.set_model_unet_function_wrapper(wrapper)
    return clone, seen


@pytest.mark.parametrize("mode", MODES)
def test_two_threads_edit_as_one(mode: str) -> None:
    model, threads = threads_of(patched(mode))
    for _ in range(REPEATED if mode == "tokenflow" else 2):
        assert relative_error(stock(in_two_threads(model), clip=CLIP), alone(mode)) < ROUNDING
    assert threading.get_ident() not in threads
    assert len(threads) >= 2


def test_all_copies_of_the_model_are_left_as_they_were() -> None:
    model = in_two_threads(patched("tokenflow"))
    modules: set[Any] = set()
    clone = model.clone()

    def wrapper(apply_model: Any, args: dict[str, Any]) -> Tensor:
        modules.add(apply_model.__self__.diffusion_model)
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone.set_model_unet_function_wrapper(wrapper)
    stock(clone, clip=CLIP)
    assert len(modules) == 2
    assert not any("forward" in vars(part) for module in modules for part in module.modules())


def test_memory_that_runs_out_in_one_thread_leaves_nothing_of_the_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The host hands over what threads answer in order:
    what is left of a pass that failed is not the next one's.
    """
    model, failed = patched("tokenflow").clone(), []

    def wrapper(apply_model: Any, args: dict[str, Any]) -> Tensor:
        if (
            not failed
            and args["cond_or_uncond"] == [0]
            and isinstance(args["c"]["transformer_options"][PASS_KEY], KeyframePass)
        ):
            failed.append(True)
            raise model_management.OOM_EXCEPTION("no room")
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(wrapper)
    found = stock(in_two_threads(model), clip=CLIP)
    assert failed
    assert "out of memory, on with" in caplog.text
    assert (
        relative_error(found, stock(patched("tokenflow", attended_keyframes=1), clip=CLIP))
        < ROUNDING
    )


def test_a_control_on_another_device_sees_the_same_frames() -> None:
    """Newer hosts keep it beside the control, which asks for it by the device."""
    hints = torch.arange(5.0)[:, None, None, None]
    other = SimpleNamespace(
        cond_hint_original=hints, extra_concat_orig=[], previous_controlnet=None
    )
    control = SimpleNamespace(
        cond_hint_original=hints,
        extra_concat_orig=[],
        previous_controlnet=None,
        multigpu_clones={"cuda:1": other},
    )
    view = control_view(control, torch.tensor([1, 3]), 5)
    assert view.multigpu_clones["cuda:1"].cond_hint_original.flatten().tolist() == [1, 3]
    assert control.multigpu_clones == {"cuda:1": other}
    assert len(other.cond_hint_original) == 5


LAYER, PLACE, TOKENS, WIDTH = "layer", (0, 0), 6, 32
LEFT = {(LAYER, PLACE): [torch.zeros(2, TOKENS, WIDTH)]}


@pytest.mark.parametrize(
    "frames_pass",
    [
        JointPass(torch.tensor([2, 3]), keyframes=torch.tensor([0, 1]), seen=LEFT),
        KeyframePass(torch.tensor([2, 3]), context=LEFT),
        SparseCausalPass(
            torch.tensor([2, 3]),
            layers=frozenset([LAYER]),
            before={(LAYER, PLACE): torch.zeros(2, 2, TOKENS, WIDTH)},
        ),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_was_left_on_another_device_is_taken_to_this_one(frames_pass: Pass) -> None:
    """A prompt may run elsewhere in the next pass.

    The second device is torch's own without memory.
    """
    module = CrossAttention(
        WIDTH,
        heads=2,
        dim_head=16,
        device="meta",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    x = torch.zeros(2, TOKENS, WIDTH, device="meta")
    tokens = frames_pass.attention(
        HostAttention(LAYER, module, x, None, None, [PLACE], module.forward, None, {})
    )
    assert (tokens.device.type, tokens.shape) == ("meta", x.shape)
