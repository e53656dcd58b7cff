"""Trains the demo model on endless random scenes.

    python demo/train.py --state FILE [--hours 2] [--size 128] [--final]

FILE holds everything needed to go on (float32 weights, their running average, the optimizer); the
average is written to --out as well. The loss is v-prediction's: at high noise, where the prompt
decides, v is the picture itself, so prompts are learnt as fast as textures.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from pathlib import Path

import model as unet_model
import torch
import transformer as transformer_model
from model import PATCH, WEIGHTS, DemoModel, PatchAutoencoder, Tensor, host_attention
from scenes import Scene, uniform
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from wide import wide_scene

SAVE_EVERY = 100
DROPPED_CAPTIONS = 0.1
DIMMED = 0.25  # share of the pictures in other light
SEEN = 0.004  # share of the picture from which on a caption names an object


class Scenes(IterableDataset):
    """Batches of pictures (B, 3, size, size) uint8 and their captions, from a rolling pool.

    Rendering costs time that training wants: a quarter of every batch is new, the rest comes from
    the last thousands, mirrored at random.
    """

    def __init__(self, batch: int, size: int, pool: int = 8000) -> None:
        self.batch, self.size, self.pool = batch, size, pool

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        generator = torch.Generator().manual_seed(
            time.time_ns() % 2**40 + (worker.id if worker else 0)
        )
        pool: list[tuple[Tensor, str]] = []
        while True:
            pool += [
                self.draw(generator) for _ in range(self.batch // 4 if pool else 16 * self.batch)
            ]
            pool = pool[-self.pool :]
            picked = [pool[i] for i in torch.randint(len(pool), (self.batch,), generator=generator)]
            pictures = [
                picture.flip(2) if uniform(generator) < 0.5 else picture for picture, _ in picked
            ]
            yield (
                torch.stack(pictures),
                ["" if uniform(generator) < DROPPED_CAPTIONS else caption for _, caption in picked],
            )

    def draw(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """A picture (3, size, size) uint8 of the wide world and its caption,
        which names only what is seen.
        """
        scene, t = wide_scene(generator), uniform(generator, 0, 2)
        picture = scene.render(t, self.size)
        if uniform(generator) < DIMMED:
            picture = (picture * uniform(generator, 0.65, 1.2)).clamp(0, 1)
        seen = [
            f"a {sprite.surface} {sprite.shape}"
            for sprite in scene.sprites()
            if sprite.mask(t, 64).float().mean() > SEEN
        ]
        if uniform(generator) < 0.5:
            seen.reverse()
        caption = f"{' and '.join(seen)} on {scene.ground}" if seen else scene.ground
        return (picture * 255).round().byte(), caption


def fit_autoencoder(scenes: int = 800) -> PatchAutoencoder:
    """Principal axes of the world's 4 x 4 patches."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.stack([Scene(generator).render() for _ in range(scenes)]) * 2 - 1
    patches = F.pixel_unshuffle(pictures, PATCH).movedim(1, -1).flatten(0, 2)
    variance, axes = torch.linalg.eigh(torch.cov(patches.T))
    scale = variance.flip(0)[:16].clamp(min=1e-8) ** 0.25
    codec = PatchAutoencoder(
        patches.mean(0), axes.flip(1)[:, :16].contiguous(), scale, torch.tensor(1.0)
    )
    codec.gain = 1 / codec.encode(pictures[:64]).std()
    return codec


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, *args: object, **kwargs: object
) -> Tensor:
    """Attention by its formula.

    What the compiler makes of it is faster to train on a CPU than a fused one.
    """
    q, k, v = (x.flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)


class Trainer:
    """A model in training, its running average and its optimizer.

    It can be stored and taken up again.
    """

    def __init__(self, model: nn.Module, state: Path, device: str, compiled: bool = True) -> None:
        self.path, self.device, self.step, self.pictures = state, device, 0, 0
        self.model = model.to(device)
        self.predict = torch.compile(self.model.core) if compiled else self.model.core
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.trained = [part for part in self.model.parameters() if part.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.model.groups(), betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        stored = torch.load(state, weights_only=True) if state.exists() else None
        if stored is not None:
            for name in ("model", "average", "optimizer"):
                getattr(self, name).load_state_dict(stored[name])
            self.step, self.pictures = stored["step"], stored["pictures"]

    def store(self) -> None:
        unfinished = self.path.with_suffix(".part")
        parts = {
            name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")
        }
        torch.save({**parts, "step": self.step, "pictures": self.pictures}, unfinished)
        unfinished.replace(self.path)

    def learn(self, pictures: Tensor, captions: list[str], rate: float) -> tuple[Tensor, Tensor]:
        """One step on pictures (B, 3, H, W) uint8.

        Returns each picture's schedule step and loss, (B,).
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["pace"]
        latents = self.model.encode(pictures.to(self.device).float() / 255)
        count = len(latents)
        # Evenly spread over the batch.
        parts = (
            torch.randperm(count, device=self.device) + torch.rand(count, device=self.device)
        ) / count
        times = self.model.levels(parts)
        noised, target = self.model.pair(latents, torch.randn_like(latents), times)
        with torch.autocast(self.device, torch.bfloat16):
            predicted = self.predict(noised, times, self.model.read(captions))
        losses = (predicted.float() - target).square().mean((1, 2, 3))
        self.optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.step, self.pictures = self.step + 1, self.pictures + count
        with torch.no_grad():
            share = max(0.001, 9 / (10 + self.step))
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), share
            )
        return times, losses.detach()


def fresh(kind: str) -> nn.Module:
    """The model to train: the shipped weights, or random ones where there are none."""
    if kind == "transformer":
        shipped = transformer_model.TRANSFORMER_WEIGHTS.exists()
        return transformer_model.load() if shipped else transformer_model.DemoTransformer()
    return unet_model.load() if WEIGHTS.exists() else DemoModel(fit_autoencoder())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--state",
        type=Path,
        required=True,
        help="resumable state; written, and taken up if it exists",
    )
    parser.add_argument("--model", choices=("unet", "transformer"), default="unet")
    parser.add_argument("--out", type=Path, help="where the weights go, if not to the shipped file")
    parser.add_argument("--hours", type=float, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--size",
        type=int,
        default=128,
        help="pixels of a side; 64 to begin with learns words and colours four times as fast",
    )
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument(
        "--final", action="store_true", help="let the rate fall to nothing over this run"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that render scenes")
    parser.add_argument(
        "--eager",
        action="store_true",
        help="do not compile the UNet, which takes minutes, and is 2 times faster after that",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.device == "cpu":
        host_attention.optimized_attention = host_attention.optimized_attention_masked = (
            plain_attention
        )
        transformer_model.mmdit.optimized_attention = plain_attention
    trainer = Trainer(fresh(options.model), options.state, options.device, not options.eager)
    first, begin = trainer.step, time.time()
    recent: list[list[float]] = [[] for _ in range(8)]
    for pictures, captions in DataLoader(
        Scenes(options.batch, options.size),
        batch_size=None,
        num_workers=options.workers,
        prefetch_factor=8,
    ):
        done = (time.time() - begin) / 3600 / options.hours
        ramp = min(1.0, (trainer.step + 1) / 100)
        times, losses = trainer.learn(
            pictures,
            captions,
            options.rate * ramp * (max(0.02, 1 - done) if options.final else 1.0),
        )
        for at, loss in zip(times.long().tolist(), losses.tolist(), strict=True):
            recent[min(7, at // 125)] = [*recent[min(7, at // 125)][-199:], loss]
        if trainer.step % 25 == 0:
            by_noise = " ".join(f"{sum(part) / max(1, len(part)):.3f}" for part in recent)
            speed = (trainer.step - first) * options.batch / (time.time() - begin)
            done_so_far = f"step {trainer.step}, {trainer.pictures} pictures, {speed:.1f} a second"
            print(f"{done_so_far}; loss by rising noise: {by_noise}", flush=True)
        if trainer.step % SAVE_EVERY == 0 or done >= 1:
            trainer.store()
            kind = transformer_model if options.model == "transformer" else unet_model
            shipped = (
                transformer_model.TRANSFORMER_WEIGHTS if options.model == "transformer" else WEIGHTS
            )
            kind.save(trainer.average, options.out or shipped)
        if done >= 1:
            break


if __name__ == "__main__":
    main()
