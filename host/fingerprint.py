"""Which model an inversion belongs to."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def model_fingerprint(model: Any) -> str:
    """A digest of a ModelPatcher's architecture, noise levels, prediction and a part of its own weights; LoRA on top does not change it.

    The weights are the one-dimensional ones (norms and biases): every checkpoint has its own, they are small, and LoRA rarely touches them;
    where something did, the host's backup of the original is taken.
    """
    digest = hashlib.sha256()
    sampling = model.get_model_object("model_sampling")
    digest.update(" ".join(base.__name__ for base in type(sampling).__mro__[1:]).encode())  # the schedule's class and the prediction's
    digest.update(sampling.sigmas.detach().float().cpu().numpy().tobytes())
    for name, weight in model.model.diffusion_model.named_parameters():
        if weight.ndim != 1:
            continue
        backup = model.backup.get(f"diffusion_model.{name}")
        weight = weight if backup is None else backup.weight
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        # Half precision is what checkpoints store: the same model loaded in another type keeps its fingerprint.
        digest.update(weight.detach().to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()
