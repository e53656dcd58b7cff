"""Nearest tokens by cosine distance: FAISS, or one matrix product and an argmax in torch."""

from __future__ import annotations

import time
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("auto", "faiss", "torch")
# Scores of this many bytes are held at once by the torch backend.
SCORE_BYTES = 64 << 20


def load_faiss() -> ModuleType | None:
    """The faiss module, or None. Imported late: two OpenMP runtimes in one process upset some systems, so only users of FAISS pay."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def nearest_tokens(queries: Tensor, targets: Tensor, backend: str = "torch", window: Tensor | None = None) -> Tensor:
    """gamma[p] = argmin_q D(queries[p], targets[q]) with D the cosine distance (paper, equation 3).

    queries: (m, P, C), targets: (P', C), any float dtype and device. Zero vectors match the first token.
    window: (P, P') bool, True where a match is allowed, or None for the whole frame. Torch only.
    Returns: (m, P) int64 on the device of `queries`. Of equal distances the lowest index wins.
    Raises: ValueError for an unknown backend or FAISS with a window; ImportError if FAISS is asked for and missing.
    """
    queries, targets = F.normalize(queries.float(), dim=-1), F.normalize(targets.float(), dim=-1)
    if backend == "torch":
        return _search_torch(queries, targets, window)
    if backend == "faiss":
        if window is not None:
            raise ValueError("FAISS searches the whole frame: use the torch backend with a window")
        return _search_faiss(queries, targets)
    raise ValueError(f"backend must be 'faiss' or 'torch', got {backend!r}")


def _search_torch(queries: Tensor, targets: Tensor, window: Tensor | None) -> Tensor:
    rows = max(1, SCORE_BYTES // (4 * targets.shape[0] * queries.shape[1]))
    found = []
    for part in queries.split(rows):
        scores = part @ targets.T
        if window is not None:
            scores.masked_fill_(~window, -torch.inf)
        found.append(scores.argmax(-1))
    return torch.cat(found)


def _search_faiss(queries: Tensor, targets: Tensor) -> Tensor:
    faiss = load_faiss()
    if faiss is None:
        raise ImportError("FAISS is not installed: pip install faiss-cpu, or choose the torch backend")
    width = targets.shape[1]
    index = faiss.IndexFlatIP(width)
    resources = None
    if queries.is_cuda and hasattr(faiss, "StandardGpuResources"):
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(SCORE_BYTES)  # the default takes 1.5 GiB behind the host's back
        index = faiss.index_cpu_to_gpu(resources, queries.device.index or 0, index)
    index.add(targets.cpu().contiguous().numpy())
    _, found = index.search(queries.reshape(-1, width).cpu().contiguous().numpy(), 1)
    return torch.from_numpy(found).reshape(queries.shape[:2]).to(queries.device)


def faster_backend(queries: Tensor, targets: Tensor) -> str:
    """Runs both backends once on these features and names the faster; "torch" where FAISS is missing. Shapes as in `nearest_tokens`."""
    if load_faiss() is None:
        return "torch"
    seconds = {}
    for backend in ("torch", "faiss"):
        nearest_tokens(queries[:1], targets, backend)  # imports, threads and workspaces are not part of the comparison
        start = time.perf_counter()
        nearest_tokens(queries, targets, backend).cpu()
        seconds[backend] = time.perf_counter() - start
    return min(seconds, key=lambda name: seconds[name])


def search_window(height: int, width: int, radius: int) -> Tensor | None:
    """(P, P) bool: True where two tokens of a height x width grid lie within `radius` in both directions; None for radius 0 (no limit)."""
    if radius <= 0:
        return None
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.reshape(-1), x.reshape(-1)
    return ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)
