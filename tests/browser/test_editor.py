"""What users do in the editor, done with the mouse and the keyboard in the real page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from .conftest import ROOT, change_settings
from .editor import Editor

LANGUAGES = "zh", "ja", "fr"


@pytest.fixture(scope="module")
def known(server: Any) -> dict[str, Any]:
    """Our nodes' definitions, as the server gives them to the page."""
    return {name: node for name, node in server.get("/object_info").items() if name.startswith("TokenFlow")}


@pytest.fixture
def empty(editor: Editor) -> Editor:
    """The page with an empty graph."""
    editor.clear()
    return editor


def test_the_search_finds_every_node(empty: Editor, known: dict[str, Any], picture: Callable[..., None]) -> None:
    """By its name, and by other words where the host hands them to the page (since 0.10)."""
    for node in known.values():
        for words in (node["display_name"], *node.get("search_aliases", [])[:1]):
            expect(empty.search(words).first).to_contain_text(node["display_name"])
            empty.leave_search()
    empty.search("tokenflow")
    picture("search")
    empty.leave_search()


def test_nodes_are_dragged_in_connected_and_set(empty: Editor, picture: Callable[..., None]) -> None:
    page = empty.page
    page.keyboard.press("n")  # the library of nodes
    library = page.locator(".comfy-vue-side-bar-container")
    library.get_by_text("TokenFlow", exact=True).click()
    library.get_by_text("DDIM Invert Video").drag_to(page.locator("#graph-canvas"), target_position={"x": 900, "y": 200})
    page.keyboard.press("n")
    library.wait_for(state="detached")
    inversion = empty.node("TokenFlowInvertVideo")
    model = empty.add("Load Demo Model (TokenFlow)", 120, 200)
    prompt = empty.add("CLIP Text Encode (Prompt)", 470, 200)
    empty.connect(model, "MODEL", inversion, "model")
    empty.connect(model, "CLIP", prompt, "clip")
    empty.connect(prompt, "CONDITIONING", inversion, "positive")
    page.locator("textarea.comfy-multiline-input").fill("a wood star on grass")
    empty.type(inversion, "steps", "12")
    empty.choose(inversion, "refinement", "fixed point")
    empty.click(inversion, "check_reconstruction")
    picture("connect")
    sent = empty.prompt()
    assert sent[str(prompt)]["inputs"] == {"text": "a wood star on grass", "clip": [str(model), 1]}
    given = sent[str(inversion)]["inputs"]
    assert (given["model"], given["positive"]) == ([str(model), 0], [str(prompt), 0])
    assert (given["steps"], given["refinement"], given["check_reconstruction"]) == (12, "fixed point", False)


def test_wires_go_only_where_they_fit(empty: Editor) -> None:
    features = empty.add("Extract SA Features", 200, 250)
    matches = empty.add("Build NN Correspondences", 600, 250)
    empty.connect(features, "components", matches, "features")
    assert "features" not in empty.prompt()[str(matches)]["inputs"]
    empty.connect(features, "features", matches, "features")
    assert empty.prompt()[str(matches)]["inputs"]["features"] == [str(features), 0]
