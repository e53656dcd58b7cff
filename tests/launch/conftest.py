"""A workflow of stock nodes, as the editor saves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def slot(name: str, type: str, link: int) -> dict[str, Any]:
    """An input slot with its link."""
    return {"name": name, "type": type, "link": link}


def workflow(color: int = 255) -> dict[str, Any]:
    """Two frames of one colour as a video, and a text beside it."""
    nodes = [
        {"id": 1, "type": "EmptyImage", "widgets_values": [64, 48, 2, color]},
        {
            "id": 2,
            "type": "CreateVideo",
            "widgets_values": [8],
            "inputs": [slot("images", "IMAGE", 1)],
        },
        {
            "id": 3,
            "type": "SaveVideo",
            "widgets_values": ["clips/two", "mp4", "h264"],
            "inputs": [slot("video", "VIDEO", 2)],
        },
        {"id": 4, "type": "PreviewImage", "inputs": [slot("images", "IMAGE", 3)]},
        {"id": 5, "type": "PrimitiveString", "widgets_values": ["two frames"], "title": "Words"},
        {
            "id": 6,
            "type": "PreviewAny",
            "widgets_values": ["seen last time"],
            "inputs": [slot("source", "STRING", 4)],
            "title": "Figures",
        },
    ]
    links = [
        [1, 1, 0, 2, 0, "IMAGE"],
        [2, 2, 0, 3, 0, "VIDEO"],
        [3, 1, 0, 4, 0, "IMAGE"],
        [4, 5, 0, 6, 0, "STRING"],
    ]
    return {"nodes": nodes, "links": links, "version": 0.4}


@pytest.fixture
def stock_workflow() -> Callable[..., dict[str, Any]]:
    """`stock_workflow(color) -> saved workflow`;
    another colour is another work for the server's cache.
    """
    return workflow
