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

import torch
from torch import Tensor

# Latents of hints by their control, number and size.
Encoded = dict[tuple[int, ...], Tensor]


def control_view(control: Any, frames: Tensor, total: int, encoded: Encoded | None = None) -> Any:
    """Makes a shallow copy of a control and its chain that holds the hints of some frames only.

    Fewer hints than frames repeat in order, as the host does. The model, pre-run results and
    strengths are shared.

    Args:
        control: The host's control, a ControlNet or a T2I adapter.
        frames: Frame numbers, (n,).
        total: Frames of the clip.
        encoded: Latents of hints that other views of the run have encoded; is added to.

    Returns:
        The copy.
    """
    encoded = {} if encoded is None else encoded
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
        vae, hints = getattr(control, "vae", None), control.cond_hint_original
        if vae is not None and hints is not None:
            numbers = (frames % len(hints)).tolist()
            view.vae = _encoding_once(vae, id(control), numbers, encoded)
        view.cond_hint_original = rows_of(view.cond_hint_original, frames)
        view.extra_concat_orig = [rows_of(extra, frames) for extra in view.extra_concat_orig]
    if hasattr(view, "control_input"):
        view.get_control = partial(_adapter_control, view, view.get_control)
    # On newer hosts: the same control on other devices.
    if clones := getattr(view, "multigpu_clones", None):
        view.multigpu_clones = {
            device: control_view(clone, frames, total, encoded) for device, clone in clones.items()
        }
    if view.previous_controlnet is not None:
        view.previous_controlnet = control_view(view.previous_controlnet, frames, total, encoded)
    return view


def takes_hints_for_a_film(control: Any) -> bool:
    """Tells whether the host would encode the hints of a chain's control as one video.

    Args:
        control: The host's control, or None.

    Returns:
        Whether one of the chain has several hints and the autoencoder of a video.
    """
    while control is not None:
        hints = control.cond_hint_original
        if _of_films(getattr(control, "vae", None)) and hints is not None and len(hints) > 1:
            return True
        control = control.previous_controlnet
    return False


def _of_films(vae: Any) -> bool:
    """Whether a VAE, or None, takes a batch of pictures for the frames of one video."""
    return getattr(vae, "latent_dim", 2) == 3


def _encoding_once(vae: Any, control: int, hints: Sequence[int], encoded: Encoded) -> Any:
    """Makes a shallow copy of a VAE for a view whose hints are those with the numbers `hints`.

    Every pass makes views of its own, and each would encode its hints anew at every step. And the
    autoencoder of a video takes a batch for one; encoded alone every hint is a picture.
    """

    def encode(pixels: Tensor) -> Tensor:
        keys = [(control, number, *pixels.shape[1:]) for number in hints[: len(pixels)]]
        missing = {key: row for row, key in enumerate(keys) if key not in encoded}
        rows = list(missing.values())
        at_once = 1 if _of_films(vae) else max(1, len(rows))
        for part in (rows[i : i + at_once] for i in range(0, len(rows), at_once)):
            for row, latents in zip(part, vae.encode(pixels[part]), strict=True):
                encoded[keys[row]] = latents
        return torch.stack([encoded[key] for key in keys])

    view = copy.copy(vae)
    view.encode = encode
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
