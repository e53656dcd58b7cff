"""A stock-only workflow through a real server: conversion, progress, results, errors."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from launch.comfyui.client import Progress, PromptError, Result
from launch.comfyui.server import Server
from launch.comfyui.workflow import to_prompt

Queue = Callable[..., Result]
Workflow = Callable[..., dict[str, Any]]


def test_a_saved_workflow_runs_and_its_results_come_back(
    server: Server, queue: Queue, stock_workflow: Workflow
) -> None:
    prompt = to_prompt(stock_workflow(), server.get("/object_info"))
    shown = io.StringIO()
    result = queue(prompt, Progress(prompt, shown))
    assert result.texts() == {"6": ["two frames"]}
    assert result.files() == ["clips/two_00001_.mp4"]  # not the preview: that is a temporary file
    assert (server.output / "clips" / "two_00001_.mp4").stat().st_size > 0
    assert [line.split("  ")[1] for line in shown.getvalue().splitlines()].count("Figures") == 1


def test_unchanged_nodes_are_reported_as_cached(
    server: Server, queue: Queue, stock_workflow: Workflow
) -> None:
    prompt = to_prompt(stock_workflow(color=7), server.get("/object_info"))
    assert "1" not in queue(prompt).cached
    prompt["3"]["inputs"]["filename_prefix"] = "again"
    assert {"1", "2"} <= queue(prompt).cached


def test_a_refused_prompt_names_node_and_input(
    server: Server, queue: Queue, stock_workflow: Workflow
) -> None:
    prompt = to_prompt(stock_workflow(), server.get("/object_info"))
    prompt["1"]["inputs"]["width"] = "wide"
    with pytest.raises(
        PromptError, match=r"node 1 \(.*EmptyImage\): invalid_input_type.*\n?.*width"
    ):
        queue(prompt)


def test_a_failing_node_is_named_and_the_server_goes_on(
    server: Server, queue: Queue, stock_workflow: Workflow
) -> None:
    info = server.get("/object_info")
    prompt = to_prompt(stock_workflow(), info)
    prompt["1"]["inputs"] |= {"width": 8, "height": 8}  # too small for the reflection at its border
    prompt["7"] = {
        "class_type": "ImageBlur",
        "inputs": {"image": ["1", 0], "blur_radius": 31, "sigma": 1.0},
        "_meta": {"title": "Blur"},
    }
    prompt["2"]["inputs"]["images"] = ["7", 0]
    with pytest.raises(PromptError, match=r"node 7 \(Blur, ImageBlur\)"):
        queue(prompt)
    assert queue(to_prompt(stock_workflow(color=3), info)).files()


def test_progress_counts_steps_on_a_terminal_and_names_the_node_that_failed() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    progress = Progress(
        {"1": {"class_type": "KSampler", "inputs": {}, "_meta": {"title": "Sampler"}}}, shown
    )
    progress("executing", {"node": "1"})
    progress("progress", {"node": "1", "value": 3, "max": 20})
    progress("execution_error", {})
    assert "Sampler  3/20" in shown.getvalue()
    assert shown.getvalue().endswith("failed\n")
