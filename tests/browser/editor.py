"""The page as its user has it: where things are is asked of the page,
what is done is done by mouse and keyboard.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, TimeoutError

CANVAS = "#graph-canvas"
FADING = ".p-dialog-mask"  # of a box that is closed already; it catches clicks
# The search box and what it offers, of older pages and of newer ones.
SEARCH = ".comfy-vue-node-search-container, .p-dialog:has(#results-list, [data-testid=result-item])"
OFFERED = "li.p-autocomplete-option, [data-testid=result-item]"
TOOLTIP = ".node-tooltip"  # of what is drawn on the canvas
TRIES = 4
OWN_WIDGETS = "video-preview", "preview"  # the player of clips and the text of Preview as Text
DROP = """([canvas, name, content]) => {
    const data = new DataTransfer()
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))
    data.items.add(new File([bytes], name, { type: 'application/json' }))
    const options = { dataTransfer: data, bubbles: true, clientX: 600, clientY: 400 }
    document.querySelector(canvas).dispatchEvent(new DragEvent('drop', options))
}"""
NODES = "() => app.graph.nodes.map((node) => ({ id: node.id, type: node.type, title: node.title }))"
SLOT = """([id, side, name]) => {
    const node = app.graph.getNodeById(id)
    const slot = node[side].findIndex((slot) => slot.name === name)
    if (slot < 0) throw new Error(`${node.title} has no ${name} among its ${side}`)
    return app.canvasPosToClientPos(node.getConnectionPos(side === 'inputs', slot))
}"""
LINKED = """([origin, target, name]) => {
    const link = app.graph.getNodeById(target).inputs.find((slot) => slot.name === name).link
    return link != null && app.graph.links.get(link).origin_id == origin
}"""
WIDGET = """([id, name]) => {
    const node = app.graph.getNodeById(id)
    const widget = node.widgets.find((widget) => widget.name === name)
    const y = node.pos[1] + (widget.last_y ?? widget.y) + 10
    return app.canvasPosToClientPos([node.pos[0] + node.size[0] / 2, y])
}"""
# Newer pages hang a new node on the mouse.
HANGS = "(id) => Boolean(app.graph.getNodeById(id).flags.ghost)"
PUT = "([id, x, y]) => { app.graph.getNodeById(id).pos = app.clientPosToCanvasPos([x, y]) }"
TITLE = """(id) => {
    const node = app.graph.getNodeById(id)
    return app.canvasPosToClientPos([node.pos[0] + 100, node.pos[1] - 15])
}"""
SHOW = """([ids, left, top, right, bottom, most]) => {
    const nodes = ids.length ? ids.map((id) => app.graph.getNodeById(id)) : app.graph.nodes
    nodes.forEach((node) => node.updateArea())
    const areas = nodes.map((node) => node.boundingRect)
    const x = Math.min(...areas.map((area) => area[0]))
    const y = Math.min(...areas.map((area) => area[1]))
    const width = Math.max(...areas.map((area) => area[0] + area[2])) - x
    const height = Math.max(...areas.map((area) => area[1] + area[3])) - y
    const scale = Math.min(most, (right - left) / width, (bottom - top) / height)
    const across = (left + right) / 2, down = (top + bottom) / 2
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [across / scale - x - width / 2, down / scale - y - height / 2]
    app.canvas.deselectAll()
    app.canvas.setDirty(true, true)
}"""


class Editor:
    """ComfyUI's editor in a browser.

    Nodes are named by the ids that they have in the graph, slots and widgets by their names. They
    are drawn on the canvas, or with `nodes_2` are elements of the page.
    """

    def __init__(self, page: Page, address: str, nodes_2: bool = False) -> None:
        self.page, self.address, self.nodes_2 = page, address, nodes_2

    def open(self) -> None:
        """Loads the page, or loads it anew, and waits until it can be worked with."""
        self.page.goto(self.address)
        self.page.wait_for_function(
            "() => window.app?.extensionManager?.command && app.canvas && "
            "LiteGraph.registered_node_types.KSampler"
        )
        self.page.get_by_test_id("queue-button").wait_for()
        self.settle()

    def settle(self) -> None:
        """Waits until what was done is drawn: slots and widgets get their places when they are."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def version(self) -> tuple[int, ...]:
        """The page's version."""
        found: str = self.page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
        return tuple(int(part) for part in found.split("."))

    # The graph

    def load(self, workflow: dict[str, Any]) -> None:
        """Puts a workflow in place of the graph, without the mouse."""
        self.page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
        self.settle()

    def clear(self) -> None:
        """Empties the graph."""
        self.page.evaluate(
            "() => { app.graph.clear(); app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0] }"
        )
        self.settle()

    def prompt(self) -> dict[str, Any]:
        """What the page would send to the server, less widgets of the page's own."""
        found: dict[str, Any] = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        for node in found.values():
            for widget in OWN_WIDGETS:
                node["inputs"].pop(widget, None)
        return found

    def serialized(self) -> dict[str, Any]:
        """What the page would save."""
        found: dict[str, Any] = self.page.evaluate("() => app.graph.serialize()")
        return found

    def nodes(self) -> list[dict[str, Any]]:
        """id, type and title of every node."""
        found: list[dict[str, Any]] = self.page.evaluate(NODES)
        return found

    def node(self, kind: str) -> int:
        """The id of the only node of a type."""
        (found,) = (node["id"] for node in self.nodes() if node["type"] == kind)
        return int(found)

    # By mouse and keyboard

    def drop(self, file: Path) -> None:
        """Drops a file onto the canvas and waits for its graph."""
        content = base64.b64encode(file.read_bytes()).decode()
        self.page.evaluate("() => app.graph.nodes.forEach((node) => { node.before_drop = true })")
        self.page.evaluate(DROP, [CANVAS, file.name, content])
        self.page.wait_for_function(
            "() => app.graph.nodes.length && !app.graph.nodes.some((node) => node.before_drop)"
        )
        self.settle()

    def open_search(self, x: float = 640, y: float = 400) -> None:
        """Opens the search box by a double click on an empty place of the canvas."""
        self.page.locator(FADING).wait_for(state="detached")
        box = self.page.locator(SEARCH)
        for _ in range(TRIES):  # a page that is busy takes two clicks for single ones
            self.page.mouse.dblclick(x, y)
            with suppress(TimeoutError):
                box.wait_for(timeout=8_000)
                break

    def search(self, words: str) -> Locator:
        """Types into the open search box; returns the nodes that it offers, or will."""
        box = self.page.locator(SEARCH)
        box.locator("input").last.fill(words)
        return box.locator(OFFERED)

    def add(self, name: str, x: float, y: float) -> int:
        """Adds a node by the search box, its corner at a place of the window; returns its id."""
        known = {node["id"] for node in self.nodes()}
        self.open_search(x, y)
        self.search(name).filter(has_text=name).first.click()
        self.page.wait_for_function("(count) => app.graph.nodes.length > count", arg=len(known))
        self.page.locator(FADING).wait_for(state="detached")
        self.settle()
        (added,) = {node["id"] for node in self.nodes()} - known
        if self.page.evaluate(HANGS, added):
            self.page.mouse.click(x, y)
            self.page.evaluate(PUT, [added, x, y])
            self.settle()
        return int(added)

    def connect(self, origin: int, output: str, target: int, name: str, tries: int = TRIES) -> None:
        """Drags a link from an output to an input; a busy page may miss that,
        and then it is done again.
        """
        for _ in range(tries):
            start, end = self.slot(origin, "outputs", output), self.slot(target, "inputs", name)
            self.page.mouse.move(*start)
            self.settle()
            self.page.mouse.down()
            self.page.mouse.move(*end, steps=5)
            self.settle()
            self.page.mouse.up()
            self.settle()
            if self.page.evaluate(LINKED, [origin, target, name]):
                return
            # A link let go of over the canvas opens the search box.
            self.page.keyboard.press("Escape")
            self.settle()

    def slot(self, node: int, side: str, name: str) -> Sequence[float]:
        """Where an input's or output's dot is in the window; `side` is inputs or outputs."""
        found: Sequence[float] = self.page.evaluate(SLOT, [node, side, name])
        return found

    def row(self, node: int, widget: str) -> Locator:
        """A widget as an element of the page, its name beside it."""
        rows = self.page.locator(f"[data-node-id='{node}'] [data-testid=node-widget]")
        return rows.filter(has=self.page.get_by_text(widget, exact=True))

    def tooltip(self) -> Locator:
        """What the page says of that on which the mouse rests."""
        return self.page.get_by_role("tooltip") if self.nodes_2 else self.page.locator(TOOLTIP)

    def place(self, node: int, widget: str) -> Sequence[float]:
        """Where a widget's middle is in the window, or its name's if it is an element."""
        if self.nodes_2:
            box = self.row(node, widget).get_by_text(widget, exact=True).bounding_box()
            assert box
            return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        found: Sequence[float] = self.page.evaluate(WIDGET, [node, widget])
        return found

    def type(self, node: int, widget: str, value: str) -> None:
        """Types a number, or a short text, into the box that a click on its widget opens."""
        if self.nodes_2:
            box = self.row(node, widget).locator("input")
            box.click(force=True)  # what lies over it hands a click on
            box.fill(value)
            box.press("Enter")
            self.settle()
            return
        box = self.page.locator(".graphdialog input")
        self.click_until(node, widget, box)
        box.fill(value)
        box.press("Enter")
        self.settle()

    def click_until(self, node: int, widget: str, opened: Locator) -> None:
        """Clicks on a widget until what that opens is there: a page that moves its view, or closes
        a box in a corner, takes the click elsewhere.
        """
        for _ in range(TRIES):
            self.page.mouse.move(*self.place(node, widget), steps=3)
            self.settle()
            self.page.mouse.click(*self.place(node, widget), delay=50)
            self.settle()
            with suppress(TimeoutError):
                opened.wait_for(timeout=8_000)
                break

    def choose(self, node: int, widget: str, value: str) -> None:
        """Chooses from the list that a click on a widget opens."""
        if self.nodes_2:
            self.row(node, widget).get_by_role("combobox").click()
            self.page.get_by_role("option", name=value, exact=True).click()
            self.settle()
            return
        entry = self.page.locator(".litecontextmenu .litemenu-entry").get_by_text(value, exact=True)
        self.click_until(node, widget, entry)
        entry.click()
        self.settle()

    def click(self, node: int, widget: str) -> None:
        """Clicks on a widget, which turns a switch over."""
        if self.nodes_2:
            self.row(node, widget).get_by_role("switch").click()
        else:
            self.page.mouse.click(*self.place(node, widget))
        self.settle()

    def select(self, node: int) -> None:
        """Clicks on a node's title."""
        self.page.mouse.click(*self.page.evaluate(TITLE, node))
        self.settle()

    def show(
        self, *nodes: int, within: Sequence[float] = (80, 120, 1260, 720), most: float = 1.0
    ) -> None:
        """Moves the view so that these nodes, or all, fill a part of the window (left, top, right,
        bottom), not larger than `most`.

        Nothing is selected then.
        """
        self.page.evaluate(SHOW, [list(nodes), *within, most])
        self.settle()

    def run(self) -> None:
        """Presses the page's own button."""
        self.page.get_by_test_id("queue-button").get_by_text("Run").click()

    def dismiss(self) -> None:
        """Closes what the page shows of an error: a dialog, or on newer pages a box in a corner."""
        report = self.page.locator(".comfy-error-report")
        corner = self.page.get_by_role("status").get_by_role("button", name="Close")
        report.or_(corner).first.wait_for()
        if corner.count():
            corner.first.click()
        else:
            self.page.keyboard.press("Escape")
            report.wait_for(state="detached")
        self.settle()
