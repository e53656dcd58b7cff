"""How near the search for nearest tokens comes to its matrix product.

    python3 run.py bench search [--tokens 64 255 ... --widths 320 ...]

The tokens of up to 16 frames, which is how many share a keyframe at an interval of 8, search one
keyframe's. First table: the rate of the bare matrix product of that shape into a buffer that is
there already (float32; on a GPU float16, as features are there), what share of it each search
reaches, and the most memory each takes beyond its input. Second table, on the CPU and for the first
width: FAISS with an inverted file (IVF), which has to be trained for every keyframe, its time
against the whole search and how many tokens find the same match. Features are random, and as hard
to tell apart as the embedded model's: probing one of 32 lists finds 61 to 73 % of the matches
there. Times are medians of interleaved rounds, shares medians over rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from tokenflow_pack.tokenflow_ops.libraries import LibraryError, library
from tokenflow_pack.tokenflow_ops.matching.fastest import machine
from tokenflow_pack.tokenflow_ops.matching.search import nearest_tokens
from torch import Tensor

from bench.tools.memory import peak_memory

FRAMES = 16
# Independent directions of the features, and neighbours that are alike.
VARIETY = 8
# A round times each search for at least so long.
SECONDS = 0.05
PROBED = (1, 4, 16)
Run = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 255, 256, 1024, 4095, 4096])
    parser.add_argument("--widths", type=int, nargs="+", default=[320, 640, 1280])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--operations",
        type=float,
        default=3e10,
        help="floating-point operations of a product: fewer queries beyond it",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    shapes = [(tokens, width) for tokens in options.tokens for width in options.widths]
    try:
        backends, said = ["torch", "faiss"], f"FAISS {library('faiss').__version__}"
    except LibraryError as error:
        backends, said = ["torch"], str(error)
    print(f"{machine(torch.device(options.device))}; torch {torch.__version__}, {said}\n")
    with torch.inference_mode():
        memories = [f"{name}'s memory" for name in ("product", *backends)]
        table(
            ["tokens", "width", "queries", "product", *backends, *memories],
            (searched(*shape, backends, options) for shape in shapes),
        )
        if "faiss" in backends:
            rows = (inverted_file(tokens, options.widths[0], options) for tokens in options.tokens)
            probed = [f"{count} probed: time, same match" for count in PROBED]
            table(["tokens", "width", "lists", "trained and filled", *probed], rows)


def table(columns: list[str], rows: Iterable[list[object]]) -> None:
    """Prints the rows as they come."""
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
    print()


def searched(
    tokens: int, width: int, backends: list[str], options: argparse.Namespace
) -> list[object]:
    """A row of the first table."""
    queries, targets = features(tokens, width, options)
    runs: dict[str, Run] = {
        name: partial(nearest_tokens, queries[None], targets, name) for name in backends
    }
    held = [memory(partial(torch.mm, queries, targets.T)), *(memory(run) for run in runs.values())]
    product = partial(torch.mm, queries, targets.T, out=queries.new_empty(len(queries), tokens))
    seconds = interleaved({"product": product, **runs}, options.rounds)
    rate = 2 * len(queries) * tokens * width / median(seconds["product"]) / 1e9
    reached = [f"{ratio(seconds, 'product', name):.0%}" for name in backends]
    return [tokens, width, len(queries), f"{rate:.0f} GFLOP/s", *reached, *held]


def inverted_file(tokens: int, width: int, options: argparse.Namespace) -> list[object]:
    """A row of the second table, for the CPU."""
    faiss = library("faiss")
    queries, targets = (part.float().cpu() for part in features(tokens, width, options))
    lists = round(tokens**0.5)

    def build() -> Any:
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.min_points_per_centroid = 1  # else it warns of few tokens
        directions = F.normalize(targets, dim=-1).numpy()
        index.train(directions)
        index.add(directions)
        return index

    def find(probed: int) -> Tensor:
        index = build()
        index.nprobe = probed
        return torch.from_numpy(index.search(queries.numpy(), 1)[1])[:, 0]

    whole = partial(nearest_tokens, queries[None], targets, "faiss")
    runs: dict[str, Run] = {str(probed): partial(find, probed) for probed in PROBED}
    seconds = interleaved({"whole": whole, "build": build, **runs}, options.rounds)
    same = [(find(probed) == whole()[0]).float().mean() for probed in PROBED]
    cells = [
        f"{ratio(seconds, name, 'whole'):.0%}, {found:.0%}"
        for name, found in zip(runs, same, strict=True)
    ]
    return [tokens, width, lists, f"{ratio(seconds, 'build', 'whole'):.0%}", *cells]


def features(tokens: int, width: int, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Queries (n, width) and targets (tokens, width)."""
    generator = torch.Generator().manual_seed(tokens * width)
    corners = torch.randn(1, VARIETY, 2 + tokens // VARIETY, generator=generator)
    # Else the first ones are the same, and so the last.
    plane = F.interpolate(corners, tokens, mode="linear", align_corners=True)[0].T
    basis = torch.randn(VARIETY, width, generator=generator)
    count = min(FRAMES * tokens, max(tokens // 4, int(options.operations / (2 * tokens * width))))
    index = torch.arange(count)
    moved = plane[(index + index // tokens) % tokens] + 0.5 * torch.randn(
        count, VARIETY, generator=generator
    )
    dtype = torch.float32 if options.device == "cpu" else torch.float16
    return (moved @ basis).to(options.device, dtype), (plane @ basis).to(options.device, dtype)


def interleaved(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run by round; each round begins with another one."""
    names = list(runs)
    repeats = {
        name: max(1, int(SECONDS / min(clocked(run), clocked(run)))) for name, run in runs.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(clocked(runs[name], repeats[name]))
    return seconds


def clocked(run: Run, repeats: int = 1) -> float:
    """Mean seconds of a run."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def ratio(seconds: Mapping[str, list[float]], one: str, other: str) -> float:
    """How long one took against another in the same round."""
    return median(
        first / second for first, second in zip(seconds[one], seconds[other], strict=True)
    )


def memory(run: Run) -> str:
    with peak_memory() as peak:
        run()
    return "?" if peak.mib is None else f"{peak.mib:.0f} MiB"


if __name__ == "__main__":
    main()
