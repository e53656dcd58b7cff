"""Measures how often the demo model paints what the prompt says.

    python demo/judge.py [--samples 64] [--cfg 4] [--sheet PICTURE.png]

The judge is a small network trained on rendered scenes (judge.safetensors, made with --train). It
names surface, shape and ground of a picture, and what every pixel is made of. Its own accuracy on
scenes it has not seen is shown first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from scenes import GROUNDS, SHAPES, SURFACES, Scene, uniform
from torch import Tensor, nn
from torch.nn import functional as F
from wide import wide_scene

NAMES = {"surface": SURFACES, "shape": SHAPES, "ground": GROUNDS}
MATERIALS = (*SURFACES, *GROUNDS)
WEIGHTS = Path(__file__).resolve().parent / "judge.safetensors"
SIZE = 128
TOLD = 0.04  # share of the picture from which on a shape can be told
UNKNOWN = -100  # as of `cross_entropy`: nothing is learnt from it


def render(
    count: int, generator: torch.Generator, wide: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (count, 3, SIZE, SIZE), their pixels' materials (count, SIZE, SIZE) and labels
    (count, 3), the index of each name.

    wide: share of scenes from the wide world. Its shapes are UNKNOWN where they are cut off, hidden
    or small.
    """
    pictures, materials, labels = [], [], []
    for _ in range(count):
        drawn_wide = uniform(generator) < wide
        scene = wide_scene(generator) if drawn_wide else Scene(generator)
        t = uniform(generator, 0, 2)
        label = [names.index(getattr(scene, kind)) for kind, names in NAMES.items()]
        pixels = torch.full((SIZE, SIZE), len(SURFACES) + label[2])
        for sprite in scene.sprites():
            pixels[sprite.mask(t, SIZE)] = SURFACES.index(sprite.surface)
        pictures.append(scene.render(t, SIZE))
        materials.append(pixels)
        told = not drawn_wide or (len(scene.sprites()) == 1 and _whole(scene.mask(t, SIZE)))
        labels.append(label if told else [UNKNOWN, UNKNOWN, label[2]])
    return torch.stack(pictures), torch.stack(materials), torch.tensor(labels)


def _whole(mask: Tensor) -> bool:
    """Whether a mask (SIZE, SIZE) is large enough to be told and ends before the border."""
    border = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return bool(mask.float().mean() > TOLD and not border.any())


def convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())


def pooled(features: Tensor) -> Tensor:
    return torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)


class Judge(nn.Module):
    """Says of pictures (B, 3, H, W), sides multiples of 16, what every pixel is made of, and names
    them; the shape from the mask alone.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 16, 32, 64, 96)
        self.first = convolution(3, widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(convolution(before, after, 2), convolution(after, after))
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.up = nn.ModuleList(
            convolution(before + after, after)
            for after, before in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.material = nn.Conv2d(widths[0], len(MATERIALS), 1)
        self.outline = nn.Sequential(
            convolution(1, 24, 2),
            convolution(24, 48, 2),
            convolution(48, 96, 2),
            convolution(96, 128, 2),
        )
        self.surface, self.shape, self.ground = (
            nn.Linear(width, len(names))
            for width, names in zip((192, 256, 192), NAMES.values(), strict=True)
        )

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits of every pixel's material, (B, len(MATERIALS), H, W), and of each kind's names."""
        skips = [self.first(pictures - 0.5)]
        for down in self.down:
            skips.append(down(skips[-1]))
        features = deepest = skips.pop()
        for up, skip in zip(self.up, reversed(skips), strict=True):
            features = up(torch.cat([F.interpolate(features, scale_factor=2.0), skip], 1))
        material = self.material(features)
        sprite = material.detach().softmax(1)[:, : len(SURFACES)].sum(1, keepdim=True)
        return material, [
            self.surface(pooled(deepest)),
            self.shape(pooled(self.outline(sprite))),
            self.ground(pooled(deepest)),
        ]

    @torch.no_grad()
    def verdict(self, pictures: Tensor) -> Tensor:
        """The index of each name, (B, 3)."""
        return torch.cat(
            [
                torch.stack([logits.argmax(1) for logits in self(part)[1]], 1)
                for part in pictures.split(32)
            ]
        )

    @torch.no_grad()
    def materials(self, pictures: Tensor) -> Tensor:
        """Every pixel's index in MATERIALS, (B, H, W)."""
        return torch.cat([self(part)[0].argmax(1) for part in pictures.split(32)])


def load(path: Path = WEIGHTS) -> Judge:
    """The trained judge."""
    judge = Judge()
    judge.load_state_dict(
        {
            name: weight.float() if weight.dtype == torch.half else weight
            for name, weight in load_file(path).items()
        }
    )
    return judge.eval().requires_grad_(False)


def save(judge: Judge, path: Path = WEIGHTS) -> None:
    """In half precision."""
    save_file(
        {
            name: w.half().contiguous() if w.is_floating_point() else w
            for name, w in judge.state_dict().items()
        },
        path,
    )


def train(judge: Judge, generator: torch.Generator, steps: int, batch: int = 32) -> Judge:
    """Trains a judge on renders that are mirrored, blurred, miscoloured and noisy, as samples of a
    model are; all of them new.
    """
    judge = judge.to(memory_format=torch.channels_last).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(steps):
        shown, pixels, labels = render(batch, generator)
        if step % 2:
            shown, pixels = shown.flip(3), pixels.flip(2)
        if uniform(generator) < 0.3:
            shown = F.avg_pool2d(shown, 3, 1, 1, count_include_pad=False)
        shown = shown * (0.85 + 0.3 * torch.rand(batch, 3, 1, 1)) + 0.05 * torch.rand(
            batch, 1, 1, 1
        ) * torch.randn_like(shown)
        material, names = judge(shown.to(memory_format=torch.channels_last))
        loss = F.cross_entropy(material, pixels)
        loss = (
            loss
            + sum(
                F.cross_entropy(logits, label)
                for logits, label in zip(names, labels.T, strict=True)
            )
            / 3
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"step {step + 1} of {steps}: loss {float(loss.detach()):.3f}", flush=True)
    return judge.eval().requires_grad_(False)


def report(title: str, found: Tensor, wanted: Tensor) -> None:
    rates = (found == wanted).float().mean(0).tolist()
    print(
        f"{title:28}"
        + "  ".join(f"{kind} {rate:.3f}" for kind, rate in zip(NAMES, rates, strict=True)),
        flush=True,
    )


def report_judge(judge: Judge, generator: torch.Generator, count: int = 500) -> None:
    """What it is worth itself: on unseen plain scenes the names, on unseen wide ones the mask."""
    pictures, _, labels = render(count, generator, wide=0)
    report("judge on unseen renders", judge.verdict(pictures), labels)
    pictures, materials, _ = render(count, generator, wide=1)
    found, wanted = (pixels < len(SURFACES) for pixels in (judge.materials(pictures), materials))
    overlap = float((found & wanted).sum() / (found | wanted).sum())
    print(f"{'on unseen wide scenes':28}overlap of masks {overlap:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="the demo model's, if not the shipped ones")
    parser.add_argument("--model", choices=("unet", "transformer", "unet, 8 steps"), default="unet")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--train",
        action="store_true",
        help="train judge.safetensors on, or from nothing where it is missing; judges no samples",
    )
    parser.add_argument(
        "--batches", type=int, default=1500, help="of 32 renders, to train the judge on"
    )
    parser.add_argument("--sheet", type=Path, help="the samples as a picture")
    options = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(options.seed)
    if options.train:
        save(train(load() if WEIGHTS.exists() else Judge(), generator, options.batches))
    judge = load()
    report_judge(judge, generator)
    if not options.train:
        judge_samples(judge, options)


def samples(
    count: int,
    weights: Path | None = None,
    steps: int = 25,
    cfg: float = 4.0,
    seed: int = 1,
    kind: str = "unet",
) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 128, 128) by the demo model, and what they shall show, (count, 3), the
    index of each name.

    Every prompt of the world in a shuffled order, as often as needed.
    """
    # Imported late: both import ComfyUI.
    import model as unet
    import transformer

    from host.files.demo_model import FEW, FEW_STEPS

    made_by = transformer if kind == "transformer" else unet
    load = unet.load_few if kind == FEW else made_by.load
    if kind == FEW:
        steps, cfg = FEW_STEPS, 1.0
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.cartesian_prod(*(torch.arange(len(names)) for names in NAMES.values()))
    rounds = -(-count // len(prompts))
    wanted = torch.cat(
        [prompts[torch.randperm(len(prompts), generator=generator)] for _ in range(rounds)]
    )[:count]
    model = made_by.load(weights) if weights else load()
    texts = [caption(names) for names in wanted.tolist()]
    pictures = [
        made_by.sample(model, texts[at : at + 8], steps, cfg, seed=at) for at in range(0, count, 8)
    ]
    return torch.cat(pictures), wanted


def caption(names: list[int]) -> str:
    """A prompt in the world's words."""
    return "a {} {} on {}".format(
        *(options[i] for options, i in zip(NAMES.values(), names, strict=True))
    )


def judge_samples(judge: Judge, options: argparse.Namespace) -> None:
    """Prints how often samples show what was asked for, and those that do not."""
    from sample import save_sheet

    pictures, wanted = samples(
        options.samples,
        options.weights,
        options.steps,
        options.cfg,
        options.seed,
        options.model,
    )
    found = judge.verdict(pictures)
    report(f"{options.samples} samples", found, wanted)
    for asked, seen in zip(wanted.tolist(), found.tolist(), strict=True):
        if seen != asked:
            print(f"  {caption(asked)}: looks like {caption(seen)}")
    if options.sheet:
        save_sheet(pictures, options.sheet)


if __name__ == "__main__":
    main()
