"""What falls off an input, or looks like a mistake that is none,
is said on the node and in the log.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from comfy_extras.nodes_rebatch import LatentRebatch
from tokenflow_pack.nodes.inversion import InvertVideo

import nodes

from ..helpers import SOURCE, executor
from ..small import tiny_model
from ..tiny_models import moving_clip
from .bad_input import COMPARE, CORRESPONDENCES, GOOD, INVERT, METRICS, NODES, TUNE, frames


def said(node: str, **changes: Any) -> str:
    """The text of a node's good call with some inputs changed."""
    with torch.inference_mode():
        shown = NODES[node].execute(**{**GOOD[node](), **changes}).ui
    shown = {} if shown is None else shown if isinstance(shown, dict) else shown.as_dict()
    return "\n".join(shown.get("text", ()))


@pytest.mark.parametrize("node", [COMPARE, METRICS])
def test_transparency_is_told(node: str, caplog: pytest.LogCaptureFixture) -> None:
    note = "edit_1: of 4 channels red, green and blue are used, transparency is not"
    assert "channels" not in said(node)
    assert note in said(node, edited=frames(channels=4))
    assert f"{node}, {note}." in caplog.messages


def test_pictures_of_a_node_stay_beside_a_note() -> None:
    good = GOOD[CORRESPONDENCES]()
    with torch.inference_mode():
        plain, noted = (
            NODES[CORRESPONDENCES].execute(**{**good, "frames": frames(channels=count)}).ui
            for count in (3, 4)
        )
    assert set(noted) == set(plain) > {"text", "images"}
    assert noted["text"][0].startswith(plain["text"][0] + "\n")


def test_a_noise_mask_is_told_where_it_counts_and_where_it_does_not() -> None:
    masked = {**moving_clip(2, 8, 8), "noise_mask": torch.ones(1, 1, 64, 64)}
    assert "noise mask is where the edit will be" in said(INVERT, latents=masked)
    assert "noise mask is not used" in said(TUNE, latents=masked)
    assert "mask" not in said(INVERT) + said(TUNE)


class Clip:
    """A node that gives a model, a clip and a prompt."""

    RETURN_TYPES = ("MODEL", "LATENT", "CONDITIONING")
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def give(self) -> tuple[Any, ...]:
        return tiny_model(), moving_clip(4, 8, 8), SOURCE


@pytest.mark.parametrize(("batch", "told"), [(1, 4), (4, 0)])
def test_a_list_of_frames_in_the_place_of_a_batch_is_told(
    batch: int, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the host, which runs a node once for each item.

    What makes a list of a batch makes a batch of the list.
    """
    for name, node in (("Clip", Clip), ("Rebatch", LatentRebatch), ("Invert", InvertVideo)):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)
    sent: list[Any] = []
    queue = executor(lambda event, data, sid: sent.append((event, data)), "me")
    inputs = {
        "model": ["clip", 0],
        "latents": ["whole", 0],
        "positive": ["clip", 2],
        "cfg": 1.0,
        "steps": 1,
        "scheduler": "normal",
    }
    prompt = {
        "clip": {"class_type": "Clip", "inputs": {}},
        "list": {"class_type": "Rebatch", "inputs": {"latents": ["clip", 1], "batch_size": 1}},
        "whole": {"class_type": "Rebatch", "inputs": {"latents": ["list", 0], "batch_size": batch}},
        "invert": {
            "class_type": "Invert",
            "inputs": {**inputs, "refinement": "none", "iterations": 0, "depth": 1.0},
        },
    }
    queue.execute(prompt, "id", {"client_id": "me"}, ["invert"])
    assert queue.success, queue.status_messages
    texts = [
        text
        for event, data in sent
        if event == "executed" and data["node"] == "invert"
        for text in data["output"]["text"]
    ]
    assert len(texts) == max(told, 1)
    assert sum("latents: one frame" in text and "Rebatch Latents" in text for text in texts) == told


def test_what_is_told_of_a_list_is_in_the_log_too(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert "latents: one frame" in said(INVERT, latents=moving_clip(1, 8, 8))
    assert any(
        message.startswith("DDIM Invert Video, latents: one frame") for message in caplog.messages
    )
