"""Whole edits of the published layouts, what the host waits for, and the host's compiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from torch.profiler import ProfilerActivity, profile

from bench.tools.memory import spent_on

from .sizes import Lines, Sizes, forget

INTERVAL, CFG = 8, 7.5
PRESETS = ("balanced", "lean")
# Of a trace: where the CPU waits for the device, and what is copied.
WAITS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "Memcpy HtoD (Pageable -> Device)",
    "Memcpy HtoD (Pinned -> Device)",
    "Memcpy DtoH (Device -> Pageable)",
    "Memcpy DtoH (Device -> Pinned)",
)


def edit(kind: str) -> Callable[[Sizes], Lines]:
    """The section of a layout: seconds and peak MiB of plain sampling and of each stage."""

    def measure(sizes: Sizes) -> Lines:
        clip = sizes.edits[kind]
        subject = sizes.subject(kind, clip)
        # Kernels are chosen and workspaces made before anything is timed.
        warm = subject.build(subject.extract(subject.invert(1)), INTERVAL)
        subject.sample(warm)
        lines: Lines = []

        def timed(stage: str, work: Callable[[], Any]) -> Any:
            result, spent = spent_on(work)
            line = {"stage": stage, "seconds": spent.seconds, "peak MiB": spent.peak.mib}
            lines.append({"clip": subject.name, "steps": clip.steps} | line)
            return result

        inversion = timed("inversion", lambda: subject.invert(clip.steps))
        features = timed("features", lambda: subject.extract(inversion))
        found = timed("matches", lambda: subject.build(features, INTERVAL))
        for preset in PRESETS:
            timed(f"sampling, {preset}", partial(subject.sample, found, preset=preset))
        first = sum(line["seconds"] for line in lines[:4])
        timed("plain sampling", lambda: subject.sample_plainly(inversion, CFG))
        lines.append({"clip": subject.name, "stage": "first edit, balanced", "seconds": first})
        return lines

    return measure


def trace(sizes: Sizes) -> Lines:
    """How often, in a step, the CPU waits for the device or something is copied: in plain sampling
    and in ours. Nothing of a kind is 0.
    """
    clip = sizes.clip
    subject = sizes.subject("sd15", clip)
    inversion = subject.invert(clip.steps)
    found = subject.build(subject.extract(inversion), INTERVAL)
    runs: dict[str, Callable[[], Any]] = {
        "plain": lambda: subject.sample_plainly(inversion, CFG),
        **{name: partial(subject.sample, found, preset=name) for name in PRESETS},
    }
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    lines = []
    for name, run in runs.items():
        run()
        with profile(activities=activities) as traced:
            run()
        count = Counter(event.name for event in traced.events())
        each = {kind: count[kind] / clip.steps for kind in WAITS}
        lines.append({"sampling": name} | each)
    return lines


def compiled(sizes: Sizes) -> Lines:
    """Seconds of plain sampling and of ours with a model compiled by the host's own means, after a
    first run that compiles; and eager ones beside them. Without a GPU nothing is compiled, only
    traced.
    """
    clip = sizes.clip
    subject = sizes.subject("sd15", clip)
    inversion = subject.invert(clip.steps)
    found = subject.build(subject.extract(inversion), INTERVAL)
    model = subject.model.clone()
    set_torch_compile_wrapper(
        model=model, backend="inductor" if torch.cuda.is_available() else "eager"
    )
    lines = []
    for how, chosen in (("eager", subject.model), ("compiled", model)):
        subject.model = chosen
        runs = {
            "plain": lambda: subject.sample_plainly(inversion, CFG),
            "balanced": lambda: subject.sample(found),
        }
        for name, run in runs.items():
            _, first = spent_on(run)
            _, again = spent_on(run)
            seconds = {"first run": first.seconds, "seconds": again.seconds}
            lines.append({"model": how, "sampling": name} | seconds)
    forget()
    return lines
