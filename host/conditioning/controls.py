"""A ControlNet cut down to some of the frames.

`get_control` cuts the hints to the first n of a smaller batch and overwrites its cache with them.
So every frame beyond those would see another frame's hint, in this run and, after an interrupt, in
the user's next one. A pass therefore works on a shallow copy with hints of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor


def control_view(control: Any, frames: Tensor, total: int) -> Any:
    """Makes a shallow copy of a control and its chain that holds the hints of some frames only.

    Fewer hints than frames repeat in order, as the host does. The model, pre-run results and
    strengths are shared.

    Args:
        control: The host's control, a ControlNet or a T2I adapter.
        frames: Frame numbers, (n,).
        total: Frames of the clip.

    Returns:
        The copy.
    """
    view = copy.copy(control)
    for name, value in vars(control).items():
        if isinstance(value, MethodType) and value.__self__ is control:
            setattr(view, name, MethodType(value.__func__, view))
    for cache in ("cond_hint", "extra_concat", "control_input"):
        if hasattr(view, cache):
            setattr(view, cache, None)
    if hasattr(view, "sub_idxs"):  # Advanced-ControlNet cuts its hints by itself
        view.sub_idxs = frames.tolist()
        view.full_latent_length, view.context_length = total, len(frames)
    else:
        view.cond_hint_original = rows_of(view.cond_hint_original, frames)
        view.extra_concat_orig = [rows_of(extra, frames) for extra in view.extra_concat_orig]
    if hasattr(view, "control_input"):
        view.get_control = partial(_adapter_control, view, view.get_control)
    # On newer hosts: the same control on other devices.
    if clones := getattr(view, "multigpu_clones", None):
        view.multigpu_clones = {
            device: control_view(clone, frames, total) for device, clone in clones.items()
        }
    if view.previous_controlnet is not None:
        view.previous_controlnet = control_view(view.previous_controlnet, frames, total)
    return view


def _adapter_control(view: Any, get_control: Callable[..., Any], x: Tensor, *args: Any) -> Any:
    """T2I adapters keep what they made of the hints.

    But the host's next batch may hold more or fewer conditionings.
    """
    if view.cond_hint is not None and len(view.cond_hint) not in (1, len(x)):
        view.control_input = None
    return get_control(x, *args)


def shallow_control(control: dict[str, Any], deep: Sequence[str]) -> dict[str, Any]:
    """Leaves out a control's residuals for the UNet's deep blocks, which do not run.

    The host takes the last of each list for the first block.

    Args:
        control: Residuals for the UNet's blocks, by part of the UNet ("input", "middle", "output").
        deep: Paths of the layers in deep blocks.

    Returns:
        The same, with None for what is left out.
    """
    blocks = {tuple(path.split(".")[:2]) for path in deep}
    parts = {"input": "input_blocks", "output": "output_blocks"}

    def left(name: str, residuals: Any) -> Any:
        if not isinstance(residuals, list):
            return residuals
        numbers = range(len(residuals) - 1, -1, -1)
        deeper = [
            name == "middle" or (parts.get(name, ""), str(number)) in blocks for number in numbers
        ]
        return [
            None if below else residual for residual, below in zip(residuals, deeper, strict=True)
        ]

    return {name: left(name, residuals) for name, residuals in control.items()}


def rows_of(tensor: Tensor | None, frames: Tensor) -> Any:
    """Picks the rows that belong to some frames.

    A single row belongs to all; fewer rows than frames repeat in order.

    Args:
        tensor: A row for each frame, or fewer, or None.
        frames: Frame numbers, (n,).

    Returns:
        The rows; `tensor` itself if it has at most one row, no dimensions, or is None.
    """
    if tensor is None or tensor.ndim == 0 or len(tensor) <= 1:
        return tensor
    return tensor[(frames % len(tensor)).to(tensor.device)]
