"""Debian's Chromium, or another on the path, with the real page of the real server in it."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .editor import Editor

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "screenshots"
NAMES = "chromium", "chromium-browser", "google-chrome"
OPTIONS = (
    "--no-sandbox",  # a container's root may not have one
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# No tour, nothing in front of the graph, nodes with all their inputs; two clicks are a double click
# on a busy machine too.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.OnboardingCoachmarks.Seen": ["appMode", "firstRun"],
    "Comfy.AppBuilder.VueNodeSwitchDismissed": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.RightSidePanel.IsOpen": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Node.AlwaysShowAdvancedWidgets": True,
    "Comfy.Pointer.DoubleClickTime": 1000,
}
NODES_2 = "Comfy.VueNodes.Enabled"
STORED = {"vueNodesBannerDismissed": "true"}
WIDTH, HEIGHT = 1280, 800
PATIENCE = 60_000  # milliseconds, on a machine that does much else


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pictures",
        action="store_true",
        help="write the documentation's pictures of the page into docs/screenshots",
    )
    parser.addoption(
        "--nodes-2",
        action="store_true",
        help="draw nodes as elements of the page (Nodes 2.0), not on the canvas",
    )


@pytest.fixture(scope="session", autouse=True)  # before a server is started in vain
def chromium() -> str:
    """The browser's path.

    Without a browser tests of the page are skipped, where CI is true they fail.
    """
    for name in NAMES:
        if path := shutil.which(name):
            return path
    reason = "tests of the page need Chromium (Debian: apt install chromium)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def with_pictures(request: pytest.FixtureRequest) -> bool:
    """Whether pictures are asked for."""
    return bool(request.config.getoption("--pictures", default=False))


@pytest.fixture(scope="session")
def nodes_2(request: pytest.FixtureRequest) -> bool:
    """Whether nodes are drawn as elements of the page."""
    return bool(request.config.getoption("--nodes-2", default=False))


@pytest.fixture(scope="module")
def editor(server: Any, chromium: str, nodes_2: bool) -> Iterator[Editor]:
    """The open page.

    One browser for a module: Playwright keeps an event loop running,
    which tests of other modules cannot have.
    """
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    change_settings(server, {**SETTINGS, NODES_2: nodes_2})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(OPTIONS))
        context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, locale="en-US")
        for key, value in STORED.items():
            context.add_init_script(f"localStorage.setItem({json.dumps(key)}, {json.dumps(value)})")
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        opened = Editor(page, server.address, nodes_2)
        opened.open()
        yield opened
        browser.close()


def change_settings(server: Any, settings: dict[str, Any]) -> None:
    """Changes the page's settings of the server's user.

    The page takes them up when it is loaded.
    """
    body = json.dumps(settings).encode()
    request = urllib.request.Request(
        f"{server.address}/settings", body, {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60).close()


@pytest.fixture
def picture(editor: Editor, with_pictures: bool) -> Callable[..., None]:
    """`picture(name)`: keeps what the page shows as docs/screenshots/name.jpg,
    if pictures are asked for.
    """

    def take(name: str) -> None:
        if with_pictures:
            PICTURES.mkdir(exist_ok=True)
            taken = PICTURES / f"{name}.png"
            editor.page.screenshot(path=taken)
            Image.open(taken).convert("RGB").save(
                taken.with_suffix(".jpg"), quality=82, optimize=True
            )
            taken.unlink()

    return take
