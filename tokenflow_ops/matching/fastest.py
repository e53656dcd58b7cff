"""Which search is the faster one on this machine.

It is measured once for each shape of work, and remembered by whoever asks.
"""

from __future__ import annotations

import platform
import time
from collections.abc import MutableMapping
from pathlib import Path

import torch
from torch import Tensor

from ..libraries import LibraryError, library
from .search import nearest_tokens

NAMES = {"torch": "torch", "faiss": "FAISS"}
# What was measured: seconds a frame by backend, of a kind of machine, versions and a shape of work.
Timings = MutableMapping[str, dict[str, float]]
# A measurement searches as many frames as share a keyframe in a long clip, but takes no more than
# so many operations, rounds and seconds.
FRAMES, OPERATIONS, ROUNDS, SECONDS = 16, 2e9, 5, 0.05


class Backends:
    """Chooses the backend of a build.

    It is the one that is asked for or, for "auto", the faster one for every shape of work that
    comes up. A FAISS that is missing, broken or fails leaves "auto" with torch. As text: what was
    chosen and why.

    Args:
        backend: One of `search.BACKENDS`.
        device: Where the search runs.
        timings: What is known; what is measured is added to it.
    """

    def __init__(
        self, backend: str, device: torch.device | str = "cpu", timings: Timings | None = None
    ) -> None:
        self._backend, self._device = backend, torch.device(device)
        self._timings: Timings = {} if timings is None else timings
        self._chosen: dict[tuple[int, int], str] = {}
        self._seconds: dict[tuple[int, int], dict[str, float]] = {}
        self._without = ""  # why FAISS is out

    def choose(self, features: Tensor) -> str:
        """Returns the backend to match the features (N, P, C) of a layer with."""
        shape = features.shape[1], features.shape[2]
        if shape not in self._chosen:
            self._chosen[shape] = (
                self._faster(features, shape) if self._backend == "auto" else self._backend
            )
        return self._chosen[shape]

    def _faster(self, features: Tensor, shape: tuple[int, int]) -> str:
        if self._without:
            return "torch"
        try:
            versions = f"torch {torch.__version__}, FAISS {library('faiss').__version__}"
            key = f"{machine(self._device)}; {versions}; {shape[0]} x {shape[1]} {features.dtype}"
            if key not in self._timings:
                self._timings[key] = seconds_a_frame(features, self._device)
        except LibraryError as error:
            self._without = str(error)
            return "torch"
        seconds = self._seconds[shape] = self._timings[key]
        return min(seconds, key=lambda backend: seconds[backend])

    def nearest(self, queries: Tensor, targets: Tensor, window: Tensor | None = None) -> Tensor:
        """Finds nearest tokens as `nearest_tokens` does, by the backend of the targets' shape.

        Args:
            queries: (m, P, C).
            targets: (P', C).
            window: Where a match is allowed, (P, P') bool; None for the whole frame.

        Returns:
            (m, P) int64 on the device of `queries`.

        Raises:
            LibraryError: For a FAISS that is asked for and fails.
            ValueError: If FAISS is the backend and a window is given.
        """
        try:
            return nearest_tokens(queries, targets, self.choose(targets[None]), window)
        except LibraryError as error:
            if self._backend != "auto":
                raise
            self._without, self._chosen = str(error), dict.fromkeys(self._chosen, "torch")
            return nearest_tokens(queries, targets, "torch", window)

    def __str__(self) -> str:
        names = " and ".join(
            NAMES[backend] for backend in NAMES if backend in self._chosen.values()
        )
        if self._backend != "auto":
            return names
        if self._without:
            return f"torch, {self._without}"
        figures = []
        for (tokens, width), seconds in self._seconds.items():
            each = ", ".join(
                f"{NAMES[backend]} {_milliseconds(seconds[backend])}"
                for backend in NAMES
                if backend in seconds
            )
            figures.append(f"{each} for {tokens} x {width}")
        kind = "CPU" if self._device.type == "cpu" else "GPU"
        return f"{names} (this {kind}, a frame: {'; '.join(figures)})"


def seconds_a_frame(features: Tensor, device: torch.device) -> dict[str, float]:
    """Measures how long each backend matches a frame's tokens to another's.

    It takes the best of several rounds, in which the backends take turns.

    Args:
        features: (N, P, C); the frames repeat where there are too few.
        device: Where to search.

    Returns:
        Seconds by backend.

    Raises:
        LibraryError: If FAISS is missing or fails.
    """
    _, tokens, width = features.shape
    count = min(FRAMES * tokens, max(tokens // 32, int(OPERATIONS / (2 * tokens * width))))
    flat = features.flatten(0, 1)
    queries = flat[torch.arange(count) % len(flat)].to(device)[None]
    targets = features[0].to(device)
    # Imports, threads and workspaces are not part of it.
    for backend in NAMES:
        nearest_tokens(queries[:, :64], targets[:64], backend)
    seconds = dict.fromkeys(NAMES, float("inf"))
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        for backend in seconds:
            start = time.perf_counter()
            nearest_tokens(queries, targets, backend).cpu()
            seconds[backend] = min(seconds[backend], (time.perf_counter() - start) * tokens / count)
        if time.perf_counter() - begin > SECONDS:
            break
    return seconds


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2g} ms"


def machine(device: torch.device) -> str:
    """Names what searches there: a GPU, or the CPU and the number of threads."""
    if device.type != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    return f"{_cpu()}, {torch.get_num_threads()} threads" + (
        "" if device.type == "cpu" else f", {device.type}"
    )


def _cpu() -> str:
    listed = Path("/proc/cpuinfo")  # Linux; other systems say it themselves
    lines = listed.read_text().splitlines() if listed.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
