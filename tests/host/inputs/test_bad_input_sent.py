"""Bad input through a real server: the host's refusals, ours behind them,
and the next item of the queue runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .bad_input import APPLY, BUILD, INVERT


def link(node: str, output: int = 0) -> list[Any]:
    return [node, output]


def prompt(**changes: dict[str, Any]) -> dict[str, Any]:
    """The whole path on two grey frames and the embedded model.

    `changes` replaces inputs of nodes.
    """
    graph: dict[str, tuple[str, dict[str, Any]]] = {
        "demo": ("TokenFlowLoadDemoModel", {}),
        "source": ("CLIPTextEncode", {"clip": link("demo", 1), "text": "a red ball on grass"}),
        "target": ("CLIPTextEncode", {"clip": link("demo", 1), "text": "a gold ball on grass"}),
        "frames": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 2, "color": 0x808080}),
        "encoded": ("VAEEncode", {"pixels": link("frames"), "vae": link("demo", 2)}),
        "invert": (
            "TokenFlowInvertVideo",
            {
                "model": link("demo"),
                "latents": link("encoded"),
                "positive": link("source"),
                "cfg": 1.0,
                "steps": 2,
            }
            | {
                "scheduler": "normal",
                "refinement": "none",
                "iterations": 1,
                "depth": 1.0,
                "frames_per_pass": 0,
            },
        ),
        "extract": (
            "TokenFlowExtractFeatures",
            {
                "model": link("demo"),
                "inversion": link("invert"),
                "layers": "all",
                "steps": "every",
                "every": 1,
            }
            | {"noise_level": 0.2, "storage": "memory", "frames_per_pass": 0},
        ),
        "build": (
            "TokenFlowBuildCorrespondences",
            {
                "features": link("extract"),
                "keyframe_interval": 2,
                "keyframes": "fixed",
                "seed": 0,
                "backend": "torch",
                "search_window": 0,
            },
        ),
        "apply": (
            "TokenFlowApply",
            {
                "model": link("demo"),
                "correspondences": link("build"),
                "consistency": "tokenflow",
                "frames_per_pass": 0,
            },
        ),
        "sample": (
            "KSamplerAdvanced",
            {
                "model": link("apply"),
                "positive": link("target"),
                "negative": link("source"),
                "latent_image": link("invert", 1),
            }
            | {
                "add_noise": "disable",
                "noise_seed": 0,
                "steps": 2,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
            }
            | {"start_at_step": 0, "end_at_step": 2, "return_with_leftover_noise": "disable"},
        ),
        "save": ("SaveLatent", {"samples": link("sample"), "filename_prefix": "bad_input"}),
    }
    return {
        name: {"class_type": kind, "inputs": inputs | changes.get(name, {})}
        for name, (kind, inputs) in graph.items()
    }


def linked(kind: str, value: Any) -> dict[str, Any]:
    """A node whose output is a number: the host compares those with no range."""
    return {"number": {"class_type": f"Primitive{kind}", "inputs": {"value": value}}}


def test_errors_reach_the_user_and_the_next_item_runs(queue: Callable[..., Any]) -> None:
    """With our words first: the host puts an error's module before them if it has one."""
    from launch.comfyui.client import PromptError

    bad = [
        (
            prompt(sample={"latent_image": link("one")}) | one_frame(),
            "sample (KSamplerAdvanced)",
            f"{APPLY}, input 'latent_image': 1 frames here, 2 in",
        ),
        (
            prompt(invert={"depth": "nan"}),
            "invert (TokenFlowInvertVideo)",
            f"{INVERT}, input 'depth': nan. Give a number from 0.01 to 1.0.",
        ),
        (
            prompt(invert={"model": "sd15"}),
            "invert (TokenFlowInvertVideo)",
            f"{INVERT}, input 'model': 'sd15', which is no MODEL. Give a MODEL.",
        ),
        (
            prompt(build={"seed": link("number")}) | linked("Int", -1),
            "build (TokenFlowBuildCorrespondences)",
            f"{BUILD}, input 'seed': -1. Give a number from 0",
        ),
    ]
    for seed, (graph, node, text) in enumerate(bad):
        with pytest.raises(PromptError) as raised:
            queue(graph)
        assert str(raised.value).startswith(f"node {node}: NodeError: {text}")
        good = queue(prompt(sample={"noise_seed": seed}))
        assert good.outputs["save"]["latents"]
        assert "sample" not in good.cached


METRICS = {"source": link("frames"), "edited": link("frames"), "names": "", "prompt": ""}
MASKING = {
    "model": link("demo"),
    "inversion": link("invert"),
    "positive": link("target"),
    "frames": link("frames"),
}
CFG = {"cfg": 3.0}
RERENDER = {"consistency": "rerender"}
# Of a node that is added, its type and inputs; of one of `prompt` what changes.
KNOWN_BEFORE = [
    ("invert", CFG, f"{INVERT}, input 'negative': nothing connected with cfg 3.0."),
    ("invert", {"cfg": "nan"}, f"{INVERT}, input 'cfg': nan."),
    ("build", {"backend": "faiss", "search_window": 1}, f"{BUILD}, input 'search_window': FAISS"),
    ("build", {"backend": "annoy"}, f"{BUILD}, input 'backend': 'annoy', which is none"),
    ("apply", RERENDER, f"{APPLY}, input 'frames': nothing, and the mode rerender follows"),
    ("TokenFlowMetrics", METRICS | {"prompt": "gold"}, "input 'clip': nothing there."),
    ("TokenFlowMetrics", METRICS | {"flow": "gone.pth"}, "input 'flow': no file 'gone.pth'"),
    ("TokenFlowMetrics", METRICS | {"names": "a, a"}, "input 'names': a name twice"),
    ("TokenFlowCompareClips", METRICS | {"names": "a, a"}, "input 'names': a name twice"),
    ("TokenFlowFindEditMask", MASKING | {"sensitivity": "nan"}, "input 'sensitivity': nan."),
]
GOOD_BEFORE = [
    ("invert", CFG | {"negative": link("source")}),
    ("apply", RERENDER | {"frames": link("frames")}),
    ("invert", {"cfg": link("number")}),
]


@pytest.mark.parametrize(("node", "changes", "text"), KNOWN_BEFORE)
def test_what_can_be_known_is_refused_before_anything_runs(
    queue: Callable[..., Any], node: str, changes: dict[str, Any], text: str
) -> None:
    """In our words, which newer pages show of a refusal and not of an error."""
    from launch.comfyui.client import PromptError

    with pytest.raises(PromptError, match="the server refused the prompt") as raised:
        queue(graph_with(node, changes))
    assert text in str(raised.value)


def graph_with(node: str, changes: dict[str, Any]) -> dict[str, Any]:
    if node in prompt():
        return prompt(**{node: changes})
    shown = {"shown": {"class_type": "PreviewAny", "inputs": {"source": link("added")}}}
    return prompt() | {"added": {"class_type": node, "inputs": changes}} | shown


@pytest.mark.parametrize(("node", "changes"), GOOD_BEFORE)
def test_what_is_connected_is_not_missing(
    queue: Callable[..., Any], node: str, changes: dict[str, Any]
) -> None:
    """The host shows nothing of what is linked, as of what is not there."""
    queue(prompt(**{node: changes}) | linked("Float", 1.0))


def one_frame() -> dict[str, Any]:
    """The first of the frames alone."""
    return {
        "one": {
            "class_type": "LatentFromBatch",
            "inputs": {"samples": link("encoded"), "batch_index": 0, "length": 1},
        }
    }


@pytest.mark.parametrize(
    ("node", "changes", "message"),
    [
        ("invert", {"steps": 10_000}, "bigger than max of 1000"),
        ("invert", {"steps": 0}, "smaller than min of 1"),
        # Older hosts leave choices of V3 nodes to us.
        ("invert", {"scheduler": "unknown"}, "not in list|which is none of its"),
        ("invert", {"cfg": "seven"}, "could not convert|Failed to convert"),
        ("build", {"seed": -1}, "smaller than min of 0"),
        ("build", {"seed": 2**64}, "bigger than max"),
        ("build", {"keyframe_interval": 5000}, "bigger than max of 4096"),
        ("extract", {"inversion": link("source")}, "type mismatch"),
        ("apply", {"consistency": ["tokenflow"]}, "Bad linked input"),
    ],
)
def test_what_no_prompt_may_say_is_refused_by_the_host(
    queue: Callable[..., Any], node: str, changes: dict[str, Any], message: str
) -> None:
    from launch.comfyui.client import PromptError

    with pytest.raises(PromptError, match=message):
        queue(prompt(**{node: changes}))
