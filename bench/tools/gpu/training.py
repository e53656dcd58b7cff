"""How fast the embedded model is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from clips import Clip
from train import Trainer, fresh

from bench.tools.memory import spent_on

from .sizes import Lines, Sizes, device

RATE = 4e-4


def training(sizes: Sizes) -> Lines:
    """Pictures a second of demo/train.py, not compiled, of the UNet and of the transformer."""
    lines = []
    clip = Clip("plain", 1, 2)
    picture = (clip.pictures()[:1] * 255).round().byte()
    pictures, captions = picture.repeat(sizes.batch, 1, 1, 1), [clip.caption] * sizes.batch
    for kind in ("unet", "transformer"):
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
            trainer = Trainer(fresh(kind), Path(folder, "state"), device().type, compiled=False)

            def learn(trainer: Trainer = trainer) -> float:
                losses = [trainer.learn(pictures, captions, RATE)[1] for _ in range(sizes.batches)]
                return float(losses[-1].mean())

            learn()
            loss, spent = spent_on(learn)
        rate = sizes.batch * sizes.batches / spent.seconds
        lines.append(
            {"model": kind, "batch": sizes.batch, "pictures a second": rate, "loss": loss}
            | {"peak MiB": spent.peak.mib}
        )
    return lines
