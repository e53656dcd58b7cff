"""Runs from the page's own button: progress, previews, results, interrupts and errors,
where users see them.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

from launch.comfyui.workflow import to_prompt

from .conftest import ROOT
from .editor import Editor

FRAMES, STEPS, MANY = "3", "4", "60"
RUN = 240_000  # milliseconds
# Keeps what a node shows while it runs: the progress bar's share, and whether a preview is on it.
WATCH = """(id) => {
    window.seen = { progress: 0, preview: false }
    const look = () => {
        const node = app.graph.getNodeById(id)
        if (!node || window.seen.done) return
        window.seen.progress = Math.max(window.seen.progress, node.progress ?? 0)
        const image = node.imgs?.[0] ?? document.querySelector(`[data-node-id='${id}'] img`)
        window.seen.preview ||= Boolean(image?.naturalWidth)
        requestAnimationFrame(look)
    }
    look()
}"""
# The text that a node's widget shows, whether it is in the window and whether it can be typed into.
REPORT = """(id) => {
    const { widgets } = app.graph.getNodeById(id)
    const element = document.querySelector(`[data-node-id='${id}'] textarea[readonly]`)
        ?? widgets.find((widget) => widget.name === 'report').element
    const { left, top, right, bottom } = element.getBoundingClientRect()
    const within = left > 0 && top > 0 && right < innerWidth && bottom < innerHeight
    const seen = element.checkVisibility() && within && bottom > top + 20
    return { text: element.value, seen, readOnly: element.readOnly }
}"""
# Whether that text begins with these words.
SAYS = """([id, words]) => app.graph.getNodeById(id).widgets
    .find((widget) => widget.name === 'report')?.value.startsWith(words)"""
UNDONE = """([id, cfg]) => {
    const { widgets } = app.graph.getNodeById(id)
    return widgets.find((widget) => widget.name === 'cfg').value === cfg
}"""
PLAYER = """(id) => document.querySelector(`[data-node-id='${id}'] video`)
    ?? app.graph.getNodeById(id).videoContainer?.querySelector('video')"""


@pytest.fixture(scope="module")
def opened(editor: Editor, with_pictures: bool) -> Editor:
    """The page with an edit of the embedded clip, ready to run; pictures are taken of all its
    frames and steps.
    """
    editor.clear()
    editor.drop(ROOT / "workflows" / "sdedit.json")
    if not with_pictures:
        frames, inversion = editor.node("ImageFromBatch"), editor.node("TokenFlowInvertVideo")
        editor.show(frames, inversion)
        editor.type(frames, "length", FRAMES)
        editor.type(inversion, "steps", STEPS)
    return editor


def saver(editor: Editor) -> int:
    """The node that saves the edit alone."""
    return min(node["id"] for node in editor.nodes() if node["type"] == "SaveVideo")


def test_progress_and_previews_while_it_runs_then_the_result_plays(
    opened: Editor, picture: Callable[..., None], with_pictures: bool
) -> None:
    page, sampler, result = opened.page, opened.node("TokenFlowSampler"), saver(opened)
    opened.show(sampler, result)
    page.evaluate(WATCH, sampler)
    opened.run()
    enough = 0.6 if with_pictures else 0
    page.wait_for_function(
        "(enough) => window.seen.progress > enough && window.seen.preview", arg=enough, timeout=RUN
    )
    picture("running")
    player = page.wait_for_function(PLAYER, arg=result, timeout=RUN).as_element()
    assert player is not None
    page.wait_for_function(
        "(player) => player.readyState >= HTMLMediaElement.HAVE_FUTURE_DATA", arg=player
    )
    player.click()  # Chromium's own play button
    page.wait_for_function("(player) => !player.paused && player.currentTime > 0", arg=player)
    assert player.evaluate("(player) => player.videoWidth") > 0
    opened.show(sampler, result)  # and the player not selected
    picture("result")


def test_what_a_node_says_is_read_on_it_and_kept_out_of_workflow_and_prompt(
    opened: Editor, server: Any
) -> None:
    """After a run, and after Undo, which makes all nodes anew."""
    inversion, matches, sampler = (
        opened.node(f"TokenFlow{kind}")
        for kind in ("InvertVideo", "BuildCorrespondences", "Sampler")
    )
    said = {
        inversion: r"^\d+ frames inverted .*\n.* dB .*PSNR",
        matches: r"^\d+ frames, .* matched by ",
    }

    def check() -> None:
        for node, text in said.items():
            opened.show(node)
            found = opened.page.evaluate(REPORT, node)
            assert re.search(text, found["text"])
            assert found["seen"]
            assert found["readOnly"]

    check()
    kept = json.loads((ROOT / "workflows" / "sdedit.json").read_text())
    assert places(opened.serialized()) == places(kept)
    sent, wanted = opened.prompt(), to_prompt(kept, server.get("/object_info"))
    assert {node: set(entry["inputs"]) for node, entry in sent.items()} == {
        node: set(entry["inputs"]) for node, entry in wanted.items()
    }
    opened.show(sampler)
    cfg = sent[str(sampler)]["inputs"]["cfg"]
    opened.type(sampler, "cfg", "2")
    opened.select(sampler)
    opened.page.keyboard.press("Control+z")
    opened.page.wait_for_function(UNDONE, arg=[sampler, cfg])
    opened.settle()
    check()


def places(saved: dict[str, Any]) -> dict[int, int]:
    """How many values of widgets a workflow has of each of our nodes."""
    return {
        int(node["id"]): len(node.get("widgets_values") or [])
        for node in saved["nodes"]
        if node["type"].startswith("TokenFlow")
    }


def test_an_interrupted_run_makes_way_for_the_next(opened: Editor, server: Any) -> None:
    page, inversion, sampler = (
        opened.page,
        opened.node("TokenFlowInvertVideo"),
        opened.node("TokenFlowSampler"),
    )
    steps = opened.prompt()[str(inversion)]["inputs"]["steps"]
    before = set(server.get("/history"))
    opened.show(inversion, sampler)
    page.evaluate(WATCH, inversion)
    opened.type(inversion, "steps", MANY)
    opened.run()
    opened.type(sampler, "cfg", "3")
    opened.type(inversion, "steps", str(steps))
    opened.run()
    page.wait_for_function("() => window.seen.progress > 0", timeout=RUN)
    page.get_by_role("button", name="Cancel current run").click()
    while any(server.get("/queue").values()):
        page.wait_for_timeout(100)
    ended = [run for name, run in server.get("/history").items() if name not in before]
    kinds = [{message[0] for message in run["status"]["messages"]} for run in ended]
    assert ["execution_interrupted" in kind for kind in kinds] == [True, False]
    assert "execution_success" in kinds[1]


def test_an_error_shows_on_its_node_with_our_words(
    opened: Editor, picture: Callable[..., None], with_pictures: bool
) -> None:
    """Newer pages say of an error in a run only that there was one; the node says it all the same,
    until it runs again.
    """
    inversion = opened.node("TokenFlowInvertVideo")
    steps = opened.prompt()[str(inversion)]["inputs"]["steps"]
    # Beside the report, which newer pages show at the right.
    left, right = (80, 860) if with_pictures else (700, 1260)
    opened.show(inversion, within=(left, 120, right, 780))
    opened.choose(inversion, "scheduler", "kl_optimal")
    opened.type(inversion, "steps", "1")
    opened.run()
    says(opened, inversion, "DDIM Invert Video, input 'steps': the s")
    opened.page.wait_for_function("(id) => app.lastExecutionError?.node_id == id", arg=inversion)
    picture("error")
    opened.dismiss()
    opened.choose(inversion, "scheduler", "normal")
    opened.type(inversion, "steps", str(steps))
    opened.run()
    frames = opened.prompt()[str(opened.node("ImageFromBatch"))]["inputs"]["length"]
    says(opened, inversion, f"{frames} frames inverted")


def says(editor: Editor, node: int, words: str) -> None:
    """Waits until a node's report begins with these words, as long as a run may take."""
    editor.page.wait_for_function(SAYS, arg=[node, words], timeout=RUN)


def test_what_cannot_run_is_refused_in_our_words(opened: Editor) -> None:
    sampler = opened.node("TokenFlowSampler")
    opened.show(sampler, within=(700, 120, 1260, 780))
    opened.choose(sampler, "consistency", "rerender")
    opened.run()
    says(opened, sampler, "TokenFlow Sampler, input 'frames': nothing")
    opened.dismiss()


# A folder's clip, and a node that shows its name; queued so often.
FOLDER = """async (runs) => {
    const [load, show] = ["TokenFlowLoadFromFolder", "PreviewAny"]
        .map((kind) => LiteGraph.createNode(kind))
    app.graph.add(load)
    app.graph.add(show)
    load.connect(load.outputs.findIndex(({ name }) => name === "name"), show, 0)
    load.widgets.find(({ name }) => name === "folder").value = "night"
    await app.queuePrompt(0, runs)
}"""


def test_queued_runs_take_the_clips_of_a_folder_one_after_another(
    editor: Editor, server: Any
) -> None:
    folder = server.input / "night"
    folder.mkdir()
    for name in ("b.mp4", "a.mp4", "c.mp4"):
        shutil.copy(ROOT / "demo" / "tokenflow_star.mp4", folder / name)
    editor.clear()
    editor.page.evaluate(FOLDER, 3)

    def loads(run: dict[str, Any]) -> bool:
        """Whether it is one of these: what tests before have queued may still end."""
        nodes = run["prompt"][2].values()
        return any(node["class_type"] == "TokenFlowLoadFromFolder" for node in nodes)

    def shown() -> list[str]:
        runs = sorted(
            filter(loads, server.get("/history").values()), key=lambda run: run["prompt"][0]
        )
        outs = [out for run in runs for out in run["outputs"].values()]
        texts = [out["text"][0] for out in outs if "text" in out]
        return [text for text in texts if " of 3" not in text]

    end = time.monotonic() + RUN / 1000
    while len(shown()) < 3 and time.monotonic() < end:
        time.sleep(0.2)
    assert shown() == ["a", "b", "c"]
