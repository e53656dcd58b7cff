"""The pack as a guest: the user's model stays as it was, runs can be stopped at any call, and
clones do not interfere.
"""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.samplers
import comfy.utils
import comfyui_version
import pytest
import torch
from comfy import model_management
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from tokenflow_pack.host.editing.edit_run import EditRun
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures

import nodes

from ..helpers import (
    built,
    call,
    injection,
    interrupted,
    invert,
    relative_error,
    untouched,
    watched,
    with_lora,
)
from ..small import applied, edit, extracted, inverted, matched, stock, tiny_model
from ..tiny_models import moving_clip

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ["host", "modes", "nodes", "reporting", "tokenflow_ops"]
PASS = "tokenflow_pass"
SMALL = 2, (8, 8)


def sources() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).glob("**/*.py"))]


# The user's model


def whole_path(model: Any) -> None:
    """All nodes of the main path."""
    inversion = invert(model, moving_clip(2, 8, 8))[0]
    features = call(
        ExtractFeatures.execute, model, inversion, layers="all", steps="every", storage="recompute"
    )[0]
    correspondences = built(features)
    edit(model, correspondences=correspondences, injection=injection())


def test_the_model_stays_as_it_was() -> None:
    model = tiny_model().clone()
    model.model_options["transformer_options"]["mine"] = {"kept": True}
    wanted = stock(model)
    with untouched(model):
        whole_path(model)
        applied(model)
    assert torch.equal(stock(model), wanted)


class Broken(RuntimeError):
    """What a UNet raises in these tests."""


@pytest.mark.parametrize("kind", ["CapturePass", "KeyframePass", "PropagationPass"])
def test_an_error_in_the_middle_of_a_run_leaves_the_model_clean(kind: str) -> None:
    def breaks(args: dict[str, Any]) -> None:
        if type(args["c"]["transformer_options"][PASS]).__name__ == kind:
            raise Broken(kind)

    correspondences = matched(*SMALL, "recompute")
    with untouched(tiny_model()), pytest.raises(Broken, match=kind):
        edit(watched(tiny_model(), breaks), correspondences=correspondences, injection=injection())
    assert torch.equal(edit(), edit())


def test_an_error_inside_a_self_attention_layer_leaves_the_model_clean() -> None:
    module = tiny_model().model.diffusion_model.middle_block[1].transformer_blocks[0].attn1

    def breaks(*_: Any) -> None:
        raise Broken

    with untouched(tiny_model()):
        hook = module.to_q.register_forward_pre_hook(breaks)
        try:
            with pytest.raises(Broken):
                edit()
        finally:
            hook.remove()


def test_two_edits_take_turns() -> None:
    """Two clones of one model with different patches."""
    one, other = applied(), applied(correspondences=matched(interval=4), injection=injection())
    first, second = stock(one), stock(other)
    assert relative_error(first, second) > 0.001
    assert torch.equal(stock(one), first)
    assert torch.equal(stock(other), second)


def test_the_last_apply_holds() -> None:
    twice = applied(applied(injection=injection()))
    assert torch.equal(stock(twice), stock(applied()))
    assert len(twice.get_wrappers(WrappersMP.CALC_COND_BATCH, "tokenflow")) == 1


def test_a_run_is_forgotten_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    begin = EditRun.begin

    def born(self: EditRun, *args: Any) -> None:
        runs.append(weakref.ref(self))
        begin(self, *args)

    monkeypatch.setattr(EditRun, "begin", born)
    model = applied()
    stock(model)
    gc.collect()
    assert [run() for run in runs] == [None]
    assert "tokenflow" not in model.model_options["transformer_options"]


def test_clones_share_all_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """`clone()` copies deeply what it finds in the options."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a tensor is copied")

    model = applied(injection=injection())
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", refuse)
    again = model.clone().clone()
    assert torch.equal(stock(again), stock(model))


# Stopping


def stages(model: Any) -> dict[str, Callable[[], Any]]:
    return {
        "invert": lambda: invert(model, moving_clip(2, 8, 8)),
        "extract": lambda: call(ExtractFeatures.execute, model, inverted(*SMALL)[0], steps="every"),
        "sample": lambda: edit(model, correspondences=matched(*SMALL), frames_per_pass=1),
    }


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("stage", ["invert", "extract", "sample"])
def test_an_interrupt_stops_within_one_call_of_the_model(stage: str, calls: int) -> None:
    made: list[int] = []

    def stop(_: Any) -> None:
        made.append(1)
        if len(made) == calls:
            model_management.interrupt_current_processing(True)

    wanted = stock(tiny_model())
    with untouched(tiny_model()), interrupted():
        stages(watched(tiny_model(), stop))[stage]()
    assert len(made) == calls
    assert torch.equal(stock(tiny_model()), wanted)


def test_an_interrupt_stops_the_search_for_matches() -> None:
    features = extracted(*SMALL)
    with interrupted():
        model_management.interrupt_current_processing(True)
        call(BuildCorrespondences.execute, features, backend="torch")


@pytest.mark.parametrize("stage", ["invert", "extract", "sample", "build"])
def test_progress_is_shown(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int]] = []
    model = tiny_model()
    wanted = stages(model) | {
        "build": lambda: call(BuildCorrespondences.execute, extracted(*SMALL), backend="torch")
    }
    extracted(*SMALL)
    matched(*SMALL)
    monkeypatch.setattr(
        comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda value, total, *_, **__: shown.append((value, total)),
    )
    wanted[stage]()
    assert len(shown) >= 2  # newer hosts leave out what comes too often
    assert shown[-1][0] == shown[-1][1]


# Clips and models of every kind


@pytest.mark.parametrize(("frames", "size"), [(1, (8, 8)), (2, (16, 8)), (7, (8, 8)), (3, (9, 11))])
def test_any_number_of_frames_and_any_size(frames: int, size: tuple[int, int]) -> None:
    found = edit(correspondences=matched(frames, size, interval=3), injection=injection())
    assert found.shape == (frames, 4, *size)
    assert torch.isfinite(found).all()


def test_a_lora_on_top_is_accepted_and_takes_part() -> None:
    """Above Apply TokenFlow and below it; the keyframes' attention goes through it."""
    found = edit(with_lora(tiny_model(), 0.5))
    assert relative_error(found, edit()) > 0.001
    assert torch.equal(stock(with_lora(applied(), 0.5)), found)
    assert torch.equal(stock(applied(with_lora(tiny_model(), 0.5))), found)
    assert torch.equal(edit(), edit(with_lora(tiny_model(), 0.0)))


@pytest.mark.parametrize("sampling", ["lcm", "v_prediction"])
def test_another_noise_schedule_or_prediction_is_another_model(sampling: str) -> None:
    other = ModelSamplingDiscrete().patch(tiny_model(), sampling, False)[0]
    with pytest.raises(NodeError, match=r"Apply TokenFlow, input 'model': .* inverted"):
        applied(other)


def test_the_same_noise_schedule_patched_on_is_the_same_model() -> None:
    same = ModelSamplingDiscrete().patch(tiny_model(), "eps", False)[0]
    assert torch.equal(edit(same), edit())


# The code


def test_devices_and_caches_are_the_hosts_affair() -> None:
    for file in sources():
        text = file.read_text()
        for word in (".cuda(", "empty_cache", '"cuda"', "'cuda'"):
            assert word not in text, f"{file.name}: {word}"


@contextmanager
def loaded(folder: Path) -> Iterator[Any]:
    """The pack as ComfyUI imports it: by path, under a module name made of the folder's.

    Forgotten afterwards.
    """
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        for known in [
            known for known in sys.modules if known == name or known.startswith(f"{name}.")
        ]:
            del sys.modules[known]


def test_the_pack_loads_under_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "some-other name"
    folder.symlink_to(ROOT, target_is_directory=True)
    with loaded(folder) as module:
        assert module.TokenFlowExtension.__module__ == f"{module.__name__}.nodes"
    assert Path(nodes.__file__).parent != ROOT / "nodes"  # the name is the host's


def test_an_older_host_is_refused_when_the_pack_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(comfy.samplers, "process_conds")
    monkeypatch.setattr(comfyui_version, "__version__", "0.3.10")
    with (
        pytest.raises(
            ImportError, match=r"TokenFlow needs ComfyUI 0\.3\.75 or newer, and this is 0\.3\.10"
        ),
        loaded(ROOT),
    ):
        pass


def test_what_only_some_use_is_not_imported_with_the_method() -> None:
    some = "{'cv2', 'diffusers', 'faiss', 'kornia', 'matplotlib'}"
    code = f"import sys, tokenflow_ops; assert not {some} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
