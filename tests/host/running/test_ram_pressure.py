"""The host's cache under memory pressure: it drops outputs by what they take, and counts ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from comfy_execution.caching import CacheKeySetID, RAMPressureCache
from execution import CacheEntry
from tokenflow_pack.host import memory
from tokenflow_pack.nodes.features import ExtractFeatures
from torch import Tensor

from ..helpers import built, call, extracted, invert, inverted, matched, tiny_model
from ..tiny_models import moving_clip

PICTURES = "pictures"


def dropped_first(output: Any, pictures: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of two the host drops: ours, or pictures of so many bytes."""
    cache = RAMPressureCache(CacheKeySetID)
    newer = hasattr(cache, "ram_release")
    outputs = {"ours": output, PICTURES: torch.zeros(pictures, dtype=torch.uint8)}
    # 0.3.75 takes what a node shows for its outputs, and so counts nothing of anybody: here they
    # stand where it looks.
    cache.cache = {
        name: CacheEntry(None, [[one]]) if newer else CacheEntry([[one]], None)
        for name, one in outputs.items()
    }
    cache.used_generation = dict.fromkeys(outputs, cache.generation)
    cache.timestamps = dict.fromkeys(outputs, 0.0)

    def virtual_memory() -> Any:
        return SimpleNamespace(available=0 if len(cache.cache) == len(outputs) else 2**60)

    monkeypatch.setattr(psutil, "virtual_memory", virtual_memory)
    if newer:
        cache.ram_release(2**50, free_active=True)
    else:
        cache.poll(1.0)
    (kept,) = cache.cache
    return next(name for name in outputs if name != kept)


def check_counted(output: Any, held: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """It weighs what its tensors do, within a tenth."""
    size = sum(tensor.nbytes for tensor in held)
    assert dropped_first(output, int(0.9 * size), monkeypatch) == "ours"
    assert dropped_first(output, int(1.1 * size), monkeypatch) == PICTURES


def test_an_inversion_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    inversion = inverted()[0]
    check_counted(inversion, [inversion.latents, inversion.sigmas], monkeypatch)


def test_features_count_what_is_stored_and_what_they_keep_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = extracted()
    kept = [stored.store.get(step, layer) for step in stored.steps for layer in stored.match_layers]
    assert sum(tensor.nbytes for tensor in kept) > stored.inversion.latents.nbytes
    # What Plug-and-Play needs of them.
    hidden = [
        tensor
        for (_, name), tensor in stored.store._kept.items()
        if name not in stored.match_layers
    ]
    check_counted(stored, [stored.inversion.latents, *kept, *hidden], monkeypatch)
    computed = call(ExtractFeatures.execute, tiny_model(), inverted()[0], storage="recompute")[0]
    check_counted(computed, [computed.inversion.latents], monkeypatch)
    on_disk = call(ExtractFeatures.execute, tiny_model(), inverted()[0], storage="disk")[0]
    check_counted(on_disk, [on_disk.inversion.latents], monkeypatch)


def test_matches_count_once_however_many_steps_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    features = call(
        ExtractFeatures.execute,
        tiny_model(),
        inverted()[0],
        steps="one noise level",
        storage="recompute",
    )[0]
    found = built(features)
    pairs = found.steps[0].pairs
    tables = *pairs.tokens.values(), *(pairs.likeness or {}).values()
    assert all(step.pairs is found.steps[0].pairs for step in found.steps)
    check_counted(found, [features.inversion.latents, *tables], monkeypatch)
    assert sum(tensor.nbytes for tensor in matched()) > sum(tensor.nbytes for tensor in extracted())


def test_a_path_in_a_file_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(memory, "fits_in_memory", lambda size: False)
        inversion = invert(tiny_model(), moving_clip(2, 8, 8))[0]
    assert [*inversion] == [inversion.sigmas]
    assert dropped_first(inversion, inversion.latents.nbytes // 2, monkeypatch) == PICTURES


@pytest.mark.parametrize(
    "make",
    [lambda: inverted()[0], extracted, matched],
    ids=["inversion", "features", "correspondences"],
)
def test_they_are_there_even_to_whoever_takes_them_for_lists(make: Any) -> None:
    """A graph that expands itself looks whether a value of two is a link, a name and a number."""
    output = make()
    assert output
    assert len(output) == len([*output])
    assert isinstance(output[0], Tensor)
