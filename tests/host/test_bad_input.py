"""What users connect by mistake ends in an error that names the node, the input, what was found and what to do; the next run works."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from comfy.controlnet import ControlBase
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from comfy_extras.nodes_tomesd import TomePatchModel
from tokenflow_pack.host.errors import NodeError
from tokenflow_pack.nodes import correspondences as correspondences_node
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.metrics import Metrics
from torch import Tensor, nn

import nodes

from .helpers import (
    FRAMES,
    NEGATIVE,
    POSITIVE,
    SIZE,
    SOURCE,
    STEPS,
    applied,
    call,
    edit,
    extracted,
    injection,
    invert,
    inverted,
    tiny_model,
    untouched,
)
from .tiny_models import moving_clip

SMALL = 2, (8, 8)
INVERT, EXTRACT, BUILD = "DDIM Invert Video", "Extract SA Features", "Build NN Correspondences"
SAMPLER, APPLY, METRICS = "TokenFlow Sampler", "Apply TokenFlow", "Video Consistency Metrics"


def refused(run: Callable[[], Any], node: str, socket: str, found: str, remedy: str) -> None:
    """`found` and `remedy` are patterns of what the error says."""
    with pytest.raises(NodeError) as raised:
        run()
    error = raised.value
    assert (error.node, error.socket) == (node, socket)
    assert re.search(found, error.found)
    assert re.search(remedy, error.remedy)
    assert str(error) == f"{node}, input '{socket}': {error.found} {error.remedy}"


def from_latents(samples: Tensor, model: Any = None) -> Tensor:
    """KSampler (Advanced) on a model of Apply TokenFlow."""
    arguments = "disable", 0, STEPS, 4.0, "euler", "normal", POSITIVE, NEGATIVE, {"samples": samples}, 0, STEPS, "disable"
    return call(nodes.KSamplerAdvanced().sample, model or applied(), *arguments)[0]["samples"]


def with_nan() -> Tensor:
    samples = torch.zeros(3, 4, 8, 8)
    samples[1, 2, 3, 4] = torch.nan
    return samples


@pytest.mark.parametrize(
    ("samples", "found", "remedy"),
    [
        (torch.zeros(1, 4, 5, 8, 8), r"\(1, 4, 5, 8, 8\), .* video model", r"\(N, C, h, w\)"),
        (torch.zeros(0, 4, 8, 8), "empty batch", "at least one frame"),
        (torch.zeros(3, 16, 8, 8), "16 channels, the model takes 4", "VAE"),
        (with_nan(), r"frames \[1\]", "fp32-vae"),
    ],
    ids=["video latents", "empty batch", "wrong channels", "NaN"],
)
def test_inversion_of_latents_that_are_no_frames(samples: Tensor, found: str, remedy: str) -> None:
    refused(lambda: invert(tiny_model(), {"samples": samples}), INVERT, "latents", found, remedy)


def test_guided_inversion_without_a_negative_prompt() -> None:
    refused(lambda: invert(tiny_model(), moving_clip(2, 8, 8), cfg=3.0), INVERT, "negative", "nothing connected with cfg 3.0", "cfg to 1")


def test_schedules_that_repeat_noise_levels() -> None:
    """A distilled model has fifty of them."""
    distilled = ModelSamplingDiscrete().patch(tiny_model(), "lcm", False)[0]
    run = partial(invert, distilled, moving_clip(2, 8, 8), steps=100, scheduler="simple")
    refused(run, INVERT, "steps", "'simple' .* at 100 steps", "'normal'")


def test_models_that_return_nan() -> None:
    broken = tiny_model().clone()
    broken.set_model_unet_function_wrapper(lambda apply_model, args: torch.full_like(args["input"], torch.nan))
    refused(lambda: invert(broken, moving_clip(2, 8, 8)), INVERT, "model", "NaN", "precision")


def no_unet() -> Any:
    """A model that has no UNet, such as a diffusion transformer."""
    model = nn.Module()
    model.diffusion_model = nn.Sequential(nn.Linear(4, 4))
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("run", "node"),
    [
        (lambda model: invert(model, moving_clip(2, 8, 8)), INVERT),
        (lambda model: call(ExtractFeatures.execute, model, inverted(*SMALL)[0]), EXTRACT),
        (applied, APPLY),
        (edit, SAMPLER),
    ],
    ids=[INVERT, EXTRACT, APPLY, SAMPLER],
)
def test_models_that_do_not_fit(run: Callable[[Any], Any], node: str) -> None:
    refused(lambda: run(no_unet()), node, "model", "no self-attention layers", "SD 1.x, SD 2.x or SDXL")
    flow = ModelSamplingSD3().patch(tiny_model(), 3.0)[0]
    refused(lambda: run(flow), node, "model", "flow model", "SD 1.x, SD 2.x or SDXL")
    if node != INVERT:
        refused(lambda: run(tiny_model(9)), node, "model", "not the one the source was inverted with", "same checkpoint")


@pytest.mark.parametrize(
    ("shape", "found", "remedy"),
    [
        ((FRAMES - 1, 4, *SIZE), "4 frames here, 5 in the inversion", "one batch"),
        ((FRAMES, 4, 16, 16), "16 x 16 here, 16 x 8 in the inversion", "same resolution"),
        ((1, 4, FRAMES, *SIZE), "1 frames here, 5 in the inversion", "one batch"),
        ((FRAMES, 16, *SIZE), r"\(5, 16, 8, 16\) here, \(5, 4, 8, 16\)", "VAE"),
    ],
    ids=["frames", "resolution", "video latents", "channels"],
)
def test_sampling_other_latents_than_the_inverted(shape: tuple[int, ...], found: str, remedy: str) -> None:
    with untouched(tiny_model()):
        refused(lambda: from_latents(torch.ones(shape)), APPLY, "latent_image", found, remedy)
    _, noisy, _ = inverted()
    assert torch.equal(from_latents(noisy["samples"]), edit())


def test_merged_tokens() -> None:
    """ToMe changes the number of tokens, which nothing matches then."""
    merged = call(TomePatchModel.execute, tiny_model(), 0.5)[0]
    with untouched(tiny_model()):
        refused(lambda: edit(merged), SAMPLER, "model", "tokens here and", "ToMe")


class IdleControl(ControlBase):
    """A ControlNet that does nothing."""

    def get_control(self, *_: Any) -> None:
        return None


def test_injection_where_features_of_a_controlled_source_are_not_kept() -> None:
    controlled = [[SOURCE[0][0], {"control": IdleControl()}]]
    inversion = invert(tiny_model(), moving_clip(2, 8, 8), positive=controlled)[0]

    def injected(storage: str) -> Tensor:
        features = call(ExtractFeatures.execute, tiny_model(), inversion, layers="all", steps="every", storage=storage)[0]
        correspondences = call(BuildCorrespondences.execute, features, keyframe_interval=2, backend="torch")[0]
        return edit(correspondences=correspondences, injection=injection())

    assert torch.isfinite(injected("memory")).all()
    refused(partial(injected, "recompute"), SAMPLER, "correspondences", "ControlNet", "memory or disk")


def test_preview_frames_of_another_count() -> None:
    run = partial(call, BuildCorrespondences.execute, extracted(*SMALL), backend="torch", frames=torch.zeros(3, 64, 64, 3))
    refused(run, BUILD, "frames", "3 images for 2", "that were encoded")


def test_searches_that_are_not_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    build = BuildCorrespondences.execute
    pytest.importorskip("faiss")
    refused(lambda: call(build, extracted(*SMALL), backend="faiss", search_window=2), BUILD, "search_window", "FAISS", "Change it")
    monkeypatch.setattr(correspondences_node, "load_faiss", lambda: None)
    refused(lambda: call(build, extracted(*SMALL), backend="faiss"), BUILD, "backend", "not installed", "faiss-cpu")


def test_clips_that_cannot_be_compared() -> None:
    clip = torch.rand(3, 16, 16, 3)
    refused(lambda: call(Metrics.execute, clip[:1], clip[:1]), METRICS, "source", "1 frame", "at least two frames")
    refused(lambda: call(Metrics.execute, clip, clip[:2]), METRICS, "edited", r"\(2, 16, 16\)", "equal length and size")


# Through the server


def link(node: str, output: int = 0) -> list[Any]:
    return [node, output]


def prompt(**changes: dict[str, Any]) -> dict[str, Any]:
    """The whole path on two grey frames and the embedded model; `changes` replaces inputs of nodes."""
    graph: dict[str, tuple[str, dict[str, Any]]] = {
        "demo": ("TokenFlowLoadDemoModel", {}),
        "source": ("CLIPTextEncode", {"clip": link("demo", 1), "text": "a red ball on grass"}),
        "target": ("CLIPTextEncode", {"clip": link("demo", 1), "text": "a gold ball on grass"}),
        "frames": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 2, "color": 0x808080}),
        "encoded": ("VAEEncode", {"pixels": link("frames"), "vae": link("demo", 2)}),
        "invert": (
            "TokenFlowInvertVideo",
            {"model": link("demo"), "latents": link("encoded"), "positive": link("source"), "cfg": 1.0, "steps": 2}
            | {"scheduler": "normal", "refinement": "none", "iterations": 1, "depth": 1.0, "frames_per_pass": 0},
        ),
        "extract": (
            "TokenFlowExtractFeatures",
            {"model": link("demo"), "inversion": link("invert"), "layers": "all", "steps": "every", "every": 1}
            | {"noise_level": 0.2, "storage": "memory", "frames_per_pass": 0},
        ),
        "build": (
            "TokenFlowBuildCorrespondences",
            {"features": link("extract"), "keyframe_interval": 2, "keyframes": "fixed", "seed": 0, "backend": "torch", "search_window": 0},
        ),
        "apply": (
            "TokenFlowApply",
            {"model": link("demo"), "correspondences": link("build"), "consistency": "tokenflow", "frames_per_pass": 0},
        ),
        "sample": (
            "KSamplerAdvanced",
            {"model": link("apply"), "positive": link("target"), "negative": link("source"), "latent_image": link("invert", 1)}
            | {"add_noise": "disable", "noise_seed": 0, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
            | {"start_at_step": 0, "end_at_step": 2, "return_with_leftover_noise": "disable"},
        ),
        "save": ("SaveLatent", {"samples": link("sample"), "filename_prefix": "bad_input"}),
    }
    return {name: {"class_type": kind, "inputs": inputs | changes.get(name, {})} for name, (kind, inputs) in graph.items()}


def test_errors_reach_the_user_and_the_next_item_runs(queue: Callable[..., Any]) -> None:
    from launch.client import PromptError

    bad = [
        (prompt(invert={"cfg": 3.0}), "node invert ", f"{INVERT}, input 'negative': nothing connected with cfg 3.0. Set cfg to 1"),
        (prompt(sample={"latent_image": link("one")}) | one_frame(), "node sample ", f"{APPLY}, input 'latent_image': 1 frames here, 2 in"),
        (prompt(build={"backend": "faiss", "search_window": 1}), "node build ", f"{BUILD}, input 'search_window': FAISS searches"),
    ]
    for seed, (graph, node, text) in enumerate(bad):
        with pytest.raises(PromptError) as raised:
            queue(graph)
        assert str(raised.value).startswith(node)
        assert text in str(raised.value)
        good = queue(prompt(sample={"noise_seed": seed}))
        assert good.outputs["save"]["latents"]
        assert "sample" not in good.cached


def one_frame() -> dict[str, Any]:
    """The first of the frames alone."""
    return {"one": {"class_type": "LatentFromBatch", "inputs": {"samples": link("encoded"), "batch_index": 0, "length": 1}}}
