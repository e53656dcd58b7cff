"""Measures how often the demo model paints what the prompt says: python demo/judge.py [--samples 64] [--cfg 4] [--sheet PICTURE.png]

The judge is a small classifier of surface, shape and ground, trained here on rendered scenes; its own accuracy is shown too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import WEIGHTS, Tensor, load, sample
from sample import save_sheet
from scenes import GROUNDS, SHAPES, SURFACES, Scene, uniform
from torch import nn
from torch.nn import functional as F

NAMES = {"surface": SURFACES, "shape": SHAPES, "ground": GROUNDS}


def render(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 128, 128) and their labels (count, 3), the index of each name."""
    scenes = [Scene(generator) for _ in range(count)]
    labels = torch.tensor([[names.index(getattr(scene, kind)) for kind, names in NAMES.items()] for scene in scenes])
    return torch.stack([scene.render(uniform(generator, 0, 2)) for scene in scenes]), labels


class Judge(nn.Module):
    """Logits of surface, shape and ground of pictures (B, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 32, 64, 96, 128]
        layers = [(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in zip(widths, widths[1:], strict=False)]
        self.features = nn.Sequential(*(part for layer in layers for part in layer))
        self.heads = nn.ModuleList(nn.Linear(2 * widths[-1], len(names)) for names in NAMES.values())

    def forward(self, pictures: Tensor) -> list[Tensor]:
        features = self.features(F.avg_pool2d(pictures, 2)).flatten(2)
        pooled = torch.cat([features.mean(2), features.amax(2)], 1)
        return [head(pooled) for head in self.heads]

    @torch.no_grad()
    def verdict(self, pictures: Tensor) -> Tensor:
        """The index of each name, (B, 3)."""
        self.eval()
        return torch.stack([logits.argmax(1) for logits in self(pictures)], 1)


def train(generator: torch.Generator, scenes: int, epochs: int = 16, batch: int = 64) -> Judge:
    """A judge of slightly blurred, noisy and miscoloured renders, as samples of a model are."""
    pictures, labels = render(scenes, generator)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, epochs * (scenes // batch))
    for _ in range(epochs):
        for rows in torch.randperm(scenes, generator=generator)[: scenes // batch * batch].view(-1, batch):
            shown = pictures[rows].flip(3) if uniform(generator) < 0.5 else pictures[rows]
            if uniform(generator) < 0.5:
                shown = F.interpolate(F.avg_pool2d(shown, 2), scale_factor=2.0, mode="bilinear")
            shown = shown * (0.85 + 0.3 * torch.rand(batch, 3, 1, 1)) + 0.05 * torch.randn_like(shown)
            loss = sum(F.cross_entropy(logits, label) for logits, label in zip(judge(shown), labels[rows].T, strict=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge


def report(title: str, found: Tensor, wanted: Tensor) -> None:
    rates = (found == wanted).float().mean(0).tolist()
    print(f"{title:28}" + "  ".join(f"{kind} {rate:.3f}" for kind, rate in zip(NAMES, rates, strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=4000, help="renders to train the judge on")
    parser.add_argument("--sheet", type=Path, help="the samples as a picture")
    options = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(options.seed)
    judge = train(generator, options.scenes)
    pictures, labels = render(500, generator)
    report("judge on unseen renders", judge.verdict(pictures), labels)
    # Every prompt of the world in a shuffled order, as often as needed.
    prompts = torch.cartesian_prod(*(torch.arange(len(names)) for names in NAMES.values()))
    wanted = torch.cat([prompts[torch.randperm(len(prompts), generator=generator)] for _ in range(-(-options.samples // len(prompts)))])[
        : options.samples
    ]
    texts = [f"a {SURFACES[a]} {SHAPES[b]} on {GROUNDS[c]}" for a, b, c in wanted.tolist()]
    model, samples = load(options.weights), []
    for at in range(0, len(texts), 8):
        samples.append(sample(model, texts[at : at + 8], options.steps, options.cfg, seed=at))
        report(f"{min(at + 8, len(texts))} samples", judge.verdict(torch.cat(samples)), wanted[: at + 8])
    found = judge.verdict(torch.cat(samples))
    for text, names in zip(texts, found.tolist(), strict=True):
        seen = "a {} {} on {}".format(*(options[i] for options, i in zip(NAMES.values(), names, strict=True)))
        if seen != text:
            print(f"  {text}: looks like {seen}")
    if options.sheet:
        save_sheet(torch.cat(samples), options.sheet)


if __name__ == "__main__":
    main()
