"""Distils the demo model to few steps without a negative prompt, as a LoRA.

    python demo/distill.py --state FILE [--hours 1] [--steps 8] [--cfg 4]

The student takes a step of the short schedule where the shipped model takes --inner guided ones
(progressive distillation, arXiv:2202.00512, with the guidance in it, arXiv:2210.03142). The states
it learns from are noised pictures, and what it and its teacher make of them in the steps after.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import model as demo_model
import torch
from model import ALPHA_BAR, DOWN, UP, DemoModel, Tensor, host_attention, nn
from safetensors.torch import save_file
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader
from train import Scenes, plain_attention

from host.files.demo_model import FEW_STEPS, FEW_STEPS_WEIGHTS

AVERAGED = 200  # steps of training over which the shipped weights are averaged
ON_POLICY = 0.5  # share of the states that the student left, not its teacher
SAVE_EVERY = 50


class LowRank(nn.Module):
    """weight + up down, of a linear layer or a convolution."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rank = min(rank, weight.shape[0], weight[0].numel())
        self.down = nn.Parameter(torch.randn(rank, weight[0].numel()) / weight[0].numel() ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


class Student:
    """The shipped model with a low-rank part beside every weight matrix of its UNet."""

    def __init__(self, model: DemoModel, rank: int) -> None:
        self.model = model.requires_grad_(False)
        self.parts: dict[str, LowRank] = {}
        for name, layer in list(model.unet.named_modules()):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                self.parts[name] = LowRank(layer.weight, rank)
                parametrize.register_parametrization(layer, "weight", self.parts[name])

    def trained(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{side}": parameter
            for name, part in self.parts.items()
            for side, parameter in part.named_parameters()
        }

    def save(self, average: dict[str, Tensor], path: Path) -> None:
        """As the host reads LoRAs."""
        weights = {}
        for name in self.parts:
            layer = self.model.unet.get_submodule(name)
            up, down = (average[f"{name}.{side}"] for side in ("up", "down"))
            if isinstance(layer, nn.Conv2d):
                up = up[..., None, None]
                down = down.view(len(down), *layer.weight.shape[1:])
            weights[f"diffusion_model.{name}{UP}"] = up.half()
            weights[f"diffusion_model.{name}{DOWN}"] = down.half()
        unfinished = path.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in weights.items()}, unfinished)
        unfinished.replace(path)


def noise_levels(times: Tensor) -> Tensor:
    """Noise over signal at the schedule's steps; none at -1, (B, 1, 1, 1)."""
    alpha_bar = ALPHA_BAR[times.clamp(min=0)]
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt().where(times >= 0, torch.zeros(()))
    return sigmas.view(-1, 1, 1, 1)


class Teacher:
    """The shipped model's guided Euler steps in x = latent + sigma * noise."""

    def __init__(self, model: DemoModel, cfg: float, inner: int) -> None:
        self.model, self.cfg, self.inner = model, cfg, inner
        self.predict = torch.compile(model.core)
        self.empty = model.read([""]).detach()

    @torch.no_grad()
    def step(self, x: Tensor, times: Tensor, following: Tensor, context: Tensor) -> Tensor:
        """From the schedule's `times` to `following`, both (B,), in inner steps."""
        both = torch.cat([context, self.empty.expand_as(context)])
        parts = torch.linspace(0, 1, self.inner + 1)[:, None]
        between = (times + parts * (following - times)).round().long()
        for at, to in zip(between[:-1], between[1:], strict=True):
            sigma = noise_levels(at)
            scaled = x / (1 + sigma**2).sqrt()
            with torch.autocast("cpu", torch.bfloat16):
                v = self.predict(scaled.repeat(2, 1, 1, 1), at.repeat(2), both)
            prompted, base = v.float().chunk(2)
            eps = epsilon(base + self.cfg * (prompted - base), scaled, sigma)
            x = x + (noise_levels(to) - sigma) * eps
        return x


def epsilon(v: Tensor, scaled: Tensor, sigma: Tensor) -> Tensor:
    """The noise that v says is in scaled = x / sqrt(1 + sigma^2)."""
    return (v + sigma * scaled) / (1 + sigma**2).sqrt()


class States:
    """Where a batch stands in the short schedule; what has ended begins anew."""

    def __init__(self, model: DemoModel, batch: int, steps: int) -> None:
        self.model = model
        # The host's sgm_uniform, and -1 for no noise.
        self.ladder = torch.tensor([*torch.linspace(999, 0, steps + 1).long()[:-1].tolist(), -1])
        self.at = torch.full((batch,), steps)
        self.x = torch.zeros(batch, demo_model.CHANNELS, 32, 32)
        self.context = torch.zeros(batch, 77, demo_model.UNET["context_dim"])

    @torch.no_grad()
    def renew(self, pictures: Tensor, captions: list[str]) -> None:
        """Starts those that have ended from noised pictures, half of them from the top."""
        steps = len(self.ladder) - 1
        ended = (self.at == steps).nonzero().flatten()
        if not len(ended):
            return
        latents = self.model.encode(pictures[: len(ended)].float() / 255)
        start = torch.randint(steps, (len(ended),)) * (torch.rand(len(ended)) < 0.5)
        self.at[ended] = start
        noise = noise_levels(self.ladder[start]) * torch.randn_like(latents)
        self.x[ended] = latents + noise
        self.context[ended] = self.model.read(captions[: len(ended)])

    def advance(self, x: Tensor) -> None:
        self.x, self.at = x, self.at + 1


class Distillation:
    """The student's training, its running average and its optimizer; it can be taken up again."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.step, self.losses = options, 0, list[float]()
        self.teacher = Teacher(demo_model.load().requires_grad_(False), options.cfg, options.inner)
        self.student = Student(demo_model.load(), options.rank)
        self.predict = torch.compile(self.student.model.core)
        self.trained = self.student.trained()
        self.average = {name: part.detach().clone() for name, part in self.trained.items()}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.states = States(self.teacher.model, options.batch, options.steps)
        if options.state.exists():
            stored = torch.load(options.state, weights_only=True)
            self.step, self.average = stored["step"], stored["average"]
            self.optimizer.load_state_dict(stored["optimizer"])
            for name, parameter in self.trained.items():
                parameter.data.copy_(stored["trained"][name])

    def store(self) -> None:
        unfinished = self.options.state.with_suffix(".part")
        parts = {
            "step": self.step,
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "trained": {name: part.detach() for name, part in self.trained.items()},
        }
        torch.save(parts, unfinished)
        unfinished.replace(self.options.state)
        self.student.save(self.average, self.options.out)

    def learn(self, pictures: Tensor, captions: list[str], rate: float) -> None:
        """One step, from where the batch stands in the short schedule."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        states = self.states
        states.renew(pictures, captions)
        x, times, following = states.x, states.ladder[states.at], states.ladder[states.at + 1]
        sigma, reduced = noise_levels(times), noise_levels(following)
        reached = self.teacher.step(x, times, following, states.context)
        scaled = x / (1 + sigma**2).sqrt()
        # The v whose one step leads where the teacher's have led.
        wanted = (reached - x) / (reduced - sigma) * (1 + sigma**2).sqrt() - sigma * scaled
        with torch.autocast("cpu", torch.bfloat16):
            v = self.predict(scaled, times, states.context)
        loss = (v.float() - wanted).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            own = x + (reduced - sigma) * epsilon(v.float(), scaled, sigma)
            on_policy = torch.rand(len(x), 1, 1, 1) < ON_POLICY
            states.advance(torch.where(on_policy, own, reached))
            share = max(1 / AVERAGED, 9 / (10 + self.step))
            for name, parameter in self.trained.items():
                self.average[name].lerp_(parameter, share)
        self.losses = [*self.losses[-99:], loss.item()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--state", type=Path, required=True, help="resumable; taken up if it exists"
    )
    parser.add_argument("--out", type=Path, default=FEW_STEPS_WEIGHTS)
    parser.add_argument("--hours", type=float, default=1)
    parser.add_argument("--steps", type=int, default=FEW_STEPS)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--inner", type=int, default=2, help="the teacher's steps in one")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=7e-4)
    options = parser.parse_args()
    host_attention.optimized_attention = host_attention.optimized_attention_masked = plain_attention
    run, begin = Distillation(options), time.time()
    scenes = DataLoader(Scenes(options.batch, 128), batch_size=None, num_workers=1)
    for pictures, captions in scenes:
        done = (time.time() - begin) / 3600 / options.hours
        ramp = min(1.0, (run.step + 1) / 50)
        run.learn(pictures, captions, options.rate * ramp * max(0.02, 1 - done))
        if run.step % 25 == 0:
            mean = sum(run.losses) / len(run.losses)
            minutes = (time.time() - begin) / 60
            print(f"step {run.step}, {minutes:.1f} min: loss {mean:.4f}", flush=True)
        if run.step % SAVE_EVERY == 0 or done >= 1:
            run.store()
        if done >= 1:
            break


if __name__ == "__main__":
    main()
