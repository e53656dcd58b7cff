"""Which frames are whose, and how tensors travel: without Ray's servers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.shares.shards import OUT_OF_MEMORY, Failure, RayShards, _packed, _size, _unpacked

CPU = torch.device("cpu")


@given(frames=st.integers(0, 40), count=st.integers(2, 5))
def test_every_frame_is_one_hosts_and_they_come_in_order(frames: int, count: int) -> None:
    numbers = torch.arange(frames) * 3
    shares = [
        RayShards(rank, count, None, CPU, lambda: None, {}).here(numbers) for rank in range(count)
    ]
    assert torch.cat(shares).equal(numbers)
    sizes = [len(part) for part in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_tensors_travel_to_the_bit(dtype: torch.dtype) -> None:
    tensor = torch.arange(-7, 8).to(dtype).view(3, 5)
    value = {("layer", (0, 1)): [tensor, tensor.T], "more": (tensor[:0], "text", 3)}
    packed = _packed(value)
    found: Any = _unpacked(packed, CPU)
    assert _size(packed) == 2 * tensor.nbytes
    assert found["more"][1:] == ("text", 3)
    assert isinstance(found["more"], tuple)
    for one, other in zip(
        [*found["layer", (0, 1)], found["more"][0]], [tensor, tensor.T, tensor[:0]], strict=True
    ):
        assert one.dtype == dtype
        assert one.equal(other)


def test_an_error_is_known_to_the_others_by_what_it_is_not_by_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory that runs out has several classes; the first host goes on with less,
    and so must the others.
    """
    left: list[str] = []
    monkeypatch.setattr(
        RayShards, "_leave", lambda self, kind, value, failure="": left.append(failure)
    )
    errors = {OUT_OF_MEMORY: Failure(lambda error: "no room" in str(error), MemoryError)}
    first = RayShards(0, 2, None, CPU, lambda: None, errors)

    def fail(said: str) -> None:
        raise RuntimeError(said)

    for said in ("no room", "another"):
        with pytest.raises(RuntimeError, match=said):
            first.once(lambda said=said: fail(said))
    assert left == [OUT_OF_MEMORY, "RuntimeError: another"]
