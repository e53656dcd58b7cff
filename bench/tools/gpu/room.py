"""Memory: estimates beside real peaks, passes that do not fit, weights that stay in main memory,
copies, and peaks over the length of a clip.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from comfy import model_management
from torch import Tensor

from bench.tools.memory import MIB, spent_on
from bench.tools.models import Subject

from .sizes import Lines, Sizes, device, forget

INTERVAL = 4
SPARE = 1.3  # room for two frames with and without the prompt, as estimated, times this


def estimates(sizes: Sizes) -> Lines:
    """MiB of one plain pass of so many frames, with and without the prompt: what the pack takes it
    for (host/memory.py), and its peak beyond the loaded model.
    """
    lines = []
    for frames, subject in _cut(sizes, sizes.passes):
        inversion = subject.invert(1)
        _, spent = spent_on(partial(subject.sample_plainly, inversion, 7.5))
        estimate = subject.model.model.memory_required([2, *inversion.latents.shape[2:]])
        line = {"frames": frames, "estimate": 1.5 * frames * estimate / MIB, "peak": spent.peak.mib}
        lines.append(line)
    return lines


def halving(sizes: Sizes) -> Lines:
    """An edit whose passes do not fit: how often it went on with fewer frames, and how far it is
    from one that had room.
    """
    subject, found = _matched(sizes)
    free = subject.sample(found, frames_per_pass=sizes.clip.frames)
    with _warnings() as warnings, _short_of_memory(subject) as model:
        short = subject.sample(found, model=model, frames_per_pass=sizes.clip.frames)
    return [{"went on": len(warnings), "error": _error(short, free)}]


def offload(sizes: Sizes) -> Lines:
    """The same edit with all weights on the device, and with none: seconds, peak MiB, error."""
    subject, found = _matched(sizes)
    before, lines, results = model_management.vram_state, [], list[Tensor]()
    states = {"on the device": before, "in main memory": model_management.VRAMState.NO_VRAM}
    try:
        for weights, state in states.items():
            forget()
            model_management.vram_state = state
            result, spent = spent_on(lambda: subject.sample(found))
            results.append(result)
            error = _error(result, results[0])
            line = {"weights": weights, "seconds": spent.seconds, "peak MiB": spent.peak.mib}
            lines.append(line | {"error": error})
    finally:
        model_management.vram_state = before
        forget()
    return lines


def copies(sizes: Sizes) -> Lines:
    """GB/s from main memory to the device, pageable and pinned; and whether the path to noise, of
    which a part is copied at every step, is pinned.
    """
    lines: Lines = []
    plain = torch.empty(sizes.mib * MIB, dtype=torch.uint8)
    kinds = {"pageable": plain}
    if torch.cuda.is_available():
        kinds["pinned"] = plain.pin_memory()
    for kind, memory in kinds.items():
        seconds = _clocked(lambda memory=memory: memory.to(device(), copy=True, non_blocking=True))
        lines.append({"memory": kind, "GB/s": memory.numel() / seconds / 1e9})
    inversion = sizes.subject("sd15", sizes.clip, 2).invert(1)
    return [*lines, {"memory": "path to noise", "pinned": inversion.latents.is_pinned()}]


def length(sizes: Sizes) -> Lines:
    """Peak MiB of every stage of an edit of 2 steps, beyond the loaded model, by frames."""
    lines = []
    for frames, subject in _cut(sizes, sizes.lengths):
        inversion, inverting = spent_on(partial(subject.invert, 2))
        features, extracting = spent_on(partial(subject.extract, inversion))
        found, building = spent_on(partial(subject.build, features, INTERVAL))
        _, sampling = spent_on(partial(subject.sample, found))
        stages = {"inversion": inverting, "features": extracting}
        stages |= {"matches": building, "sampling": sampling}
        lines.append({"frames": frames} | {name: spent.peak.mib for name, spent in stages.items()})
    return lines


def _cut(sizes: Sizes, lengths: Sequence[int]) -> Iterator[tuple[int, Subject]]:
    """One model, and clips of these lengths for it."""
    longest = sizes.subject("sd15", sizes.clip, max(lengths))
    longest.invert(1)  # loads it
    for frames in lengths:
        yield frames, replace(longest, clip={"samples": longest.clip["samples"][:frames]})


def _matched(sizes: Sizes) -> tuple[Subject, Any]:
    subject = sizes.subject("sd15", sizes.clip)
    return subject, subject.build(subject.extract(subject.invert(sizes.clip.steps)), INTERVAL)


def _error(found: Tensor, wanted: Tensor) -> float:
    """Relative."""
    return float((found - wanted).norm() / wanted.norm())


def _clocked(work: Callable[[], Any]) -> float:
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@contextmanager
def _short_of_memory(subject: Subject) -> Iterator[Any]:
    """Gives the model, with room for few frames: the device's memory is cut down, or without a GPU
    the model refuses more than two frames at once.
    """
    model = subject.model.clone()
    if not torch.cuda.is_available():

        def refuse(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
            if len(args["input"]) > 2 * len(args["cond_or_uncond"]):
                raise model_management.OOM_EXCEPTION("rehearsed")
            return apply_model(args["input"], args["timestep"], **args["c"])

        model.set_model_unet_function_wrapper(refuse)
        yield model
        return
    forget()
    model_management.load_models_gpu([subject.model])
    two = 2 * subject.model.model.memory_required([2, *subject.clip["samples"].shape[1:]])
    total = torch.cuda.get_device_properties(device()).total_memory
    room = torch.cuda.memory_reserved() + SPARE * two
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / total))
    try:
        yield model
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What is logged of memory that ran out."""
    seen: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "out of memory" in record.getMessage():
                seen.append(record.getMessage())

    listener = Listener(logging.WARNING)
    logging.getLogger().addHandler(listener)
    try:
        yield seen
    finally:
        logging.getLogger().removeHandler(listener)
