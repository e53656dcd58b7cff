"""Models unloaded, offloaded, partially loaded, or patched by others between any two nodes and in
the middle of sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from comfy import model_management
from tokenflow_pack.host.validation.fingerprint import model_fingerprint

import nodes

from ..helpers import relative_error, watched, with_lora
from .tools.graph import Ready, edit, nothing, plain
from .tools.harness import Bench
from .tools.plain import SETTINGS, conditionings, latents, model

CPU = torch.device("cpu")


def partially_unload() -> None:
    for loaded in model_management.current_loaded_models:
        if loaded.model is not None:  # nobody has it any more
            loaded.model.partially_unload(CPU, 10**9)


def sample_with_lora() -> None:
    """Elsewhere in the graph, on a clone."""
    _, positive, negative = conditionings()
    nodes.KSampler().sample(
        with_lora(model(), 0.5),
        positive=positive,
        negative=negative,
        latent_image=latents(),
        **SETTINGS,
    )


ACTIONS: dict[str, Callable[[], Any]] = {
    "unloaded": model_management.unload_all_models,
    "freed": lambda: model_management.free_memory(1e30, CPU),
    "offloaded": partially_unload,
    "patched by another": sample_with_lora,
}


@contextmanager
def kept() -> Iterator[None]:
    """The model's weights are the same bits afterwards,
    and its fingerprint is that of the same checkpoint.
    """
    fingerprint, weights = (
        model_fingerprint(model()),
        {name: weight.clone() for name, weight in model().model.state_dict().items()},
    )
    yield
    model_management.unload_all_models()
    after = model().model.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    assert model_fingerprint(model()) == fingerprint


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("action", ACTIONS)
def test_what_happens_to_a_model_between_nodes_changes_nothing(
    bench: Bench, action: str, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(nothing())
    with kept():
        monkeypatch.setattr(Ready, "model", with_lora(model(), 1.0) if lora else None)
        unpatched = bench.latents(plain())
        assert unpatched.equal(bench.reference) != lora
        wanted = bench.latents(edit())
        bench.latents(plain())
        happened: list[str] = []

        def before_node(node: str) -> None:
            ACTIONS[action]()
            happened.append(node)

        monkeypatch.setattr(bench, "before_node", before_node)
        found = bench.latents(edit())
        assert {"invert", "save", "extract", "build", "sample"} <= set(happened)
        assert torch.equal(found, wanted)
        monkeypatch.undo()
        assert torch.equal(bench.latents(plain()), bench.reference)
        bench.clear_output()


@pytest.mark.parametrize("action", ["unloaded", "freed", "offloaded"])
def test_a_model_that_is_unloaded_while_it_samples_gives_the_same(
    bench: Bench, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def see(_: Any) -> None:
        calls.append(1)
        if len(calls) % 3 == 0:
            ACTIONS[action]()

    bench.run(nothing())
    with kept():
        wanted = bench.latents(edit())
        bench.latents(plain())
        monkeypatch.setattr(Ready, "model", watched(model(), see))
        assert torch.equal(bench.latents(edit()), wanted)
        assert len(calls) > 6
        monkeypatch.undo()
        assert torch.equal(bench.latents(plain()), bench.reference)
        bench.clear_output()


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_whose_weights_are_fetched_as_they_are_used_gives_the_same(
    bench: Bench, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded as where there is no memory for it: on a CPU the host would not do so by itself."""
    loaded, load = model_management.LoadedModel, model_management.LoadedModel.model_use_more_vram
    partly: list[bool] = []
    bench.run(nothing())
    with kept():
        patcher = with_lora(model(), 1.0) if lora else model()
        monkeypatch.setattr(
            Ready, "model", watched(patcher, lambda _: partly.append(model().model.model_lowvram))
        )
        wanted = bench.latents(edit())
        bench.latents(plain())
        assert not any(partly)
        partly.clear()
        model_management.unload_all_models()
        monkeypatch.setattr(
            loaded,
            "model_use_more_vram",
            lambda self, _, force_patch_weights=False: load(self, 1, force_patch_weights),
        )
        assert relative_error(bench.latents(edit()), wanted) < 1e-5
        assert partly
        assert all(partly)
        monkeypatch.undo()
        model_management.unload_all_models()
        assert torch.equal(bench.latents(plain()), bench.reference)
        bench.clear_output()
