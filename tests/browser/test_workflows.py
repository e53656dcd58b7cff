"""Every workflow that the pack offers, in the page: what it sends to the server, whether the server
takes it, how it lies there.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from launch.comfyui.workflow import to_prompt

from .editor import Editor

BLUEPRINTS = sorted((Path(__file__).resolve().parents[2] / "subgraphs").glob("*.json"))
FILES = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
APP = Path(__file__).resolve().parents[2] / "workflows" / "quickstart.app.json"
KNOWS_APPS = (1, 41, 0)  # the version of the page
RUN = 240_000  # milliseconds
WEIGHTS = ".ckpt", ".pt", ".pth", ".safetensors"
# Nodes on which pictures appear, and how high these make them at least beyond their widgets.
PICTURED = [
    "TokenFlowInvertVideo",
    "TokenFlowExtractFeatures",
    "TokenFlowSampler",
    "PreviewImage",
    "SaveImage",
    "MaskPreview",
]
PICTURED += [
    "TokenFlowPickKeyframes",
    "TokenFlowCheckReconstruction",
    "TokenFlowFindEditMask",
    "TokenFlowPreviewFeatures",
    "TokenFlowPreviewCorrespondences",
]
PICTURE = 212
# Nodes that say something, and how high a text of most lines is.
SAYING = [
    "TokenFlowInvertVideo",
    "TokenFlowBuildCorrespondences",
    "TokenFlowSaveInversion",
    "TokenFlowLoadInversion",
]
SAYING += [
    "TokenFlowCheckReconstruction",
    "TokenFlowFindEditMask",
    "TokenFlowPreviewFeatures",
    "TokenFlowPreviewCorrespondences",
]
SAYING += ["TokenFlowMetrics", "TokenFlowTuneAVideo"]
SAYING += ["TokenFlowPickKeyframes", "TokenFlowCarryKeyframes"]
TEXT = 105
AREAS = """([pictured, picture, saying, text]) => app.graph.nodes.map((node) => {
    node.updateArea()
    const [x, y, width, most] = node.boundingRect
    const shown = pictured.includes(node.type) ? picture : 0
    const more = shown + (saying.includes(node.type) ? text : 0)
    const needed = more ? LiteGraph.NODE_TITLE_HEIGHT + node.computeSize()[1] + more : 0
    return [`${node.title} (${node.id})`, x, y, width, Math.max(most, needed)]
})"""
SHOWS_CLIPS = (
    "() => app.graph.nodes.every((node) => node.type !== 'LoadVideo' || node.videoContainer)"
)
# Titles that are cut off: what is right of them is the frame's corner.
CUT_OFF = """() => app.graph.nodes.filter((node) => {
    const context = app.canvas.ctx
    context.font = node.titleFontStyle
    return context.measureText(node.title).width > node.size[0] - 2 * LiteGraph.NODE_TITLE_HEIGHT
}).map((node) => node.title)"""
# Wires, in the pieces that the page draws between bends, that cross the outline of a node that is
# at neither end; a bend may touch its edge.
BENEATH = """(edge) => {
    const context = document.createElement('canvas').getContext('2d')
    context.lineWidth = 4
    const { graph } = app, lost = new Set()
    const outlines = graph.nodes.map((node) => {
        node.updateArea()
        const [x, y, width, height] = node.boundingRect
        const [left, top, right, bottom] = [x + edge, y + edge, x + width - edge, y + height - edge]
        const points = []
        for (let x = left; x < right; x += 3) points.push([x, top], [x, bottom])
        for (let y = top; y < bottom; y += 3) points.push([left, y], [right, y])
        return { node, points }
    })
    for (const link of graph.links.values()) {
        const pieces = [link], ends = [link.origin_id, link.target_id]
        for (let id = link.parentId; id != null; id = pieces[0].parentId)
            pieces.unshift(graph.reroutes.get(id))
        const [from, to] = ends.map((id) => graph.getNodeById(id))
        const [start, end] = [from.getConnectionPos(false, link.origin_slot),
            to.getConnectionPos(true, link.target_slot)]
        const stops = [start, ...pieces.map((piece) => piece.pos ?? end)]
        pieces.forEach(({ path }, i) => {
            // A curve leaves the box of its ends by no more than a quarter of its length.
            const [[x, y], [u, v]] = [stops[i], stops[i + 1]], away = Math.hypot(u - x, v - y) / 4
            const near = ([p, q]) => p > Math.min(x, u) - away && p < Math.max(x, u) + away
                && q > Math.min(y, v) - away && q < Math.max(y, v) + away
            const crosses = (point) => near(point) && context.isPointInStroke(path, ...point)
            for (const { node, points } of outlines)
                if (!ends.some((id) => id == node.id) && points.some(crosses))
                    lost.add(`${link.origin_id} to ${link.target_id}: ${node.title}`)
        })
    }
    return [...lost]
}"""
EDGE = 8
GROUPS = "() => app.graph.groups.map((group) => [group.title, ...group.boundingRect])"


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.stem)
def workflow(editor: Editor, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A workflow, open in the page as a graph."""
    saved: dict[str, Any] = json.loads(request.param.read_text())
    saved["extra"].pop("linearMode", None)
    editor.load(saved)
    return saved


def test_the_page_sends_what_the_scripts_send_and_the_server_takes_it(
    editor: Editor, server: Any, workflow: dict[str, Any]
) -> None:
    prompt = editor.prompt()
    known = server.get("/object_info")
    assert prompt == to_prompt(workflow, known)
    assert unknown_choices(prompt, known) == []
    assert not [error for error in refused(server, prompt) if not names_missing_weights(error)]


@pytest.mark.parametrize("file", BLUEPRINTS, ids=lambda file: file.stem)
def test_a_blueprint_runs_as_the_scripts_run_it_with_what_is_set_on_its_node(
    editor: Editor, server: Any, file: Path
) -> None:
    offered = server.get("/global_subgraphs")
    assert file.stem in {entry["name"] for entry in offered.values()}
    blueprint = json.loads(file.read_text())
    (standing,) = blueprint["nodes"]
    widgets = [slot["name"] for slot in standing["inputs"] if "widget" in slot]
    for name, value in (("edit_prompt", "an ice star on sand"), ("strength", 0.8)):
        standing["widgets_values"][widgets.index(name)] = value
    known = server.get("/object_info")
    editor.load(blueprint)
    prompt = editor.prompt()
    assert prompt == to_prompt(blueprint, known)
    assert prompt["1:7"]["inputs"]["text"] == "an ice star on sand"
    assert prompt["1:14"]["inputs"]["start"] == 0.8
    assert to_prompt(editor.serialized(), known) == prompt


def test_the_app_shows_clip_prompts_and_strength_alone_and_runs(
    editor: Editor, picture: Callable[..., None]
) -> None:
    if editor.version() < KNOWS_APPS:
        pytest.skip("this version of the page knows no apps")
    saved = json.loads(APP.read_text())
    nodes = {node["type"]: node for node in saved["nodes"]}
    nodes["ImageFromBatch"]["widgets_values"][1] = 3
    nodes["TokenFlowInvertVideo"]["widgets_values"][1] = 4
    page = editor.page
    editor.load(saved)
    try:
        shown = page.get_by_test_id("linear-widgets").get_by_test_id("app-mode-widget-item")
        expect(shown.get_by_test_id("builder-widget-label")).to_have_text(
            ["clip", "what the clip shows", "what it shall show", "strength"]
        )
        shown.locator("textarea").last.fill("an ice star on grass")
        sent = editor.prompt()
        assert [node["inputs"]["text"] for node in sent.values() if "text" in node["inputs"]] == [
            "a wood star on grass",
            "an ice star on grass",
            "",
        ]
        controls = page.get_by_test_id("linear-run-button")
        controls.get_by_role("button", name="Run", exact=True).click()
        edited = page.locator("video[src*='type=output']:visible")
        edited.first.wait_for(timeout=RUN)
        page.wait_for_function(
            "(player) => player.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA",
            arg=edited.first.element_handle(),
        )
        picture("app")
    finally:
        saved["extra"]["linearMode"] = False
        editor.load(saved)
        page.get_by_test_id("queue-button").wait_for()


def unknown_choices(prompt: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """Values that are not in their lists. The server looks at lists of old nodes only."""
    return [
        f"{node['class_type']}, {name}: {node['inputs'][name]}"
        for node in prompt.values()
        for group in known[node["class_type"]]["input"].values()
        for name, spec in group.items()
        if spec[0] == "COMBO"
        and isinstance(node["inputs"].get(name), str)
        and node["inputs"][name] not in spec[1].get("options", [])
    ]


def refused(server: Any, prompt: dict[str, Any]) -> list[dict[str, Any]]:
    """The server's objections to a prompt, each with its node. Nothing of it runs on."""
    request = urllib.request.Request(
        f"{server.address}/prompt", json.dumps({"prompt": prompt}).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        answer = json.load(error)
    while any(server.get("/queue").values()):
        for path, body in (("queue", b'{"clear": true}'), ("interrupt", b"{}")):
            urllib.request.urlopen(
                urllib.request.Request(f"{server.address}/{path}", body), timeout=60
            ).close()
        time.sleep(0.05)
    objections = [
        {"node": node, **error}
        for node, report in answer["node_errors"].items()
        for error in report["errors"]
    ]
    assert objections or "error" not in answer, answer["error"]
    return objections


def names_missing_weights(error: dict[str, Any]) -> bool:
    """Whether all that is wrong is a checkpoint, LoRA or ControlNet that is not on this machine."""
    return error["type"] == "value_not_in_list" and str(
        error["extra_info"]["received_value"]
    ).endswith(WEIGHTS)


def test_nothing_covers_anything(editor: Editor, workflow: dict[str, Any]) -> None:
    """A node takes at least the room that its widgets need, whatever the file says, and grows when
    it shows pictures or says something.
    """
    editor.page.wait_for_function(SHOWS_CLIPS)
    editor.settle()
    nodes = editor.page.evaluate(AREAS, [PICTURED, PICTURE, SAYING, TEXT])
    assert [(a[0], b[0]) for a, b in combinations(nodes, 2) if overlap(a, b)] == []
    groups = editor.page.evaluate(GROUPS)
    assert [(a[0], b[0]) for a, b in combinations(groups, 2) if overlap(a, b)] == []
    assert [
        (node[0], group[0])
        for node in nodes
        for group in groups
        if overlap(node, group) and not inside(node, group)
    ] == []


# How much room the page's bars take at the left, above and, in a corner, below.
BARS = {"left": 58, "top": 92}
PLACES = """() => {
    const place = ([x, y]) => app.canvasPosToClientPos([x, y])
    const note = app.graph.nodes.find((node) => node.type === 'MarkdownNote')
    note.updateArea()
    return {
        note: [place(note.boundingRect), note.boundingRect[2] * app.canvas.ds.scale],
        groups: app.graph.groups.map((group) => [group.title, place(group.boundingRect)]),
        scale: app.canvas.ds.scale,
    }
}"""
LARGE = {"width": 1600, "height": 1000}
MANY = 40  # nodes that no window takes


@pytest.mark.parametrize("large", [False, True], ids=["1280 x 800", "1600 x 1000"])
def test_it_opens_with_the_note_readable_and_nothing_under_the_bars(
    editor: Editor, workflow: dict[str, Any], large: bool
) -> None:
    kept = editor.page.viewport_size
    assert kept is not None
    if large:
        editor.page.set_viewport_size(LARGE)  # type: ignore[arg-type]
    try:
        editor.load(workflow)
        seen = editor.page.evaluate(PLACES)
    finally:
        editor.page.set_viewport_size(kept)
    (note, width), groups = seen["note"], seen["groups"]
    assert seen["scale"] >= 0.6  # below, older pages draw no text
    assert all(x >= BARS["left"] and y >= BARS["top"] for x, y in (note, *(p for _, p in groups)))
    assert all(note[0] <= x and note[1] <= y for _, (x, y) in groups)
    assert note[0] + width < kept["width"] / 2
    window = LARGE if large else kept
    hidden = [title for title, (x, y) in groups if x > window["width"] - 60 or y > window["height"]]
    assert not [title for title in hidden if "muted" not in title and len(workflow["nodes"]) < MANY]


def test_wires_can_be_followed(editor: Editor, workflow: dict[str, Any]) -> None:
    """Wires are drawn behind nodes: what runs beneath one is lost from sight. With Nodes 2.0 on,
    nodes take other room than the file says, and some wires touch one.
    """
    if editor.nodes_2:
        pytest.skip("nodes as elements of the page take other room")
    editor.show()  # the page knows the ways of what it draws
    assert editor.page.evaluate(BENEATH, EDGE) == []


def test_titles_are_read_in_full(editor: Editor, workflow: dict[str, Any]) -> None:
    assert editor.page.evaluate(CUT_OFF) == []


def overlap(a: list[Any], b: list[Any]) -> bool:
    """Whether two areas (name, x, y, width, height) have a place in common."""
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (1, 2))


def inside(a: list[Any], b: list[Any]) -> bool:
    return all(b[i] <= a[i] and a[i] + a[i + 2] <= b[i] + b[i + 2] for i in (1, 2))
