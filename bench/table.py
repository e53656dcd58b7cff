"""The table of the paper on the embedded clip: python3 run.py bench table [--surfaces lava gold] [--frames 24] [--steps 15]

Every row is the same edit of the same source with the same seed; only what keeps the frames together differs. Columns: warp error x1e-3
along DIS flow of the source and the world's true flow; excess: warp error above the autoencoder's, per frame = 1; fidelity: how sure a
classifier of this world's surfaces is of the prompt's; sharpness, per frame = 1; seconds of sampling.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import av
import torch
from tokenflow_pack.host.demo_model import load_demo_model
from tokenflow_pack.nodes.correspondences import FIXED, BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.inversion import EXTRAPOLATED, REFINEMENTS, InvertVideo
from tokenflow_pack.nodes.sampling import Sampler
from tokenflow_pack.tokenflow_ops.metrics import psnr, sharpness, source_motion, warp_errors
from torch import Tensor

import nodes

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))
import judge  # noqa: E402
from scenes import SURFACES, demo_clip, true_flow  # noqa: E402

ROWS = ("per frame", "joint attention", "fixed keyframes", "TokenFlow")


def main(table: type[Table], about: str) -> None:
    """Reads the options and prints a table."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surfaces", nargs="+", default=["gold"], choices=SURFACES)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--interval", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--refinement", default=EXTRAPOLATED, choices=REFINEMENTS)
    options = parser.parse_args()
    critic = train_critic()
    with torch.inference_mode():
        table(options, critic).run()


def train_critic() -> judge.Judge:
    """The classifier of the world's surfaces that fidelity asks."""
    with torch.inference_mode(False), torch.enable_grad():
        return judge.train(torch.Generator().manual_seed(0), 1200).eval()


class Table:
    """One source clip and everything that is measured on it."""

    def __init__(self, options: argparse.Namespace, critic: judge.Judge) -> None:
        self.options, self.critic = options, critic
        self.model, self.clip, self.vae = load_demo_model()
        with av.open(str(ROOT / "demo" / "clip.mp4")) as file:
            pictures = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
        self.source = torch.stack(pictures[: options.frames]).float() / 255
        self.latents = nodes.VAEEncode().encode(self.vae, self.source)[0]
        self.scene, times = demo_clip()
        frames = self.source.movedim(-1, 1)
        self.motion = source_motion(frames)
        self.truth = [(flow, ~occluded) for flow, occluded in (true_flow(self.scene, a, b) for a, b in zip(times, times[1:], strict=False))]
        self.truth = self.truth[: options.frames - 1]

    def run(self) -> None:
        """Prints the table in Markdown."""
        options, scene = self.options, self.scene
        features = self.source_features(refinement=options.refinement)
        self.random, self.fixed = self.match(features), self.match(features, keyframes=FIXED)
        floor = self.decode(self.latents)
        rebuilt = self.sample(self.encode(scene.caption()), 1.0, "per frame", None, self.random)
        print(f"\n{options.frames} frames, {options.steps} steps, cfg {options.cfg}, interval {options.interval}, seed {options.seed}\n")
        print("| clip | warp error | true flow | PSNR to source |\n|---|---|---|---|")
        for name, clip in (("source", self.source), ("autoencoder", floor), ("DDIM reconstruction", rebuilt)):
            quality = "" if clip is self.source else f"{float(psnr(self.rows(clip), self.rows(self.source)).mean()):.2f} dB"
            print(f"| {name} | {self.warp(clip):.2f} | {self.warp(clip, true=True):.2f} | {quality} |")
        for surface in options.surfaces:
            self.edit(surface, self.warp(floor), self.warp(floor, true=True))

    def source_features(self, **choices: Any) -> Any:
        """Features of the source along its inversion; choices: inputs of DDIM Invert Video."""
        prompt = self.encode(self.scene.caption())
        inversion = InvertVideo.execute(
            model=self.model, latents=self.latents, positive=prompt, steps=self.options.steps, check_reconstruction=False, **choices
        ).args[0]
        return ExtractFeatures.execute(model=self.model, inversion=inversion).args[0]

    def match(self, features: Any, **choices: Any) -> Any:
        """Correspondences; choices: inputs of Build NN Correspondences."""
        return BuildCorrespondences.execute(
            features=features, keyframe_interval=self.options.interval, seed=self.options.seed, **choices
        ).args[0]

    def edit(self, surface: str, floor: float, true_floor: float) -> None:
        """One edit, a row for each way of keeping the frames together."""
        prompt = self.encode(self.scene.caption().replace(self.scene.surface, surface))
        print(f"\n| {self.scene.surface} to {surface} | warp error | excess | true flow | excess | fidelity | sharpness | seconds |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        first: dict[str, float] = {}
        for row in ROWS:
            start = time.perf_counter()
            mode = row if row in ("per frame", "joint attention") else "tokenflow"
            found = self.fixed if row == "fixed keyframes" else self.random
            clip = self.sample(prompt, self.options.cfg, mode, PlugAndPlay.execute().args[0], found)
            seconds = time.perf_counter() - start
            figures = {
                "warp": self.warp(clip) - floor,
                "true": self.warp(clip, true=True) - true_floor,
                "sharp": float(sharpness(self.rows(clip)).mean()),
            }
            first = first or figures
            share = {name: value / first[name] for name, value in figures.items()}
            sure = self.fidelity(clip, surface)
            print(
                f"| {row} | {figures['warp'] + floor:.2f} | {share['warp']:.2f} | {figures['true'] + true_floor:.2f} | {share['true']:.2f} "
                f"| {sure:.3f} | {share['sharp']:.2f} | {seconds:.0f} |",
                flush=True,
            )

    def sample(self, prompt: Any, cfg: float, mode: str, injection: Any, found: Any) -> Tensor:
        """An edit through the pack's own node, decoded: (N, h, w, 3)."""
        latents = Sampler.execute(
            model=self.model,
            positive=prompt,
            negative=self.encode(""),
            correspondences=found,
            cfg=cfg,
            consistency=mode,
            injection=injection,
        )
        return self.decode(latents.args[0])

    def fidelity(self, clip: Tensor, surface: str) -> float:
        """The classifier's odds for a surface of the world, mean over the frames."""
        _, (odds, _, _) = self.critic(torch.nn.functional.avg_pool2d(self.rows(clip), 2))
        return float(odds.softmax(1)[:, SURFACES.index(surface)].mean())

    def encode(self, text: str) -> Any:
        return nodes.CLIPTextEncode().encode(self.clip, text)[0]

    def decode(self, latents: Any) -> Tensor:
        return nodes.VAEDecode().decode(self.vae, latents)[0]

    def rows(self, clip: Tensor) -> Tensor:
        return clip.movedim(-1, 1).clamp(0, 1)

    def warp(self, clip: Tensor, true: bool = False) -> float:
        return float(warp_errors(self.rows(clip), self.truth if true else self.motion).nanmean())


if __name__ == "__main__":
    main(Table, __doc__)
