"""What benchmarks measure with: a wrong one would give wrong figures and no error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

from bench.costs import search
from bench.tools.memory import kept
from bench.tools.public_code import loop_over_heads

from ..tiny_models import tiny_sd15


@dataclass(frozen=True)
class Holder:
    first: Any
    second: Any = None


def test_kept_counts_every_tensor_once() -> None:
    one, other = torch.zeros(2**18), torch.zeros(2**18)
    assert kept({"a": [one, one[:5]]}, (other, "text", None, 3)) == 2
    inner = Holder(one, {1: other})
    assert kept(inner, Holder(inner, [torch.zeros(2**17)])) == 2.5


def test_looped_attention_is_the_hosts() -> None:
    attention = loop_over_heads(tiny_sd15()).model_options["transformer_options"][
        "optimized_attention_override"
    ]

    def fused(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise AssertionError("not a loop")

    q, k, v = (
        torch.randn(2, tokens, 32, generator=torch.Generator().manual_seed(tokens))
        for tokens in (6, 18, 18)
    )
    torch.testing.assert_close(attention(fused, q, k, v, 4), optimized_attention(q, k, v, 4))
    with pytest.raises(AssertionError, match="not a loop"):
        attention(fused, q, k[:, :7], v[:, :7], 4)


def test_the_bench_of_the_search_has_a_row_for_every_shape(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "SECONDS", 0.0)
    monkeypatch.setattr(
        "sys.argv", ["search", "--tokens", "9", "70", "--widths", "4", "8", "--rounds", "2"]
    )
    search.main()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line[2:3].isdigit()
    ]
    searched = [["9", "4", "144"], ["9", "8", "144"], ["70", "4", "1120"], ["70", "8", "1120"]]
    assert [row[:3] for row in rows[:4]] == searched
    # Without FAISS there is no second table.
    assert [row[:3] for row in rows[4:]] in ([], [["9", "4", "3"], ["70", "4", "8"]])
    assert len({len(row) for row in rows[:4]}) == 1


@pytest.mark.parametrize("number", [1, 2, 4])
def test_an_ideal_edit_is_of_the_asked_surface_where_the_object_is(number: int) -> None:
    from bench.tools.case import Settings  # puts the world's modules on the path

    assert Settings
    from clips import Clip

    from bench.tools.materials import made_of

    clip = Clip("plain", number, 2)
    (surface,), masks, bare = clip.surfaces(1), clip.masks(), clip.bare()

    def overlap(pictures: torch.Tensor) -> float:
        found = made_of(pictures, surface, clip.source.ground, bare, clip.pictures(), masks)
        return float((found & masks).sum() / (found | masks).sum())

    assert overlap(clip.dressed(surface).pictures()) > 0.93
    assert overlap(clip.pictures()) < 0.05
    assert overlap(bare) < 0.05
    moved = clip.dressed(surface).pictures().roll(20, -1)
    assert overlap(moved) < 0.7
