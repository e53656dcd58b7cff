"""Seconds and memory of an edit.

    python3 run.py bench speed [--model embedded transformer sd15 ...] [--quick] [--json FILE]
        [--size 128 --frames 16 --steps 50 ...]

Against the host's plain sampling, and against the schedule of the method's public code on the same
UNet. sd15 and sdxl are the published layouts with random weights: small clips on a CPU, at full
size (--size 512 --frames 40 --steps 50) where there is an accelerator.

Every round runs every line once, and begins with another one. Seconds are medians over the rounds,
ratios medians of each round's own. Peaks are how much more than before was held, by the process and
on the device. VAE and text encoder are left out, and so are the files that the public code writes.
Without an accelerator seconds are this process's processor time: other programs do not count, and
OMP_NUM_THREADS=1 leaves out what threads wait for each other.

Sampling: all from the inverted latents, with the same noise levels and guidance; plain is the
host's euler without TokenFlow. With few steps, too, they take of the step before what those of a
schedule of fifty take, which lie close; "steps far apart" take nothing, as of a schedule of few.

Edits: a clip's first edit is the inversion without its check, features, matches, and sampling with
Plug-and-Play; its second one is sampling alone. The public code inverts plainly, with one model
call a step, then samples in the mode "tokenflow, public code": the source is run as well, and
searched in every layer at every step, as many frames in a pass as share a keyframe. It keeps
nothing but latents between edits. Its defaults are 500 steps of inversion, 500 of reconstruction
and 50 of sampling; the first thousand are extrapolated from the inversion's steps that are
measured, 20 for each of --steps. By its attention:
  fused         the host's
  as published  self-attention in sampling is a loop over heads of two products and a softmax, all
                other attention is fused, as diffusers has it with PyTorch 2
  unfused       self-attention in the inversion is that loop, too

Keyframes are in even intervals, unless --intervals "by content" asks for the node's default. Random
weights see nothing, so that only with the embedded models' clip it means something.

Inversion: each refinement in plain passes over the source, which are sampled with as many steps and
no guidance. Few steps make the extrapolated one look dear: its first step alone takes more calls.

--quick leaves out all that --json does not tell, and takes fewer steps: minutes a model on a CPU.
--json FILE adds to FILE the flat figures of bench/tools/costs/ratios.py, of 50 + 50 steps; names of
others than the embedded UNet begin with the model's.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenflow_pack.nodes.correspondences import BY_CONTENT, EVEN
from tokenflow_pack.nodes.inversion import (
    EVERY_OTHER,
    EXTRAPOLATED,
    FIXED_POINT,
    PLAIN,
    InvertVideo,
)
from torch import Tensor

from bench.tools.costs.ratios import Stages, write
from bench.tools.costs.steps import taking
from bench.tools.markdown import figure, middle, table
from bench.tools.memory import Spent, highest, kept, spent_on
from bench.tools.models import MODELS, Subject, make_subject
from bench.tools.public_code import loop_over_heads

# Names of what is measured. Sampling:
HOST, FREE, INJECTED = "plain", "TokenFlow", "TokenFlow with Plug-and-Play"
FAR = "TokenFlow with Plug-and-Play, steps far apart"
LEAN, LEAN_INJECTED = "TokenFlow, lean", "TokenFlow, lean, with Plug-and-Play"
# The first edit's other stages:
REFINEMENTS = ((PLAIN, 0), (FIXED_POINT, 1), (EXTRAPOLATED, 0), (EXTRAPOLATED, 1), (EVERY_OTHER, 0))
INVERTS = {
    f"inversion, {refinement}, {iterations}": (refinement, iterations)
    for refinement, iterations in REFINEMENTS
}
DEFAULTS = inspect.signature(InvertVideo.execute).parameters
INVERSION = f"inversion, {DEFAULTS['refinement'].default}, {DEFAULTS['iterations'].default}"
HALVED = f"inversion, {EVERY_OTHER}, 0"
EXTRACT, BUILD = "features", "matches"
FIRST_EDIT = (INVERSION, EXTRACT, BUILD, INJECTED)
# The public code's:
FUSED, FUSED_SAMPLING = "inversion, none, 0", "public code's sampling, fused"
LOOPS, LOOPS_SAMPLING = "public code's inversion, loops", "public code's sampling, loops"
PUBLIC = {
    "fused": (FUSED, FUSED_SAMPLING),
    "as published": (FUSED, LOOPS_SAMPLING),
    "unfused": (LOOPS, LOOPS_SAMPLING),
}
PUBLIC_STEPS, PUBLIC_INVERSION_STEPS = 50, 500 + 500
PASS = "plain pass"
IN_RATIOS = (HOST, FREE, FAR, LEAN, LEAN_INJECTED, *FIRST_EDIT, FUSED, FUSED_SAMPLING)


@dataclass(frozen=True)
class Settings:
    """size: pixels. interval: frames of a usual interval. intervals: BY_CONTENT or EVEN."""

    size: int
    frames: int
    steps: int
    rounds: int
    cfg: float = 7.5
    interval: int = 8
    intervals: str = EVEN

    def __str__(self) -> str:
        return (
            f"{self.steps} steps, cfg {self.cfg:g}, interval {self.interval} {self.intervals}, "
            f"{self.rounds} rounds"
        )


ON_CPU = {
    "embedded": Settings(128, 16, 50, 3),
    "transformer": Settings(128, 16, 28, 3),
    "sd15": Settings(128, 8, 4, 1),
    "sdxl": Settings(256, 4, 2, 1),
    "sd3": Settings(128, 8, 4, 1),
}
ON_DEVICE = {
    "embedded": Settings(128, 16, 50, 3),
    "transformer": Settings(128, 16, 28, 3),
    "sd15": Settings(512, 40, 50, 3),
    "sdxl": Settings(1024, 16, 50, 3),
    "sd3": Settings(1024, 16, 28, 3),
}
# A fifth of the steps carries pictures, four fifths inject, as of fifty.
QUICK = {
    "embedded": Settings(128, 16, 10, 1),
    "transformer": Settings(128, 16, 10, 1),
    "sd15": Settings(128, 16, 5, 1),
    "sdxl": Settings(128, 16, 5, 1),
    "sd3": Settings(128, 16, 5, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, nargs="+", default=["embedded"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    for name, usual_value in vars(ON_CPU["embedded"]).items():
        choices = (BY_CONTENT, EVEN) if name == "intervals" else None
        parser.add_argument(f"--{name}", type=type(usual_value), choices=choices)
    options = vars(parser.parse_args())
    models, quick, file = (options.pop(name) for name in ("model", "quick", "json"))
    usual = QUICK if quick else ON_DEVICE if torch.cuda.is_available() else ON_CPU
    given = {name: value for name, value in options.items() if value is not None}
    for model in models:
        settings = Settings(**vars(usual[model]) | given)
        with torch.inference_mode():
            found = measure_model(model, settings, quick)
        if file is not None:
            write(file, found, model)


def measure_model(model: str, settings: Settings, quick: bool) -> dict[str, Tensor]:
    """Measures a model, and prints what was found.

    Returns: the ratios of bench/tools/costs/ratios.py.
    """
    subject = make_subject(model, settings.frames, settings.size)
    print(f"\n{subject.name}, {settings}", flush=True)
    lines = make_lines(subject, settings)
    if quick:
        lines = {name: line for name, line in lines.items() if name in IN_RATIOS}
    measured = measure(lines, settings.rounds)
    ratios = measured.stages(settings, FREE, INJECTED, FAR).ratios()
    lean = measured.stages(settings, LEAN, LEAN_INJECTED, LEAN_INJECTED).ratios()
    ratios |= {f"lean.{name}": found for name, found in lean.items()}
    if quick:
        table(["", "ratio"], ([name, middle(found)] for name, found in ratios.items()))
    else:
        report(measured, settings.steps)
    return ratios


def make_lines(subject: Subject, settings: Settings) -> dict[str, Callable[[], Any]]:
    """All that is measured. What a line builds on is made here."""
    steps, cfg, interval = settings.steps, settings.cfg, settings.interval
    inversion = subject.invert(steps)
    features = subject.extract(inversion)
    found = subject.build(features, interval, settings.intervals)
    print(f"keyframes of a step: {len(found.starts)}", flush=True)

    def sample(close: bool, **choices: Any) -> Any:
        with taking(close):
            return subject.sample(found, cfg=cfg, **choices)

    ours = {
        HOST: lambda: subject.sample_plainly(inversion, cfg),
        FREE: lambda: sample(close=True, injection=None),
        INJECTED: lambda: sample(close=True),
        FAR: lambda: sample(close=False),
        LEAN: lambda: subject.sample(found, cfg=cfg, injection=None, preset="lean"),
        LEAN_INJECTED: lambda: subject.sample(found, cfg=cfg, preset="lean"),
        **{
            name: lambda how=how: subject.invert(steps, refinement=how[0], iterations=how[1])
            for name, how in INVERTS.items()
        },
        PASS: lambda: subject.sample_plainly(inversion, 1.0),
        EXTRACT: lambda: subject.extract(inversion),
        BUILD: lambda: subject.build(features, interval, settings.intervals),
    }
    if subject.flow:  # a transformer: the public code knows none
        return ours
    looping = loop_over_heads(subject.model)
    # Of which the public code's mode takes the keyframes; it searches itself.
    chunks = subject.build(subject.extract(subject.invert(steps, refinement=PLAIN)), interval)
    public = {"cfg": cfg, "consistency": "tokenflow, public code", "frames_per_pass": interval}
    return ours | {
        FUSED_SAMPLING: lambda: subject.sample(chunks, **public),
        LOOPS_SAMPLING: lambda: subject.sample(chunks, model=looping, **public),
        LOOPS: lambda: subject.invert(steps, refinement=PLAIN, model=looping),
    }


def measure(lines: dict[str, Callable[[], Any]], rounds: int) -> Measured:
    """Each round begins with another line."""
    took: dict[str, list[Spent]] = {name: [] for name in lines}
    held: dict[str, float] = {}
    names = list(lines)
    for number in range(rounds):
        first = number * len(names) // rounds
        for name in names[first:] + names[:first]:
            result, spent = spent_on(lines[name])
            held[name] = kept(result)
            took[name].append(spent)
            del result
            print(f"round {number + 1}, {name}: {spent.seconds:.1f} s", file=sys.stderr, flush=True)
    return Measured(took, held)


@dataclass(frozen=True)
class Measured:
    """What every line took in every round, and what it keeps in memory."""

    spent: dict[str, list[Spent]]
    kept: dict[str, float]

    def seconds(self, *names: str) -> Tensor:
        """(rounds,) of these lines together."""
        return torch.tensor([[spent.seconds for spent in self.spent[name]] for name in names]).sum(
            0
        )

    def stages(self, settings: Settings, *sampling: str) -> Stages:
        """What ratios are made of. sampling: lines without and with Plug-and-Play, and with it
        where steps take nothing of each other.
        """
        names = (HOST, *sampling, INVERSION, EXTRACT, BUILD)
        public = self.seconds(FUSED, FUSED_SAMPLING) if FUSED_SAMPLING in self.spent else None
        stages = (self.seconds(name) for name in names)
        return Stages(settings.steps, settings.interval, *stages, public)

    def memory(self, name: str) -> list[str]:
        """Cells: the process's peak and the device's in MiB,
        the highest of all rounds; what is kept.
        """
        peaks = [spent.peak for spent in self.spent[name]]
        return [
            highest([peak.process for peak in peaks]),
            highest([peak.device for peak in peaks]),
            figure(self.kept[name]),
        ]


def report(measured: Measured, steps: int) -> None:
    """Prints the tables."""
    took, memory = measured.seconds, ["process MiB", "device MiB", "kept MiB"]
    print("\nSampling\n")
    rows = (
        [name, middle(took(name)), middle(took(name) / took(HOST)), *measured.memory(name)]
        for name in (HOST, FREE, INJECTED, FAR, LEAN, LEAN_INJECTED)
    )
    table(["", "seconds", "to plain", *memory], rows)

    print("\nStages of an edit\n")
    stages = [*FIRST_EDIT, *dict.fromkeys(stage for both in PUBLIC.values() for stage in both)]
    stages = [stage for stage in stages if stage in measured.spent]
    table(
        ["", "seconds", *memory],
        ([name, middle(took(name)), *measured.memory(name)] for name in stages),
    )

    if LOOPS in measured.spent:
        compare(measured, steps)

    print("\nInversion\n")
    table(
        ["", "seconds", "in plain passes"],
        ([name, middle(took(name)), middle(took(name) / took(PASS))] for name in (PASS, *INVERTS)),
    )


def compare(measured: Measured, steps: int) -> None:
    """Prints the table of edits to the public code's."""
    took = measured.seconds
    print("\nEdits to the public code's\n")
    scaled = PUBLIC_INVERSION_STEPS / PUBLIC_STEPS  # for `steps` of sampling instead of 50
    public = {
        name: (took(inverting), took(sampling)) for name, (inverting, sampling) in PUBLIC.items()
    }
    first, second = took(*FIRST_EDIT), took(INJECTED)
    halved = first - took(INVERSION) + took(HALVED)
    ratios: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        f"first edit to its first, {steps} + {steps} steps": lambda inverting, sampling: (
            first / (inverting + sampling)
        ),
        f"the same, {EVERY_OTHER}": lambda inverting, sampling: halved / (inverting + sampling),
        "first edit to its first at its defaults, extrapolated": lambda inverting, sampling: (
            first / (inverting * scaled + sampling)
        ),
        "second edit to its first": lambda inverting, sampling: second / (inverting + sampling),
        "second edit to its sampling alone": lambda inverting, sampling: second / sampling,
    }
    table(
        ["", *public],
        (
            [name, *(middle(ratio(*stages)) for stages in public.values())]
            for name, ratio in ratios.items()
        ),
    )


if __name__ == "__main__":
    main()
