"""Which frames are whose, and how tensors travel: without Ray's servers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.shards import Pace, RayShards, _packed, _size, _unpacked, lead

CPU = torch.device("cpu")


def host(rank: int, count: int, share: float) -> RayShards:
    return RayShards(rank, count, None, CPU, lambda: None, {}, lead=share)


@given(frames=st.integers(0, 40), count=st.integers(2, 5), share=st.floats(0, 0.5), beside=st.booleans())
def test_every_frame_is_one_hosts_and_they_come_in_order(frames: int, count: int, share: float, beside: bool) -> None:
    numbers = torch.arange(frames) * 3
    shares = [host(rank, count, share).own(numbers, beside) for rank in range(count)]
    assert torch.cat(shares).equal(numbers)
    sizes = [len(part) for part in shares[1:]]
    assert max(sizes) - min(sizes) <= 1
    assert len(shares[0]) == (round(share * frames) if beside else max(map(len, shares)))


@given(
    keyframes=st.floats(0, 100),
    frames=st.integers(1, 100),
    speeds=st.lists(st.floats(0.01, 10), min_size=2, max_size=2),
    count=st.integers(2, 6),
)
def test_the_first_host_takes_frames_until_all_are_done_together(keyframes: float, frames: int, speeds: list[float], count: int) -> None:
    first, second = speeds
    paces = [Pace(keyframes, 1, first), *(Pace(0.0, frames, frames * second) for _ in range(count - 1))]
    share, total = lead(paces, 0.0), 1 + frames * (count - 1)
    takes = keyframes + share * total * first, (1 - share) * total * second / (count - 1)
    assert 0 <= share <= 1 / count
    if share < 1 / count:  # with more frames it would be the last
        assert takes[0] >= takes[1] * (1 - 1e-6)
    if share > 0:  # with fewer the others would
        assert takes[0] <= takes[1] * (1 + 1e-6)


def test_without_frames_of_others_the_share_stays() -> None:
    assert lead([Pace(1.0, 4, 1.0), Pace()], 0.3) == 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_travel_to_the_bit(dtype: torch.dtype) -> None:
    tensor = torch.arange(-7, 8).to(dtype).view(3, 5)
    value = {("layer", (0, 1)): [tensor, tensor.T], "more": (tensor[:0], "text", 3)}
    packed = _packed(value)
    found: Any = _unpacked(packed, CPU)
    assert _size(packed) == 2 * tensor.nbytes
    assert found["more"][1:] == ("text", 3)
    assert isinstance(found["more"], tuple)
    for one, other in zip([*found["layer", (0, 1)], found["more"][0]], [tensor, tensor.T, tensor[:0]], strict=True):
        assert one.dtype == dtype
        assert one.equal(other)
