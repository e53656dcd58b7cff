"""Ten thousand calls of the nodes with anything: each gives a sane result, or an error that says which input is wrong and what to do.

The calls are the same in every run. TOKENFLOW_FUZZ=5 makes five times as many, others each time.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenflow_pack.host.errors import NodeError
from tokenflow_pack.host.folders import SUFFIX

from .bad_files import demo, good_file
from .bad_input import (
    APPLY,
    BUILD,
    CHECK,
    COMPARE,
    CORRESPONDENCES,
    DEMO,
    EXTRACT,
    FEATURES,
    GOOD,
    INJECTION,
    INVERT,
    LOAD,
    METRICS,
    NODES,
    SAMPLER,
    SAVE,
    TUNE,
    run,
    still_good,
    told,
)
from .fuzz_values import values
from .helpers import SIZE, stock, tiny_model, untouched

TIMES = int(os.environ.get("TOKENFLOW_FUZZ", "1"))
# By node, and of damaged files: many where a call is short.
CALLS = {
    INVERT: 1100,
    SAVE: 900,
    LOAD: 900,
    EXTRACT: 800,
    BUILD: 1000,
    INJECTION: 700,
    SAMPLER: 900,
    APPLY: 1000,
    METRICS: 600,
    COMPARE: 900,
    CHECK: 250,
    TUNE: 150,
    FEATURES: 600,
    CORRESPONDENCES: 400,
    DEMO: 100,
}
FILES = 400
EVERY = 100  # calls after which a good one is made, which has to give the same bits as before
counted: Counter[str] = Counter()
passed: Counter[str] = Counter()


def fuzzed(calls: int) -> settings:
    return settings(
        max_examples=TIMES * calls, deadline=None, database=None, derandomize=TIMES == 1, suppress_health_check=list(HealthCheck)
    )


@cache
def inputs_of(node: str) -> list[Any]:
    return NODES[node].define_schema().inputs


@st.composite
def inputs(draw: Callable[[Any], Any], node: str) -> dict[str, Any]:
    """What is changed of a node's good call: up to three inputs."""
    changed = draw(st.lists(st.sampled_from(inputs_of(node)), min_size=0, max_size=3, unique_by=id))
    return {wanted.id: draw(values(wanted)) for wanted in changed}


def attempt(node: str, work: Callable[[], tuple[Any, ...]], sane: Callable[[tuple[Any, ...]], None]) -> None:
    """Makes one call."""
    counted[node] += 1
    refusal = None
    try:
        out = work()
    except NodeError as error:
        refusal = error
    if refusal is None:
        passed[node] += 1
        sane(out)
    else:
        assert refusal.node == node
        assert refusal.socket in {wanted.id for wanted in inputs_of(node)} | {"none"}
        told(refusal)
    if counted[node] % EVERY == 0:
        still_good(node)


@pytest.mark.parametrize("node", [node for node in NODES if node != DEMO])
def test_anything_is_edited_or_refused(node: str) -> None:
    @fuzzed(CALLS[node])
    @given(inputs(node))
    def fuzz(changes: dict[str, Any]) -> None:
        attempt(node, lambda: run(node, **changes), lambda out: SANE[node]({**GOOD[node](), **changes}, *out))

    still_good(node)
    with untouched(tiny_model()):
        fuzz()
        stock(tiny_model(), clip=(1, SIZE))  # what tuning put on weights the host takes off with its next load


# What a result has to be, from a call's inputs and its outputs


def finite(*numbers: torch.Tensor) -> None:
    for tensor in numbers:
        assert tensor.is_floating_point()
        assert torch.isfinite(tensor).all()


def pictures(images: torch.Tensor, count: int) -> None:
    finite(images)
    assert images.ndim == 4
    assert len(images) == count
    assert images.shape[-1] == 3
    assert images.numel()


def shown(total: int, most: int) -> int:
    return min(total, most or total)


def sane_path(given: dict[str, Any], inversion: Any, noisy: Any, sigmas: torch.Tensor) -> None:
    samples = given["latents"]["samples"] if given.get("latents") else inversion.latents[-1]
    assert inversion.latents.shape == (len(sigmas), *samples.shape)
    assert noisy["samples"].shape == samples.shape
    finite(inversion.latents, noisy["samples"], sigmas)
    if "steps" in given:
        assert len(sigmas) == 1 + max(1, round(given["steps"] * given.get("depth", 1.0)))


def sane_saved(given: dict[str, Any]) -> None:
    root = Path(folder_paths.get_output_directory()).resolve()
    newest = max(root.rglob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
    assert newest.resolve().is_relative_to(root)
    assert newest.stat().st_size > given["inversion"].latents.numel() * 4


def sane_features(given: dict[str, Any], features: Any, components: torch.Tensor) -> None:
    assert features.inversion is given["inversion"]
    pictures(components, features.inversion.frames)


def sane_matches(given: dict[str, Any], found: Any, rebuilt: torch.Tensor) -> None:
    frames = given["features"].inversion.frames
    assert len(found.steps) == len(given["features"].inversion.sigmas) - 1
    assert all(len(step.keyframes) == math.ceil(frames / given["keyframe_interval"]) for step in found.steps)
    pictures(rebuilt, frames)


def sane_edit(given: dict[str, Any], latent: dict[str, torch.Tensor]) -> None:
    finite(latent["samples"])
    assert latent["samples"].shape == given["correspondences"].features.inversion.latents.shape[1:]


def sane_patch(given: dict[str, Any], model: Any) -> None:
    assert model is not given["model"]
    assert model.model is given["model"].model


def sane_figures(given: dict[str, Any], text: str, plot: torch.Tensor, figures: str, table: torch.Tensor) -> None:
    assert len(json.loads(figures)["clips"]) == len(text.splitlines()) >= 2
    finite(plot, table)


def sane_grid(given: dict[str, Any], grid: torch.Tensor) -> None:
    pictures(grid, 1 if given.get("moments") else len(given["source"]))


def sane_check(given: dict[str, Any], back: torch.Tensor, beside: torch.Tensor, plot: torch.Tensor, text: str) -> None:
    count = shown(given["inversion"].frames, given["most_frames"])
    pictures(back, count)
    pictures(beside, count)
    assert "nan" not in text


def sane_tuning(given: dict[str, Any], model: Any, lora: dict[str, torch.Tensor], losses: dict[str, list[float]]) -> None:
    sane_patch(given, model)
    finite(*lora.values(), torch.tensor(losses["loss"]))
    assert len(losses["loss"]) == given["steps"]


def sane_view(given: dict[str, Any], *views: torch.Tensor) -> None:
    made = given["features"] if "features" in given else given["correspondences"].features
    for view in views[:3]:
        pictures(view, shown(made.inversion.frames, given.get("most_frames", 64)))


SANE: dict[str, Callable[..., None]] = {
    INVERT: sane_path,
    LOAD: sane_path,
    SAVE: sane_saved,
    EXTRACT: sane_features,
    BUILD: sane_matches,
    INJECTION: lambda given, injection: None,
    SAMPLER: sane_edit,
    APPLY: sane_patch,
    METRICS: sane_figures,
    COMPARE: sane_grid,
    CHECK: sane_check,
    TUNE: sane_tuning,
    FEATURES: sane_view,
    CORRESPONDENCES: sane_view,
}


# Files


@st.composite
def damaged(draw: Callable[[Any], Any]) -> bytes:
    """A stored inversion with a part of it cut out, doubled or replaced."""
    good = good_file()
    start = draw(st.one_of(st.integers(0, 2000), st.integers(0, len(good))))
    length = draw(st.one_of(st.integers(0, 8), st.integers(0, len(good))))
    part = draw(st.one_of(st.binary(max_size=12), st.sampled_from([b"-1", b"1e999", b"9" * 30, b'"F16"', b"\xff" * 8, b"{" * 50, b"NaN"])))
    return good[:start] + part + good[start + length :]


def test_damaged_files_are_refused_or_are_whole() -> None:
    path = Path(folder_paths.get_output_directory(), f"damaged{SUFFIX}")

    @fuzzed(FILES)
    @given(damaged())
    def fuzz(content: bytes) -> None:
        path.write_bytes(content)
        attempt(LOAD, lambda: run(LOAD, file=f"{path.name} [output]"), lambda out: sane_path({}, *out))

    fuzz()


def test_damaged_weights_of_the_embedded_model_are_refused() -> None:
    @fuzzed(CALLS[DEMO])
    @given(st.one_of(st.none(), st.binary(max_size=40), st.binary(max_size=9).map(lambda more: b"version https" + more)))
    def fuzz(content: bytes | None) -> None:
        attempt(DEMO, demo(content), lambda out: pytest.fail("nothing was damaged"))

    fuzz()


def test_ten_thousand_calls_were_made() -> None:
    if set(counted) != set(NODES):
        pytest.skip("some of the tests above did not run")
    print(f"{counted.total()} calls, {passed.total()} of them with a result:", dict(counted))  # python -m pytest -s shows it
    assert counted.total() >= TIMES * 10_000
    assert all(passed[node] >= 10 for node in NODES if node != DEMO), passed
    assert all(counted[node] - passed[node] >= 100 for node in NODES), counted - passed
