"""Which model an inversion belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...tokenflow_ops.storage.signature import Numbers


def model_fingerprint(model: Any) -> str:
    """Returns what tells a ModelPatcher's model from others.

    It is a digest of the model's architecture, noise levels and prediction, and numbers of its
    weights. The same checkpoint in another type has other numbers, which `is_same_model` knows to
    be the same. LoRA on top changes nothing, whatever has been loaded; other models merged in by
    the host's nodes do.
    """
    return f"{_architecture(model)}:{_numbers(model).to_text()}"


def is_same_model(model: Any, fingerprint: str) -> bool:
    """Tells whether a fingerprint is of this model's weights, in whatever type they are or were.

    `Numbers.distance` up to 1 is the same. Seen on random SD 1.5 and SDXL and on the embedded
    model: at most 0.51 for the same weights in float32, float16, bfloat16 and both kinds of float8,
    0 with LoRA on top; 95 % merged with 5 % of an unrelated model 30,000 and more, in float8_e4m3
    50 and more. 5 % of weights tuned by 1 % of their deviation are 40 in half precision, and within
    the rounding of float8.

    Args:
        model: The ModelPatcher.
        fingerprint: From `model_fingerprint`, also of version 0.1.

    Returns:
        Whether it is.
    """
    architecture, separator, numbers = fingerprint.partition(":")
    if not separator:
        return fingerprint == _first_digest(model)
    try:
        known = Numbers.from_text(numbers)
    except ValueError:  # of a file that somebody made up
        return False
    return architecture == _architecture(model) and known.distance(_numbers(model)) <= 1


def _architecture(model: Any) -> str:
    """A digest of everything about a model but its weights' values."""
    sampling = model.get_model_object("model_sampling")
    digest = _schedule_digest(sampling)
    digest.update(str(getattr(sampling, "sigma_data", None)).encode())
    for name, weight, _ in _weights(model):
        # Quantised weights of GGUF have a shape of their own; norms and biases are never quantised.
        digest.update(f"{name}{tuple(weight.shape) if weight.ndim == 1 else ''}".encode())
    return digest.hexdigest()


def _schedule_digest(sampling: Any) -> Any:
    digest = hashlib.sha256()
    # The schedule's class and the prediction's.
    digest.update(" ".join(base.__name__ for base in type(sampling).__mro__[1:]).encode())
    digest.update(sampling.sigmas.detach().float().cpu().numpy().tobytes())
    return digest


def _weights(model: Any) -> Iterator[tuple[str, Tensor, bool]]:
    """Names and weights of the UNet before anything was put on them.

    The third is whether they are quantised with a scale of their own.
    """
    for path, module in model.model.diffusion_model.named_modules(prefix="diffusion_model"):
        own = dict(module.named_parameters(recurse=False))
        # Scales are parameters too; a quantised layer may have its bias first.
        for kind in ("weight", "bias"):
            if (weight := own.get(kind)) is not None:
                name = f"{path}.{kind}"
                backup, hooked = model.backup.get(name), model.hook_backup.get(name)
                weight = (
                    backup.weight if backup is not None else weight if hooked is None else hooked[0]
                )
                yield name, weight, hasattr(module, f"convert_{kind}")


def _numbers(model: Any) -> Numbers:
    return Numbers.joined(
        _with_merges(weight, scaled, model.patches.get(name, []))
        for name, weight, scaled in _weights(model)
    )


def _with_merges(weight: Tensor, scaled: bool, patches: list[Any]) -> Numbers:
    """Numbers of a weight and of those that the host's nodes merge into it.

    LoRA, which is patched on likewise, is left out.

    scaled: quantised numbers say nothing without their scale. patches: the host's, (strength,
    patch, strength of the weight, ...). What is merged in is a list: the other model's weight with
    its conversion, and then the patches on it.
    """
    numbers = Numbers.unknown() if scaled or not weight.is_floating_point() else Numbers.of(weight)
    for strength, patch, strength_model, *_ in patches:
        if isinstance(patch, list):
            (other, convert), *others = patch
            numbers = numbers.times(strength_model)
            if other.shape == weight.shape:  # else the host leaves it out
                numbers = numbers.plus(
                    _with_merges(other, hasattr(convert, "__self__"), others).times(strength)
                )
    return numbers


def _first_digest(model: Any) -> str:
    """The fingerprint of version 0.1: norms and biases in float16, without what was merged in.

    Stored inversions have it.
    """
    digest = _schedule_digest(model.get_model_object("model_sampling"))
    for name, weight in model.model.diffusion_model.named_parameters():
        if weight.ndim == 1:
            backup = model.backup.get(f"diffusion_model.{name}")
            weight = weight if backup is None else backup.weight
            digest.update(f"{name}{tuple(weight.shape)}".encode())
            digest.update(weight.detach().to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()
