"""Help inside the editor: tooltips, search aliases, help pages and translations, complete for the
schemas as they are.
"""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from comfy_api.latest import io
from tokenflow_pack.nodes import TokenFlowExtension, schema

from ..once import once_a_module

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "web" / "docs"
LANGUAGES = "ar", "en", "es", "fr", "ja", "ko", "ru", "zh", "zh-TW"
LARGEST = 64 * 1024  # bytes of a picture, fetched whenever its page is opened
LONGEST = 200  # signs of a tooltip, a node's own too; what else there is to say stands in the page


@once_a_module
def nodes() -> dict[str, Any]:
    """The nodes' schemas by their ids."""
    found = [node.define_schema() for node in asyncio.run(TokenFlowExtension().get_node_list())]
    return {node.node_id: node for node in found}


NODES = sorted(nodes())


@once_a_module
def page(node: str) -> str:
    return (DOCS / f"{node}.md").read_text(encoding="utf-8")


def output_names(node: str) -> list[str]:
    return [output.display_name or output.io_type for output in nodes()[node].outputs]


# What the nodes say themselves


@pytest.mark.parametrize("node", NODES)
def test_every_input_and_output_has_a_tooltip(node: str) -> None:
    known = nodes()[node]
    assert known.description
    silent = [socket.id for socket in known.inputs if not socket.tooltip] + [
        name for name, _, tip in outputs(known) if not tip
    ]
    assert not silent


def outputs(known: Any) -> Iterator[tuple[str, int, str]]:
    for number, output in enumerate(known.outputs):
        yield output.display_name or output.io_type, number, output.tooltip


@dataclass
class LaterSchema(io.Schema):
    """What newer hosts know of."""

    search_aliases: list[str] = field(default_factory=list)
    has_intermediate_output: bool = False


LATER_FIELDS = {*schema._SCHEMA_FIELDS, "search_aliases", "has_intermediate_output"}


def test_newer_hosts_find_nodes_by_other_words_and_send_again_what_they_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hosts before 0.10 know no search aliases,
    those before 0.19 send no cached words but of output nodes.
    """
    monkeypatch.setattr(schema.io, "Schema", LaterSchema)
    monkeypatch.setattr(schema, "_SCHEMA_FIELDS", LATER_FIELDS)
    for node in asyncio.run(TokenFlowExtension().get_node_list()):
        known = node.define_schema()
        assert len(known.search_aliases) >= 3, known.node_id
        assert known.has_intermediate_output, known.node_id
        assert all(
            alias.strip() and alias != known.display_name for alias in known.search_aliases
        ), known.node_id


# What a first edit is made with: everything else is folded away where the host can do that.
FIRST = {
    "TokenFlowInvertVideo": {"steps", "check_reconstruction"},
    "TokenFlowExtractFeatures": set(),
    "TokenFlowBuildCorrespondences": {"keyframe_interval"},
    "TokenFlowPlugAndPlay": {"attention_until", "features_until"},
    "TokenFlowSampler": {"cfg", "start", "consistency", "preset"},
    "TokenFlowApply": {"consistency", "preset"},
}


def test_newer_hosts_fold_away_what_a_first_edit_does_not_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hosts before 0.10 show all."""
    if not hasattr(io.Mask.Input("mask"), "advanced"):
        assert '"advanced"' not in json.dumps(
            [node.GET_NODE_INFO_V1() for node in asyncio.run(TokenFlowExtension().get_node_list())]
        )
        monkeypatch.setattr(io.Input, "advanced", None, raising=False)
    for node in asyncio.run(TokenFlowExtension().get_node_list()):
        widgets = [one for one in node.define_schema().inputs if isinstance(one, io.WidgetInput)]
        assert all(one.default is not None for one in widgets if one.advanced)
        if (wanted := FIRST.get(node.define_schema().node_id)) is not None:
            assert {one.id for one in widgets if not one.advanced} == wanted


WORDS = "vid2vid", "flicker", "style transfer", "video edit"


@pytest.mark.parametrize("words", WORDS)
def test_what_people_type_finds_the_sampler(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema.io, "Schema", LaterSchema)
    monkeypatch.setattr(schema, "_SCHEMA_FIELDS", LATER_FIELDS)
    (sampler,) = (
        node.define_schema()
        for node in asyncio.run(TokenFlowExtension().get_node_list())
        if node.__name__ == "Sampler"
    )
    assert words in sampler.search_aliases


# Help pages


def test_every_page_is_a_nodes() -> None:
    assert {path.stem for path in DOCS.glob("*.md")} == set(nodes())


@pytest.mark.parametrize("node", NODES)
def test_a_page_says_what_when_how_and_what_goes_wrong(node: str) -> None:
    assert re.findall(r"^# (.*)", page(node)) == [nodes()[node].display_name]
    headings = re.findall(r"^## (.*)", page(node), re.MULTILINE)
    assert [heading for heading in headings if heading in HEADINGS] == list(HEADINGS)
    assert re.search(r"!\[.+\]\(.+\)", page(node)), "no picture"


HEADINGS = "When to use it", "Inputs", "Outputs", "Common mistakes"


@pytest.mark.parametrize("node", NODES)
def test_a_page_names_every_input_and_output_and_no_others(node: str) -> None:
    known = nodes()[node]
    assert listed(node, "Inputs") == [socket.display_name or socket.id for socket in known.inputs]
    assert listed(node, "Outputs") == output_names(node)


def listed(node: str, heading: str) -> list[str]:
    """The names of a section's list; `x_3` to `x_12` are all between."""
    section = page(node).split(f"## {heading}\n")[1].split("\n## ")[0]
    names: list[str] = []
    for cell in re.findall(r"^- (`[^:]*`): ", section, re.MULTILINE):
        first, *last = re.findall(r"`(\w+)`", cell)
        stem, numbers = (
            first.rstrip("0123456789"),
            [int(re.sub(r"\D", "", name)) for name in (first, *last) if last],
        )
        names += [f"{stem}{i}" for i in range(numbers[0], numbers[1] + 1)] if numbers else [first]
    return names


@pytest.mark.parametrize("node", NODES)
def test_every_value_of_a_choice_is_explained(node: str) -> None:
    for socket in nodes()[node].inputs:
        if isinstance(socket, io.Combo.Input) and socket.id not in HOSTS_CHOICES:
            missing = [
                option
                for option in socket.options
                if not re.search(rf"\*{re.escape(option)}\*", page(node))
            ]
            assert not missing or "explained in the help of" in page(node), socket.id


HOSTS_CHOICES = "scheduler", "sampler_name", "flow", "file", "folder"


@pytest.mark.parametrize("node", NODES)
def test_a_page_starts_with_the_defaults(node: str) -> None:
    """In bold, and other good values in brackets behind them."""
    for socket in nodes()[node].inputs:
        if (default := getattr(socket, "default", None)) in (None, "") or socket.id == "seed":
            continue
        told = re.findall(rf"^- `{socket.id}`: \*\*(.*?)\*\*", page(node), re.MULTILINE)
        number = isinstance(default, float | int) and not isinstance(default, bool)
        wanted = {True: "on", False: "off"}[default] if isinstance(default, bool) else default
        assert [float(text.split()[0]) if number else text for text in told] == [wanted], socket.id


@pytest.mark.parametrize("node", NODES)
def test_nothing_is_wider_than_the_panel(node: str) -> None:
    """The panel is 274 pixels wide and cuts tables off; the page itself is measured in
    tests/browser/test_editor.py.
    """
    assert not re.findall(r"^\|.*", page(node), re.MULTILINE)
    assert not re.findall(r"`[^` ]{24,}`", page(node)), "words that no line breaks"


@pytest.mark.parametrize("node", NODES)
def test_pictures_are_there_and_links_lead_out(node: str) -> None:
    """The editor looks for pictures beside the page;
    a relative link would lead to the editor itself.
    """
    for picture, target in re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", page(node)):
        if picture:
            assert 0 < (DOCS / target).stat().st_size <= LARGEST, target
        else:
            assert target.startswith("https://"), target


def test_every_picture_is_shown() -> None:
    shown = {
        target for node in nodes() for target in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", page(node))
    }
    assert {path.name for path in DOCS.iterdir() if path.suffix != ".md"} == shown


# Translations


def schema_texts() -> dict[str, Any]:
    """All texts of the schemas as the editor wants them in nodeDefs.json."""
    return {
        node: {
            "display_name": known.display_name,
            "description": known.description,
            "inputs": {
                socket.id: {"name": socket.display_name or socket.id, "tooltip": socket.tooltip}
                for socket in known.inputs
            },
            "outputs": {
                str(number): {"name": name, "tooltip": tooltip}
                for name, number, tooltip in outputs(known)
            },
        }
        for node, known in nodes().items()
    }


def flat(texts: dict[str, Any], path: str = "") -> dict[str, str]:
    """Nested texts by the path to each."""
    found: dict[str, str] = {}
    for key, value in texts.items():
        found |= (
            flat(value, f"{path}{key}/") if isinstance(value, dict) else {f"{path}{key}": value}
        )
    return found


def translated(language: str) -> dict[str, str]:
    return flat(
        json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    )


def test_there_is_a_folder_for_each_language() -> None:
    assert tuple(sorted(path.name for path in (ROOT / "locales").iterdir())) == LANGUAGES


def test_english_is_what_the_schemas_say() -> None:
    """Whoever changes a text of a node changes it in locales/en,
    and sees here which ones to translate again.
    """
    wanted, found = flat(schema_texts()), translated("en")
    assert {path: found.get(path) for path in wanted} == wanted


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_all_texts_and_no_others(language: str) -> None:
    texts = translated(language)
    assert texts.keys() == flat(schema_texts()).keys()
    assert not [path for path, text in texts.items() if not text.strip()]
    assert not [path for path, text in texts.items() if re.search(r"[{}|@]", text)], (
        "signs with a meaning in vue-i18n"
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_tooltips_are_short(language: str) -> None:
    assert not [
        f"{path}: {len(text)}"
        for path, text in translated(language).items()
        if path.endswith(("tooltip", "description")) and len(text) > LONGEST
    ]


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_a_translation_is_one(language: str) -> None:
    """Sentences are not the English ones, and call nodes as the editor does; figures and choices,
    which it does not translate, stay.
    """
    english, texts = flat(schema_texts()), translated(language)
    titles = {known.display_name for known in nodes().values()}
    for path, text in texts.items():
        if path.endswith(("tooltip", "description")):
            assert text != english[path], path
            assert not [title for title in titles if title in text], path
            assert set(re.findall(r"\d+(?:\.\d+)?", english[path])) <= set(
                re.findall(r"\d+(?:\.\d+)?", text.replace(",", "."))
            ), path
    for node, known in nodes().items():
        for socket in known.inputs:
            for option in getattr(socket, "options", None) or ():
                path = f"{node}/inputs/{socket.id}/tooltip"
                assert f"{option}:" not in english[path] or option in texts[path], (
                    f"{path}: {option}"
                )


# As the editor gets them


def fetched(url: str) -> tuple[str, bytes]:
    """The kind and content of an answer."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.headers.get_content_type(), answer.read()


def test_the_server_delivers_pages_with_their_pictures_and_translations(server: Any) -> None:
    node = "TokenFlowSampler"
    pack = server.get(f"/object_info/{node}")[node]["python_module"].removeprefix("custom_nodes.")
    docs = f"{server.address}/extensions/{pack}/docs"
    assert fetched(f"{docs}/{node}.md")[1].decode() == page(node)
    assert fetched(f"{docs}/strip.jpg") == ("image/jpeg", (DOCS / "strip.jpg").read_bytes())
    assert fetched(f"{docs}/invert.svg")[0] == "image/svg+xml"
    translations = server.get("/i18n")
    for language in LANGUAGES:
        assert flat(translations[language]["nodeDefs"]).items() >= translated(language).items()
