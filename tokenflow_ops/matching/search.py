"""Nearest tokens by cosine distance, found by FAISS or by torch.

torch makes matrix products and searches for their maxima. A match is an argmax over targets, which
the length of a query does not change: only targets are normalised.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..libraries import library, working

BACKENDS = ("auto", "faiss", "torch")
# Products held at once. On a CPU few enough to be searched in cache, and many enough that laying
# out the targets for a product pays.
CPU_BYTES, DEVICE_BYTES = 16 << 20, 256 << 20
# torch searches the maximum of a row several times faster than its index: first the maxima of
# blocks, then the index in one of them.
BLOCK = 64


def nearest_tokens(
    queries: Tensor, targets: Tensor, backend: str = "torch", window: Tensor | None = None
) -> Tensor:
    """Finds gamma[p] = argmin_q D(queries[p], targets[q]) with D the cosine distance.

    This is the paper's equation 3. Zero vectors match the first token. Of equal tokens the
    lowest index wins.

    Args:
        queries: (m, P, C), finite, of any float dtype.
        targets: (P', C), finite, of any float dtype, on the device of `queries`.
        backend: "faiss" or "torch".
        window: Where a match is allowed, (P, P') bool, or None for the whole frame. Torch only.

    Returns:
        (m, P) int64 on the device of `queries`.

    Raises:
        ValueError: For an unknown backend or FAISS with a window.
        LibraryError: If FAISS is asked for and missing, or fails.

    Examples:
        The length of tokens does not count, their direction does:

        >>> queries = torch.tensor([[[5.0, 1.0], [1.0, 3.0]]])
        >>> nearest_tokens(queries, torch.tensor([[0.0, 9.0], [1.0, 0.0]])).tolist()
        [[1, 0]]
    """
    if backend not in ("faiss", "torch"):
        raise ValueError(f"backend must be 'faiss' or 'torch', got {backend!r}")
    if backend == "faiss" and window is not None:
        raise ValueError("FAISS searches the whole frame: use the torch backend with a window")
    flat, targets = queries.detach().flatten(0, 1), targets.detach().float()
    lengths = torch.linalg.vector_norm(targets, dim=-1)
    directions = targets / lengths.clamp(min=1e-12)[:, None]
    if backend == "faiss":
        found = _search_faiss(flat, directions)
    elif flat.device.type == "cpu":
        found = _search_cpu(flat, directions, window)
    else:
        found = _search_device(flat, directions, window)
    # Products of equal tokens may differ in their last bit, by their places in the matrix.
    if window is None:
        first = _first_of_equals(targets, lengths)
        found = found if first is None else first[found]
    return found.unflatten(0, queries.shape[:2])


def _search_cpu(queries: Tensor, targets: Tensor, window: Tensor | None) -> Tensor:
    count = len(targets)
    blocks = -(-count // BLOCK)
    rows = min(len(queries), max(1, CPU_BYTES // (4 * blocks * BLOCK)))
    scores = torch.empty(rows, blocks * BLOCK)
    scores[:, count:] = -torch.inf
    marks = torch.arange(BLOCK, 0, -1, dtype=scores.dtype)
    found = torch.empty(len(queries), dtype=torch.int64)
    for start in range(0, len(queries), rows):
        part = queries[start : start + rows]
        products = scores[: len(part)]
        torch.mm(part.float(), targets.T, out=products[:, :count])
        if window is not None:
            products[:, :count].masked_fill_(_outside(window, start, len(part)), -torch.inf)
        best, block = products.view(-1, blocks, BLOCK).amax(-1).max(-1)
        inside = products.view(-1, BLOCK).index_select(
            0, block + torch.arange(0, len(part) * blocks, blocks)
        )
        # Of the maxima in the block the first has the highest mark.
        mark = inside.eq_(best[:, None]).mul_(marks).amax(-1)
        found[start : start + rows] = block.add_(1).mul_(BLOCK).sub_(mark.long())
    return found


def _search_device(queries: Tensor, targets: Tensor, window: Tensor | None) -> Tensor:
    """Products of halves where queries are halves and the device sums and returns float32.

    Else a tile of queries is converted.
    """
    halves = (
        queries.dtype in (torch.float16, torch.bfloat16)
        and queries.is_cuda
        and torch.version.cuda
        and torch.__version__ >= "2.8"
    )
    targets = targets.to(queries.dtype if halves else torch.float32).T
    found = []
    rows = max(1, DEVICE_BYTES // (4 * targets.shape[1]))
    for start, part in enumerate(queries.split(rows)):
        scores = (
            torch.mm(part, targets, out_dtype=torch.float32) if halves else part.float() @ targets
        )
        if window is not None:
            scores.masked_fill_(_outside(window, start * rows, len(part)), -torch.inf)
        found.append(scores.argmax(-1))
    return torch.cat(found)


def _outside(window: Tensor, start: int, count: int) -> Tensor:
    """(count, P') bool: what `count` queries from the `start`-th on may not match.

    They are of frames one after the other.
    """
    return ~window[torch.arange(start, start + count, device=window.device) % len(window)]


def _first_of_equals(tokens: Tensor, lengths: Tensor) -> Tensor | None:
    """For every token (P', C) the lowest index of one that equals it.

    None if all differ, as they nearly always do. lengths: (P',).
    """
    if len(lengths.unique()) == len(tokens):
        return None
    _, group, members = lengths.unique(return_inverse=True, return_counts=True)
    alike = (members[group] > 1).nonzero()[:, 0]  # equal tokens have equal lengths
    different, group = tokens[alike].unique(dim=0, return_inverse=True)
    lowest = alike.new_empty(len(different)).scatter_reduce_(
        0, group, alike, "amin", include_self=False
    )
    return torch.arange(len(tokens), device=tokens.device).index_copy_(0, alike, lowest[group])


def _search_faiss(queries: Tensor, targets: Tensor) -> Tensor:
    """Searches by FAISS, which comes late, as all libraries do.

    Two OpenMP runtimes in one process upset some systems, so only its users pay.
    """
    with working("faiss") as faiss:
        on_gpu = queries.is_cuda and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()
    if on_gpu:
        return _search_faiss_gpu(faiss, queries, targets)
    rows, wanted = targets.cpu().numpy(), queries.float().cpu().contiguous().numpy()
    with working("faiss"):
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)
        _, found = index.search(wanted, 1)
        return torch.from_numpy(found).flatten().to(queries.device)


def _search_faiss_gpu(faiss: Any, queries: Tensor, targets: Tensor) -> Tensor:
    """Brute force on the tensors where they are, in half precision if the queries are.

    Of equal scores FAISS takes any one.
    """
    dtype = queries.dtype if queries.dtype == torch.float16 else torch.float32
    queries, targets = queries.to(dtype).contiguous(), targets.to(dtype)
    device = queries.device.index or 0
    with working("faiss"):
        import_module("faiss.contrib.torch_utils")  # from here on knn_gpu takes tensors
        _, found = faiss.knn_gpu(
            _gpu_resources(device),
            queries,
            targets,
            1,
            metric=faiss.METRIC_INNER_PRODUCT,
            device=device,
        )
    return found.flatten().masked_fill_(~queries.any(-1), 0)


@cache
def _gpu_resources(device: int) -> Any:
    """FAISS's handles and scratch memory on a GPU, kept between searches.

    Making them takes longer than a search. See `release_scratch`.
    """
    resources = library("faiss").StandardGpuResources()
    resources.setTempMemory(DEVICE_BYTES)  # the default takes 1.5 GiB behind the host's back,
    resources.setPinnedMemory(0)  # and 256 MiB for copies that we do not make
    return resources


def release_scratch() -> None:
    """Gives back what FAISS holds on GPUs; the next search there takes it anew."""
    _gpu_resources.cache_clear()


def search_window(height: int, width: int, radius: int) -> Tensor | None:
    """Tells which tokens of a grid lie within a distance in both directions.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        radius: In tokens; 0 for no limit.

    Returns:
        (P, P) bool, True where two tokens lie within `radius`; None for no limit.

    Examples:
        >>> search_window(1, 3, radius=1).int().tolist()
        [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    """
    if radius <= 0:
        return None
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.reshape(-1), x.reshape(-1)
    return ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)
