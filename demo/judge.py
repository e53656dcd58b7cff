"""Measures how often the demo model paints what the prompt says: python demo/judge.py [--samples 64] [--cfg 4] [--sheet PICTURE.png]

The judge is a small network trained here on rendered scenes; its own accuracy on scenes it has not seen is shown too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import WEIGHTS, Tensor, load, sample
from sample import save_sheet
from scenes import GROUNDS, SHAPES, SURFACES, Scene, distance, grid, uniform
from torch import nn
from torch.nn import functional as F

NAMES = {"surface": SURFACES, "shape": SHAPES, "ground": GROUNDS}


def render(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (count, 3, 64, 64), their sprites' masks (count, 1, 32, 32) and labels (count, 3), the index of each name."""
    scenes = [(Scene(generator), uniform(generator, 0, 2)) for _ in range(count)]
    labels = torch.tensor([[names.index(getattr(scene, kind)) for kind, names in NAMES.items()] for scene, _ in scenes])
    inside = torch.stack([distance(scene.shape, *scene.sprite_coordinates(t, *grid(64))) < 0 for scene, t in scenes])
    return torch.stack([scene.render(t, 64) for scene, t in scenes]), F.avg_pool2d(inside[:, None].float(), 2), labels


def convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())


def pooled(features: Tensor) -> Tensor:
    return torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)


class Judge(nn.Module):
    """Cuts the sprite out of pictures (B, 3, 64, 64), and names the shape from its mask alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.middle = convolution(3, 32, 2), convolution(32, 64, 2)
        self.coarse = nn.Sequential(convolution(64, 96, 2), convolution(96, 96))
        self.refine = nn.ModuleList([convolution(96 + 64, 48), convolution(48 + 32, 24)])
        self.mask = nn.Conv2d(24, 1, 1)
        self.outline = nn.Sequential(convolution(1, 32, 2), convolution(32, 64, 2), convolution(64, 128, 2))
        self.surface, self.shape, self.ground = (
            nn.Linear(width, len(names)) for width, names in zip((192, 256, 192), NAMES.values(), strict=True)
        )

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits of the mask, (B, 1, 32, 32), and of each kind's names."""
        fine = self.fine(pictures)
        middle = self.middle(fine)
        features = coarse = self.coarse(middle)
        for refine, skip in zip(self.refine, (middle, fine), strict=True):
            features = refine(torch.cat([F.interpolate(features, scale_factor=2.0), skip], 1))
        mask = self.mask(features)
        outline = self.outline(mask.detach().sigmoid())
        return mask, [self.surface(pooled(coarse)), self.shape(pooled(outline)), self.ground(pooled(coarse))]

    @torch.no_grad()
    def verdict(self, pictures: Tensor) -> Tensor:
        """The index of each name, (B, 3)."""
        self.eval()
        return torch.stack([logits.argmax(1) for logits in self(pictures)[1]], 1)


def train(generator: torch.Generator, scenes: int, epochs: int = 8, batch: int = 64) -> Judge:
    """A judge of renders that are mirrored, blurred, miscoloured and noisy, as samples of a model are."""
    (pictures, masks, labels), judge = render(scenes, generator), Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, epochs * (scenes // batch))
    for _ in range(epochs):
        for rows in torch.randperm(scenes, generator=generator)[: scenes // batch * batch].view(-1, batch):
            shown, mask = (x[rows].flip(3) if int(rows[0]) % 2 else x[rows] for x in (pictures, masks))
            if uniform(generator) < 0.3:
                shown = F.avg_pool2d(shown, 3, 1, 1, count_include_pad=False)
            shown = shown * (0.85 + 0.3 * torch.rand(batch, 3, 1, 1)) + 0.05 * torch.randn_like(shown)
            cut, names = judge(shown)
            loss = 3 * F.binary_cross_entropy_with_logits(cut, mask)
            loss = loss + sum(F.cross_entropy(logits, label) for logits, label in zip(names, labels[rows].T, strict=True))
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
    parser.add_argument("--scenes", type=int, default=6000, help="renders to train the judge on")
    parser.add_argument("--sheet", type=Path, help="the samples as a picture")
    options = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(options.seed)
    judge = train(generator, options.scenes)
    pictures, _, labels = render(500, generator)
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
        report(f"{min(at + 8, len(texts))} samples", judge.verdict(F.avg_pool2d(torch.cat(samples), 2)), wanted[: at + 8])
    found = judge.verdict(F.avg_pool2d(torch.cat(samples), 2))
    for text, names in zip(texts, found.tolist(), strict=True):
        seen = "a {} {} on {}".format(*(options[i] for options, i in zip(NAMES.values(), names, strict=True)))
        if seen != text:
            print(f"  {text}: looks like {seen}")
    if options.sheet:
        save_sheet(torch.cat(samples), options.sheet)


if __name__ == "__main__":
    main()
