"""The search on the device: torch and FAISS, halves and float32, beside float32 on the CPU."""

from __future__ import annotations

import time

import torch
from tokenflow_pack.tokenflow_ops.libraries import LibraryError
from tokenflow_pack.tokenflow_ops.matching.search import nearest_tokens
from torch import Tensor

from .sizes import Lines, Sizes, device

FRAMES, REPEATS = 4, 5
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def search(sizes: Sizes) -> Lines:
    """Milliseconds a frame; the share of matches that are those of float32 on the CPU, from the
    same numbers.
    """
    lines = []
    for tokens, width in sizes.tokens:
        generator = torch.Generator().manual_seed(tokens)
        whole = torch.randn(FRAMES + 1, tokens, width, generator=generator)
        for dtype in TYPES:
            rounded = whole.to(dtype)
            wanted = nearest_tokens(rounded[1:].float(), rounded[0].float())
            on_device = rounded.to(device())
            for backend in ("torch", "faiss"):
                line = {"tokens": tokens, "width": width, "type": str(dtype).split(".")[1]}
                lines.append(line | {"backend": backend} | _run(on_device, wanted, backend))
    return lines


def _run(features: Tensor, wanted: Tensor, backend: str) -> dict[str, float | str]:
    try:
        found = nearest_tokens(features[1:], features[0], backend).cpu()
    except LibraryError as error:
        return {"ms a frame": "", "same": "", "error": str(error)}
    start = time.perf_counter()
    for _ in range(REPEATS):
        nearest_tokens(features[1:], features[0], backend).cpu()
    seconds = (time.perf_counter() - start) / REPEATS / FRAMES
    return {"ms a frame": 1000 * seconds, "same": float((found == wanted).float().mean())}
