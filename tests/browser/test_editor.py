"""What users do in the editor, done with the mouse and the keyboard in the real page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from .conftest import ROOT, change_settings
from .editor import Editor

# Versions of the page
DROPS_TRANSLATIONS, KEEPS_TRANSLATIONS = (1, 32, 0), (1, 33, 14)
KNOWS_ALIASES = (1, 38, 14)
TEXT = "textarea.comfy-multiline-input, [data-testid=node-widget] textarea"
PICTURED = "TokenFlowBuildCorrespondences"
# What of a help page the panel cuts off, or shows only to those who scroll sideways.
TOO_WIDE = """() => {
    const panel = document.querySelector('.node-help-content')
    const right = panel.getBoundingClientRect().left + panel.clientWidth + 1
    return [...panel.querySelectorAll('*')]
        .filter((part) => part.getBoundingClientRect().right > right
            || (part.scrollWidth > part.clientWidth + 1
                && getComputedStyle(part).display !== 'inline'))
        .map((part) => `${part.tagName}: ${part.textContent.slice(0, 60)}`)
}"""


@pytest.fixture(scope="module")
def known(server: Any) -> dict[str, Any]:
    """Our nodes' definitions, as the server gives them to the page."""
    return {
        name: node
        for name, node in server.get("/object_info").items()
        if name.startswith("TokenFlow")
    }


@pytest.fixture
def empty(editor: Editor) -> Editor:
    """The page with an empty graph."""
    editor.clear()
    return editor


def test_the_search_finds_every_node(
    empty: Editor, known: dict[str, Any], picture: Callable[..., None]
) -> None:
    """By its name, and by other words where host (since 0.10) and page know them."""
    aliases = empty.version() >= KNOWS_ALIASES
    empty.open_search()
    for node in known.values():
        expect(empty.search(node["display_name"]).first).to_contain_text(node["display_name"])
        for words in node.get("search_aliases", []) if aliases else []:
            empty.search(words).filter(has_text=node["display_name"]).first.wait_for()
    expect(empty.search("tokenflow")).not_to_have_count(1)
    picture("search")
    empty.page.keyboard.press("Escape")


def test_nodes_are_dragged_in_connected_and_set(
    empty: Editor, picture: Callable[..., None]
) -> None:
    page = empty.page
    page.locator(".node-library-tab-button").click()
    library = page.locator(".comfy-vue-side-bar-container")
    library.get_by_text("TokenFlow", exact=True).click()
    library.get_by_text("DDIM Invert Video").drag_to(
        page.locator("#graph-canvas"), target_position={"x": 900, "y": 200}
    )
    page.wait_for_function("() => app.graph.nodes.length")
    page.locator(".node-library-tab-button").click()
    library.wait_for(state="detached")
    inversion = empty.node("TokenFlowInvertVideo")
    model = empty.add("Load Demo Model (TokenFlow)", 120, 200)
    prompt = empty.add("CLIP Text Encode (Prompt)", 440, 380)
    empty.connect(model, "MODEL", inversion, "model")
    empty.connect(model, "CLIP", prompt, "clip")
    empty.connect(prompt, "CONDITIONING", inversion, "positive")
    page.locator(TEXT).fill("a wood star on grass")
    empty.type(inversion, "steps", "12")
    empty.choose(inversion, "refinement", "fixed point")
    empty.click(inversion, "check_reconstruction")
    picture("connect")
    sent = empty.prompt()
    assert sent[str(prompt)]["inputs"] == {"text": "a wood star on grass", "clip": [str(model), 1]}
    given = sent[str(inversion)]["inputs"]
    assert (given["model"], given["positive"]) == ([str(model), 0], [str(prompt), 0])
    assert (given["steps"], given["refinement"], given["check_reconstruction"]) == (
        12,
        "fixed point",
        False,
    )


def test_a_new_seed_stays_as_it_is_and_a_saved_one_does_as_it_was_told(
    empty: Editor, known: dict[str, Any]
) -> None:
    page = empty.page
    controls = """() => app.graph.nodes.filter((node) => node.type.startsWith('TokenFlow'))
        .flatMap((node) => node.widgets ?? [])
        .filter((widget) => widget.name === 'control_after_generate')
        .map((widget) => widget.value)"""
    page.evaluate(
        "(names) => names.forEach((name) => app.graph.add(LiteGraph.createNode(name)))", list(known)
    )
    assert page.evaluate(controls) == ["fixed", "fixed", "increment"]
    saved = json.loads((ROOT / "workflows" / "sdedit.json").read_text())
    (sampler,) = (node for node in saved["nodes"] if node["type"] == "TokenFlowSampler")
    sampler["widgets_values"] = [
        "randomize" if value == "fixed" else value for value in sampler["widgets_values"]
    ]
    empty.load(saved)
    assert page.evaluate(controls) == ["randomize"]


def test_inputs_are_called_alike_on_new_and_on_saved_nodes(editor: Editor) -> None:
    labels = """() => app.graph.nodes.filter((node) => /Metrics|CompareClips/.test(node.type))
        .map((node) => node.inputs.slice(0, 3).map(
            (input) => input.label ?? input.localized_name ?? input.name))"""
    editor.load(json.loads((ROOT / "workflows" / "comparison.json").read_text()))
    saved = editor.page.evaluate(labels)
    editor.clear()
    for name in ("TokenFlowMetrics", "TokenFlowCompareClips"):
        editor.page.evaluate("(name) => { app.graph.add(LiteGraph.createNode(name)) }", name)
    assert saved + editor.page.evaluate(labels) == [["source", "edit_1", "edit_2"]] * 4


def test_a_node_that_has_nothing_more_to_say_shows_nothing_of_before(
    empty: Editor, known: dict[str, Any]
) -> None:
    shown = """([name, texts]) => {
        const node = LiteGraph.createNode(name)
        app.graph.add(node)
        return texts.map((text) => {
            node.onExecuted({ text })
            return node.widgets?.find((widget) => widget.name === 'report')?.value ?? null
        })
    }"""
    for name in known:
        assert empty.page.evaluate(shown, [name, [[""], ["a", "b"], [""]]]) == [None, "a\nb", ""]


def test_wires_go_only_where_they_fit(empty: Editor) -> None:
    features = empty.add("Extract SA Features", 200, 250)
    matches = empty.add("Build NN Correspondences", 600, 250)
    empty.connect(features, "components", matches, "features", tries=1)
    assert "features" not in empty.prompt()[str(matches)]["inputs"]
    empty.connect(features, "features", matches, "features")
    assert empty.prompt()[str(matches)]["inputs"]["features"] == [str(features), 0]


def test_templates_open_with_a_click(
    editor: Editor, server: Any, picture: Callable[..., None]
) -> None:
    page = editor.page
    (pack,) = (
        name
        for name, offered in server.get("/workflow_templates").items()
        if "quickstart" in offered
    )
    page.locator(".templates-tab-button").click()
    page.get_by_test_id("template-workflows-content").wait_for()
    page.get_by_text(pack, exact=True).click()
    quickstart = page.get_by_test_id("template-workflow-quickstart")
    quickstart.scroll_into_view_if_needed()
    page.wait_for_function(
        "(card) => card.querySelector('img')?.naturalWidth", arg=quickstart.element_handle()
    )
    picture("templates")
    quickstart.click()
    quickstart.wait_for(state="detached")
    page.wait_for_function("() => app.graph.nodes.length")
    saved = json.loads((ROOT / "workflows" / "quickstart.json").read_text())
    assert sorted(node["type"] for node in editor.nodes()) == sorted(
        node["type"] for node in saved["nodes"]
    )


def test_a_dropped_file_is_saved_and_opened_again_as_the_same_graph(
    editor: Editor, tmp_path: Path
) -> None:
    page, file = editor.page, tmp_path / "edit.json"
    editor.clear()
    editor.drop(ROOT / "workflows" / "sdedit.json")
    sampler = editor.node("TokenFlowSampler")
    editor.show(sampler)
    editor.type(sampler, "cfg", "6.5")
    editor.choose(sampler, "noise", "fresh")
    sent, kept = editor.prompt(), essence(editor.serialized())
    assert (sent[str(sampler)]["inputs"]["cfg"], sent[str(sampler)]["inputs"]["noise"]) == (
        6.5,
        "fresh",
    )
    page.locator(".comfy-menu-button-wrapper").click()
    page.locator(".p-tieredmenu-item").get_by_text("File", exact=True).hover()
    with page.expect_download() as download:
        page.locator(".p-tieredmenu-item").get_by_text("Export", exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    download.value.save_as(file)
    editor.open()
    editor.clear()
    editor.drop(file)
    assert editor.prompt() == sent
    assert essence(editor.serialized()) == kept


def essence(saved: dict[str, Any]) -> list[Any]:
    """What makes a saved graph: nodes with place, size, values, title and colour; groups; and what
    is connected to what.
    """
    parts = ("id", "type", "pos", "size", "mode", "title", "widgets_values", "color")
    return [
        [[node.get(part) for part in parts] for node in saved["nodes"]],
        saved["links"],
        saved["groups"],
    ]


def test_what_the_mouse_rests_on_is_explained(
    empty: Editor, known: dict[str, Any], picture: Callable[..., None]
) -> None:
    node, tooltip = empty.add("DDIM Invert Video", 500, 250), empty.tooltip()
    definition = known["TokenFlowInvertVideo"]
    given = definition["input"]["required"] | definition["input"]["optional"]
    for place, text in (
        (empty.slot(node, "inputs", "vae"), given["vae"][1]["tooltip"]),
        (empty.slot(node, "outputs", "inversion"), definition["output_tooltips"][0]),
        (empty.place(node, "steps"), given["steps"][1]["tooltip"]),
    ):
        empty.page.mouse.move(300, 600)
        tooltip.wait_for(state="hidden")
        empty.page.mouse.move(*place, steps=3)
        expect(tooltip).to_have_text(text)
    picture("tooltip")


def test_help_opens_beside_the_graph(
    empty: Editor, known: dict[str, Any], picture: Callable[..., None], with_pictures: bool
) -> None:
    """The page of every node with its pictures, from the button above the node."""
    page, panel = empty.page, empty.page.locator(".node-help-content")
    for number, name in enumerate(sorted(known, key=lambda name: name == PICTURED)):
        empty.clear()
        pos = [800 - 20 * (number % 2), 250]  # two clicks at one place would be a double click
        page.evaluate(
            "([name, pos]) => { "
            "app.graph.add(Object.assign(LiteGraph.createNode(name), { pos })) }",
            [name, pos],
        )
        empty.settle()
        empty.select(empty.node(name))
        page.get_by_test_id("info-button").click()
        expect(panel.get_by_role("heading", level=1)).to_have_text(known[name]["display_name"])
        page.wait_for_function(
            "() => [...document.querySelectorAll('.node-help-content img')]"
            ".every((image) => image.naturalWidth)"
        )
        assert (ROOT / "web" / "docs" / f"{name}.md").read_text().count("![") == panel.locator(
            "img"
        ).count()
        assert page.evaluate(TOO_WIDE) == [], name
    if with_pictures:
        edge = page.locator(".p-splitter-gutter:visible").first.bounding_box()
        assert edge
        page.mouse.move(edge["x"] + edge["width"] / 2, 600)
        page.mouse.down()
        page.mouse.move(620, 600, steps=3)
        page.mouse.up()
    picture("help")
    empty.open()


def test_nodes_speak_the_pages_language(editor: Editor, server: Any, known: dict[str, Any]) -> None:
    if DROPS_TRANSLATIONS <= editor.version() < KEEPS_TRANSLATIONS:
        pytest.skip(
            "this version of the page drops all packs' translations when it loads a language "
            "(ComfyUI_frontend, #7214)"
        )
    translated = json.loads((ROOT / "locales" / "fr" / "nodeDefs.json").read_text())
    change_settings(server, {"Comfy.Locale": "fr"})
    try:
        editor.open()
        editor.clear()
        for name in known:
            editor.page.evaluate("(name) => { app.graph.add(LiteGraph.createNode(name)) }", name)
        titles = {node["type"]: node["title"] for node in editor.nodes()}
    finally:
        change_settings(server, {"Comfy.Locale": "en"})
        editor.open()
    assert titles == {name: translated[name]["display_name"] for name in known}
