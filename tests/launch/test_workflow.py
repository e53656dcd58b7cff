"""The editor's workflow files become prompts that a real server takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launch.comfyui.workflow import WorkflowError, to_prompt

# The shape of /object_info, small: a list as type is the old way to write a combo,
# ["COMBO", {...}] the new one.
SPEED = {"slow": {}, "fast": {"required": {"rate": ["INT", {"default": 3}]}}}
DYNAMIC: list[Any] = [
    "COMFY_DYNAMICCOMBO_V3",
    {"options": [{"key": key, "inputs": inputs} for key, inputs in SPEED.items()]},
]
INFO: dict[str, Any] = {
    "Source": {"input": {"required": {"size": ["INT", {"default": 8}]}}, "display_name": "Source"},
    "Sample": {
        "input": {
            "required": {
                "latent": ["LATENT"],
                "seed": ["INT", {"default": 0}],
                "cfg": ["FLOAT", {"default": 7.0}],
                "method": [["euler", "ddim"]],
            },
            "optional": {
                "mask": ["MASK"],
                "order": ["COMBO", {"options": ["fixed", "random"]}],
                "forced": ["INT", {"forceInput": True}],
            },
            "hidden": {"prompt": "PROMPT"},
        },
        "input_order": {
            "required": ["seed", "latent", "cfg", "method"],
            "optional": ["mask", "order", "forced"],
        },
    },
    "Save": {"input": {"required": {"latent": ["LATENT"], "name": ["STRING", {"default": "x"}]}}},
    "Load": {
        "input": {
            "required": {"file": ["COMBO", {"video_upload": True}]},
            "optional": {"rate": ["INT", {}]},
        }
    },
    "Dynamic": {"input": {"required": {"mode": DYNAMIC, "name": ["STRING", {"default": "x"}]}}},
}


def node(
    id: int, type: str, values: Any = (), links: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    slots = [{"name": name, "type": "LATENT", "link": link} for name, link in (links or {}).items()]
    return {
        "id": id,
        "type": type,
        "widgets_values": values,
        "inputs": slots,
        "outputs": [{"type": "LATENT"}],
        **more,
    }


def graph(*nodes: dict[str, Any], links: tuple[list[Any], ...] = ()) -> dict[str, Any]:
    return {"nodes": list(nodes), "links": list(links)}


LINK_12, LINK_23 = [5, 1, 0, 2, 0, "LATENT"], [6, 2, 0, 3, 0, "LATENT"]


def test_names_follow_input_order_and_the_seed_control_is_dropped() -> None:
    saved = graph(
        node(1, "Source", [4]),
        node(2, "Sample", [7, "randomize", 2.5, "ddim", "fixed"], {"latent": 5}, title="Mine"),
        links=(LINK_12,),
    )
    prompt = to_prompt(saved, INFO)
    assert prompt["1"] == {
        "class_type": "Source",
        "inputs": {"size": 4},
        "_meta": {"title": "Source"},
    }
    assert prompt["2"]["inputs"] == {
        "seed": 7,
        "cfg": 2.5,
        "method": "ddim",
        "order": "fixed",
        "latent": ["1", 0],
    }
    assert prompt["2"]["_meta"]["title"] == "Mine"


def test_a_seed_saved_without_control_keeps_the_values_in_place() -> None:
    assert to_prompt(graph(node(2, "Sample", [7, 2.5, "ddim"])), INFO)["2"]["inputs"] == {
        "seed": 7,
        "cfg": 2.5,
        "method": "ddim",
    }


def test_missing_values_are_defaults_and_extras_are_ignored() -> None:
    assert to_prompt(graph(node(1, "Source", [])), INFO)["1"]["inputs"] == {"size": 8}
    assert to_prompt(graph(node(1, "Source", [3, "shown text", None])), INFO)["1"]["inputs"] == {
        "size": 3
    }


def test_a_choice_that_brings_inputs_is_followed_by_them() -> None:
    found = [
        to_prompt(graph(node(1, "Dynamic", values)), INFO)["1"]["inputs"]
        for values in (["slow", "a"], ["fast", 5, "a"], ["fast"], [])
    ]
    assert found[:2] == [
        {"mode": "slow", "name": "a"},
        {"mode": "fast", "mode.rate": 5, "name": "a"},
    ]
    assert found[2:] == [
        {"mode": "fast", "mode.rate": 3, "name": "x"},
        {"mode": "slow", "name": "x"},
    ]


def test_the_upload_button_takes_a_place() -> None:
    assert to_prompt(graph(node(1, "Load", ["clip.mp4", "image", 24])), INFO)["1"]["inputs"] == {
        "file": "clip.mp4",
        "rate": 24,
    }


def test_a_link_is_stronger_than_the_widget_it_feeds() -> None:
    saved = graph(node(1, "Source", [4]), node(2, "Source", [9], {"size": 5}), links=(LINK_12,))
    assert to_prompt(saved, INFO)["2"]["inputs"] == {"size": ["1", 0]}


def test_notes_are_left_out() -> None:
    assert set(
        to_prompt(graph(node(1, "Source", [4]), node(2, "MarkdownNote", ["text"])), INFO)
    ) == {"1"}


def test_a_bypassed_node_passes_its_input_on() -> None:
    saved = graph(
        node(1, "Source", [4]),
        node(2, "Sample", [7, "fixed", 1.0, "ddim"], {"latent": 5}, mode=4),
        node(3, "Save", ["a"], {"latent": 6}),
        links=(LINK_12, LINK_23),
    )
    prompt = to_prompt(saved, INFO)
    assert set(prompt) == {"1", "3"}
    assert prompt["3"]["inputs"]["latent"] == ["1", 0]


def test_a_muted_node_leaves_its_readers_unconnected() -> None:
    saved = graph(
        node(1, "Source", [4], mode=2), node(2, "Save", ["a"], {"latent": 5}), links=(LINK_12,)
    )
    assert to_prompt(saved, INFO) == {
        "2": {"class_type": "Save", "inputs": {"name": "a"}, "_meta": {"title": "Save"}}
    }


def test_what_cannot_run_is_refused_by_name() -> None:
    with pytest.raises(WorkflowError, match=r"node 3 \(Nowhere\) is unknown to the server"):
        to_prompt(graph(node(3, "Nowhere")), INFO)


def test_a_reroute_passes_on_and_a_primitive_gives_its_value() -> None:
    saved = graph(
        node(1, "Source", [4], {"size": 7}),
        node(2, "Reroute", [], {"": 5}),
        node(3, "Save", ["a"], {"latent": 6}),
        node(4, "PrimitiveNode", [11, "fixed"]),
        links=(LINK_12, LINK_23, [7, 4, 0, 1, 0, "INT"]),
    )
    prompt = to_prompt(saved, INFO)
    assert set(prompt) == {"1", "3"}
    assert prompt["3"]["inputs"]["latent"] == ["1", 0]
    assert prompt["1"]["inputs"] == {"size": 11}


# A subgraph: what comes in is sampled, with a cfg that is set from outside.
INSIDE: dict[str, Any] = {
    "id": "11-22",
    "name": "Sampled",
    "inputs": [{"name": "latent"}, {"name": "strength"}],
    "outputs": [{"name": "LATENT"}, {"name": "as it came"}],
    "nodes": [
        node(1, "Sample", [7, "fixed", 1.0, "ddim"], {"latent": 1, "cfg": 2}),
        node(2, "Sample", [8, "fixed", 1.0, "ddim"], {"latent": 3}),
    ],
    "links": [
        {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 0},
        {"id": 2, "origin_id": -10, "origin_slot": 1, "target_id": 1, "target_slot": 1},
        {"id": 3, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0},
        {"id": 4, "origin_id": 2, "origin_slot": 0, "target_id": -20, "target_slot": 0},
        {"id": 5, "origin_id": -10, "origin_slot": 0, "target_id": -20, "target_slot": 1},
    ],
}


def around(values: Any = (), slot: int = 0, **more: Any) -> dict[str, Any]:
    """A graph that has it between a source and a saver, which takes one of its outputs."""
    standing = node(2, "11-22", values, {"latent": 5, "strength": None}, **more)
    standing["inputs"][1]["widget"] = {"name": "strength"}
    standing["outputs"] *= 2
    saved = graph(
        node(1, "Source", [4]),
        standing,
        node(3, "Save", ["a"], {"latent": 6}),
        links=(LINK_12, [6, 2, slot, 3, 0, "LATENT"]),
    )
    return saved | {"definitions": {"subgraphs": [INSIDE]}}


def test_a_subgraph_is_replaced_by_what_is_in_it() -> None:
    saved = around([2.5])
    kept = json.dumps(saved)
    prompt = to_prompt(saved, INFO)
    assert json.dumps(saved) == kept
    assert set(prompt) == {"1", "2:1", "2:2", "3"}
    assert prompt["2:1"]["inputs"] | {"order": 0} == {
        "seed": 7,
        "cfg": 2.5,
        "method": "ddim",
        "latent": ["1", 0],
        "order": 0,
    }
    assert prompt["2:2"]["inputs"]["latent"] == ["2:1", 0]
    assert prompt["3"]["inputs"]["latent"] == ["2:2", 0]
    assert to_prompt(around(), INFO)["2:1"]["inputs"]["cfg"] == 1.0
    proxied = around([9], properties={"proxyWidgets": [["2", "seed"]]})
    assert to_prompt(proxied, INFO)["2:2"]["inputs"]["seed"] == 9
    assert to_prompt(around(slot=1), INFO)["3"]["inputs"]["latent"] == ["1", 0]


def test_a_subgraph_in_a_subgraph_has_both_ids_before_its_nodes() -> None:
    nested = {
        **INSIDE,
        "id": "33",
        "nodes": [node(7, "11-22", [], {"latent": 1})],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 7, "target_slot": 0},
            {"id": 2, "origin_id": 7, "origin_slot": 0, "target_id": -20, "target_slot": 0},
        ],
    }
    saved = around()
    saved["nodes"][1]["type"] = "33"
    saved["definitions"] = {"subgraphs": [INSIDE, nested]}
    prompt = to_prompt(saved, INFO)
    assert set(prompt) == {"1", "2:7:1", "2:7:2", "3"}
    assert prompt["2:7:1"]["inputs"]["latent"] == ["1", 0]
    assert prompt["3"]["inputs"]["latent"] == ["2:7:2", 0]


def test_a_subgraph_that_is_off_is_off_with_all_that_is_in_it() -> None:
    assert set(to_prompt(around(mode=2), INFO)) == {"1", "3"}
    bypassed = to_prompt(around(mode=4), INFO)
    assert set(bypassed) == {"1", "3"}
    assert bypassed["3"]["inputs"]["latent"] == ["1", 0]


def test_a_subgraph_that_holds_itself_is_refused() -> None:
    saved = around()
    saved["definitions"] = {"subgraphs": [{**INSIDE, "nodes": [node(1, "11-22")], "links": []}]}
    with pytest.raises(WorkflowError, match="Sampled holds itself"):
        to_prompt(saved, INFO)


def test_an_api_prompt_is_returned_as_it_is_and_other_files_are_refused() -> None:
    prompt = {"1": {"class_type": "Source", "inputs": {}}}
    assert to_prompt(prompt, INFO) is prompt
    for other in ({}, {"version": 1}):
        with pytest.raises(WorkflowError, match="neither"):
            to_prompt(other, INFO)
    unknown = {
        "1": {"class_type": "Sample"},
        "2": {"class_type": "Gone"},
        "3": {"class_type": "Lost"},
    }
    with pytest.raises(
        WorkflowError, match=r"^node 2 \(Gone\) is unknown .*\nnode 3 \(Lost\) is unknown "
    ):
        to_prompt(unknown, INFO)


@pytest.mark.parametrize(
    "nodes", [3, [3], [{}], [{"id": 1}], [node(1, "Source", [4]) | {"inputs": [{"link": 1}, 5]}]]
)
def test_what_no_editor_saves_is_told_as_such(nodes: Any) -> None:
    with pytest.raises(WorkflowError, match="no workflow as the editor saves it"):
        to_prompt({"nodes": nodes, "links": []}, INFO)


def test_all_nodes_that_cannot_run_are_told_at_once() -> None:
    with pytest.raises(WorkflowError) as raised:
        to_prompt(
            graph(
                node(1, "Gone", []),
                node(2, "Sample", []),
                node(3, "Lost", []),
                node(4, "Nowhere", []),
            ),
            INFO,
        )
    assert [line.split(" ")[1] for line in str(raised.value).splitlines()] == ["1", "3", "4"]
