"""Keyframes that see each other's tokens merged, against the formula written out: every token of a
keyframe attends to that keyframe's tokens and to means of 2 x 2 of all others'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenflow_ops.passes import AttentionCall, KeyframePass

HEADS, WIDTH = 2, 6
LAYER = "layer"


@dataclass
class Call(AttentionCall):
    """A call of a module of plain linear layers."""

    rows_columns: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows_columns

    def run(self, x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        keys = x if context is None else context
        return self.run_injected(x, keys, keys if value is None else value)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        split = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)

    def project_out(self, tokens: Tensor) -> Tensor:
        return self.module.to_out(tokens)


@pytest.fixture(scope="module")
def module() -> Any:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        named = {
            name: torch.nn.Linear(WIDTH, WIDTH, bias=name == "to_out").requires_grad_(False)
            for name in ("to_q", "to_k", "to_v", "to_out")
        }
    return SimpleNamespace(**named)


def call_of(module: Any, x: Tensor, rows: int, grid: tuple[int, int]) -> Call:
    return Call(LAYER, module, x, None, None, [(row, 0) for row in range(rows)], grid)


def written_out(
    module: Any, grid: tuple[int, int], queries: Tensor, keys: Tensor, values: Tensor, own: int
) -> Tensor:
    """The first `own` of some keyframes, (own, P, C); the others are only looked at."""
    found = []
    for i in range(own):
        sides = []
        for tokens in (keys, values):
            parts = [tokens[i]]
            for j in range(len(tokens)):
                if j != i:
                    parts += means(tokens[j].unflatten(0, grid))
            sides.append(torch.cat(parts))
        k, v = module.to_k(sides[0]), module.to_v(sides[1])
        heads = []
        for h in range(HEADS):
            part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
            weights = module.to_q(queries[i])[:, part] @ k[:, part].T / (WIDTH / HEADS) ** 0.5
            heads.append(weights.softmax(-1) @ v[:, part])
        found.append(module.to_out(torch.cat(heads, -1)))
    return torch.stack(found)


def means(laid: Tensor) -> list[Tensor]:
    rows, columns = laid.shape[:2]
    return [
        laid[y : y + 2, x : x + 2].flatten(0, 1).mean(0, keepdim=True)
        for y in range(0, rows, 2)
        for x in range(0, columns, 2)
    ]


def edited(call: Call, count: int, **choices: Any) -> tuple[Tensor, Any]:
    """What a pass of `count` keyframes makes, and the pass."""
    work = KeyframePass(torch.arange(count), merged_from=call.x.shape[1], **choices)
    return work.attention(call), work


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 2),
    count=st.integers(1, 5),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    injected=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_it_is_the_formula(
    module: Any, rows: int, count: int, grid: tuple[int, int], injected: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, source = torch.randn(2, rows * count, grid[0] * grid[1], WIDTH, generator=generator)
    asked = {"source": {LAYER: source[:count]}} if injected else {}
    found, work = edited(call_of(module, x, rows, grid), count, **asked)
    for row, part in enumerate(found.split(count)):
        values = x[row * count : (row + 1) * count]
        asking = source[:count] if injected else values
        wanted = written_out(module, grid, asking, asking, values, count)
        torch.testing.assert_close(part, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(work.bank[LAYER, (row, 0)], part)


@pytest.mark.parametrize("own", [[3], [3, 2], [1, 4, 2]])
def test_windows_see_the_merged_tokens_of_those_before(module: Any, own: Sequence[int]) -> None:
    """Every window attends to all keyframes of the one before it."""
    grid, generator = (3, 5), torch.Generator().manual_seed(1)
    left, before = None, None
    for count in own:
        x = torch.randn(count, 15, WIDTH, generator=generator)
        context = {} if left is None else {"context": left.seen}
        found, left = edited(call_of(module, x, 1, grid), count, **context)
        everything = x if before is None else torch.cat([x, before])
        wanted = written_out(module, grid, everything, everything, everything, count)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        before = x


def test_layers_of_fewer_tokens_see_all_of_them(module: Any) -> None:
    x = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(2))
    work = KeyframePass(torch.arange(2), merged_from=5)
    plain = KeyframePass(torch.arange(2))
    call = call_of(module, x, 1, (2, 2))
    assert torch.equal(work.attention(call), plain.attention(call))


@pytest.mark.parametrize("merged_from", [None, 1])
def test_the_bank_holds_the_lists_that_are_asked_for_and_none_of_the_others_memory(
    module: Any, merged_from: int | None
) -> None:
    x = torch.randn(3 * 2, 6, WIDTH, generator=torch.Generator().manual_seed(3))
    call = call_of(module, x, 3, (2, 3))
    call.places = [(1, 0), (0, 0), (0, 1)]
    work = KeyframePass(torch.arange(2), lists=1, merged_from=merged_from)
    rows = work.attention(call).split(2)
    assert work.bank.keys() == {(LAYER, (0, 0)), (LAYER, (0, 1))}
    for number in (0, 1):
        kept = work.bank[LAYER, (0, number)]
        assert torch.equal(kept, rows[1 + number])
        assert kept.untyped_storage().nbytes() == kept.nbytes
