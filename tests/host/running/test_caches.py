"""All of the host's ways to keep nodes' results: a graph of the pack gives the same in each, and
runs again what is asked for anew.
"""

from __future__ import annotations

from typing import Any

import execution
import pytest
import torch
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.sampling.sampler import Sampler
from torch import Tensor

import nodes

from ..helpers import NEGATIVE, POSITIVE, SOURCE, call, executor, tiny_model
from ..once import once_a_module
from ..tiny_models import moving_clip

CACHES = sorted(execution.CacheType.__members__)
OURS = {
    "invert": InvertVideo,
    "extract": ExtractFeatures,
    "build": BuildCorrespondences,
    "sample": Sampler,
}


class Clip:
    """A node that gives a model, a clip, and the prompts."""

    RETURN_TYPES = ("MODEL", "LATENT", "CONDITIONING", "CONDITIONING", "CONDITIONING")
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def give(self) -> tuple[Any, ...]:
        return tiny_model(), moving_clip(3, 8, 8), SOURCE, POSITIVE, NEGATIVE


class Keep:
    """An output node that keeps what it is given."""

    RETURN_TYPES = ()
    FUNCTION = "keep"
    OUTPUT_NODE = True
    kept: list[Tensor] = []

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latent": ("LATENT",)}}

    def keep(self, latent: dict[str, Tensor]) -> tuple[()]:
        self.kept.append(latent["samples"])
        return ()


def prompt(cfg: float) -> dict[str, Any]:
    """Inversion, features, matches and edit, all as the nodes have them."""
    inversion = {
        "model": ["clip", 0],
        "latents": ["clip", 1],
        "positive": ["clip", 2],
        "steps": 2,
        "check_reconstruction": False,
    }
    edit = {
        "model": ["clip", 0],
        "positive": ["clip", 3],
        "negative": ["clip", 4],
        "correspondences": ["build", 0],
        "cfg": cfg,
    }
    return {
        "clip": {"class_type": "Clip", "inputs": {}},
        "invert": {
            "class_type": "invert",
            "inputs": inversion | {"cfg": 1.0, "scheduler": "normal"},
        },
        "extract": {
            "class_type": "extract",
            "inputs": {"model": ["clip", 0], "inversion": ["invert", 0]},
        },
        "build": {
            "class_type": "build",
            "inputs": {"features": ["extract", 0], "backend": "torch"},
        },
        "sample": {"class_type": "sample", "inputs": edit},
        "keep": {"class_type": "Keep", "inputs": {"latent": ["sample", 0]}},
    }


def defaults(graph: dict[str, Any]) -> dict[str, Any]:
    """The graph with the other widgets' values, as the page sends them."""
    for node in graph.values():
        if node["class_type"] in OURS:
            for wanted in OURS[node["class_type"]].define_schema().inputs:
                if getattr(wanted, "default", None) is not None:
                    node["inputs"].setdefault(wanted.id, wanted.default)
    return graph


@pytest.mark.parametrize("kind", CACHES)
def test_a_graph_gives_the_same_whatever_the_host_keeps(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, node in {**OURS, "Clip": Clip, "Keep": Keep}.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)
    monkeypatch.setattr(Keep, "kept", [])
    ran: list[str] = []
    queue = executor(
        lambda event, data, sid: ran.append(data["node"]) if event == "executing" else None,
        "me",
        kind,
    )

    def run(cfg: float) -> set[str]:
        ran.clear()
        queue.execute(defaults(prompt(cfg)), "id", {"client_id": "me"}, ["keep"])
        assert queue.success, queue.status_messages
        return set(OURS) & set(ran)

    assert run(4.0) == set(OURS)
    assert run(5.0) == (set(OURS) if kind == "NONE" else {"sample"})
    # The others keep older results too.
    assert run(4.0) == {"CLASSIC": {"sample"}, "NONE": set(OURS)}.get(kind, set())
    first, other, *again = Keep.kept
    assert not torch.equal(first, other)
    assert all(torch.equal(first, one) for one in again)
    assert torch.equal(first, by_hand())


@once_a_module
def by_hand() -> Tensor:
    """The same edit by calling one node after the other."""
    model, clip, source, positive, negative = Clip().give()
    inversion = call(InvertVideo.execute, model, clip, source, steps=2, check_reconstruction=False)[
        0
    ]
    features = call(ExtractFeatures.execute, model, inversion)[0]
    correspondences = call(BuildCorrespondences.execute, features, backend="torch")[0]
    return call(Sampler.execute, model, positive, negative, correspondences, cfg=4.0)[0]["samples"]
