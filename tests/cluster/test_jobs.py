"""From rows to prompts, with the node definitions of a real server."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs import Job, content_digest, make_jobs
from cluster.jobs.table import Row, TableError, read_table
from launch.comfyui.workflow import to_prompt
from launch.environment import ROOT

from . import made

Make = Callable[..., Job]


@pytest.fixture(scope="module")
def info(server: Any) -> Any:
    return server.get("/object_info")


@pytest.fixture
def make(info: Any, tmp_path: Path) -> Make:
    """`make(cells, prompt) -> Job`, with two clips beside the table and one in the input folder."""
    for name in ("a.mp4", "b.mp4", "inputs/own.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    def make(cells: dict[str, Any], prompt: Any = None, name: str = "wolf") -> Job:
        (job,) = make_jobs(
            tmp_path / "jobs.csv",
            [Row(3, name, cells)],
            prompt or made.prompt(),
            info,
            tmp_path / "inputs",
        )
        return job

    return make


def wrong(make: Make, cells: dict[str, Any], prompt: Any = None) -> list[str]:
    with pytest.raises(TableError) as raised:
        make(cells, prompt)
    return raised.value.problems


def inputs(job: Job, node: str) -> dict[str, Any]:
    return job.prompt[node]["inputs"]


def through_apply() -> Any:
    """The same edit by the host's own sampler on a model from Apply TokenFlow, its prompts behind a
    ControlNet's node.
    """
    prompt = made.prompt()
    sampled = {"sampler": ["euler", 0], "sigmas": ["invert", 2], "latent_image": ["invert", 1]}
    both = {"positive": ["target", 0], "negative": ["source", 0]}
    prompt["apply"] = made.node(
        "TokenFlowApply", model=["demo", 0], correspondences=["build", 0], consistency="tokenflow"
    )
    prompt["control"] = made.node("ControlNetApplyAdvanced", **both, strength=1.0)
    prompt["guider"] = made.node(
        "CFGGuider", model=["apply", 0], positive=["control", 0], negative=["control", 1], cfg=4.0
    )
    prompt["euler"] = made.node("KSamplerSelect", sampler_name="euler")
    prompt["noise"] = made.node("RandomNoise", noise_seed=1)
    prompt["edit"] = made.node(
        "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], **sampled
    )
    return prompt


def test_the_four_columns_find_their_nodes(make: Make, tmp_path: Path) -> None:
    cells = {"clip": "a.mp4", "source": "a grey ball", "prompt": "a red ball", "seed": "7"}
    job = make(cells)
    assert inputs(job, "source")["text"] == "a grey ball"
    assert inputs(job, "target")["text"] == "a red ball"
    assert inputs(job, "edit")["seed"] == 7
    assert job.seeds == (7,)
    assert job.cells == cells
    ((name, path),) = job.files.items()
    assert path == tmp_path / "a.mp4"
    assert inputs(job, "video")["file"] == name == content_digest(path)[:32] + ".mp4"
    assert inputs(job, "keep")["filename_prefix"] == "wolf/edits/edited"
    assert inputs(make(cells | {"prompt": "x"}, through_apply()), "target")["text"] == "x"


def test_keyframes_are_a_folder_of_pictures_named_by_their_frames(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "painted").mkdir()
    for name in ("wolf_2.png", "wolf 010.PNG", "notes.txt"):
        (tmp_path / "painted" / name).write_bytes(name.encode())
    prompt = made.keyframes_prompt()
    job = make({"clip": "a.mp4", "keyframes": "painted"}, prompt)
    carried = inputs(job, "carry")
    assert carried["numbers"] == "2, 10"
    batch = inputs(job, carried["keyframes"][0])
    pictures = [inputs(job, batch[name][0])["image"] for name in ("image1", "image2")]
    assert [job.files[name].name for name in pictures] == ["wolf_2.png", "wolf 010.PNG"]
    assert "keyframe" not in "".join(prompt)
    # Another picture is another job, of the same clip.
    (tmp_path / "painted" / "wolf 011.png").write_bytes(b"another")
    other = make({"clip": "a.mp4", "keyframes": "painted"}, prompt)
    assert inputs(other, "carry")["numbers"] == "2, 10, 11"
    assert other.key != job.key
    assert other.group == job.group


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "has none"),
        (["first.png"], "not first.png"),
        (["a1.png", "b01.jpg"], "frame 1 twice, a1.png and b01.jpg"),
    ],
)
def test_folders_that_are_no_keyframes_are_told(
    make: Make, tmp_path: Path, names: list[str], words: str
) -> None:
    cells = {"clip": "a.mp4", "keyframes": "painted"}
    (found,) = wrong(make, cells, made.keyframes_prompt())
    assert "there is none at" in found
    (tmp_path / "painted").mkdir()
    for name in names:
        (tmp_path / "painted" / name).write_bytes(b"")
    (found,) = wrong(make, cells, made.keyframes_prompt())
    assert words in found
    assert "column 'keyframes'" in found
    (found,) = wrong(make, cells)
    assert "no Carry Keyframes" in found


def test_the_hosts_own_samplers_behind_apply_are_found(make: Make) -> None:
    job = make(
        {"prompt": "a red ball", "source": "a grey ball", "seed": 9, "clip": "a.mp4"},
        through_apply(),
    )
    assert inputs(job, "target")["text"] == "a red ball"
    assert inputs(job, "source")["text"] == "a grey ball"
    assert inputs(job, "noise")["noise_seed"] == 9


def test_any_input_is_set_by_id_title_or_type_in_its_own_type(make: Make) -> None:
    cells = {
        "clip": "a.mp4",
        "invert.steps": "5",
        "The TokenFlowSampler.cfg": "4.5",
        "TokenFlowBuildCorrespondences.backend": "faiss",
    }
    job = make(cells | {"TokenFlowInvertVideo.check_reconstruction": "No", "source.text": "7"})
    assert inputs(job, "invert")["steps"] == 5
    assert inputs(job, "edit")["cfg"] == 4.5
    assert inputs(job, "build")["backend"] == "faiss"
    assert inputs(job, "invert")["check_reconstruction"] is False
    assert inputs(job, "source")["text"] == "7"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"promt": "x"}, "'promt': no such column. Known are name, clip, source"),
        ({"Sampler.cfg": "4"}, "no node 'Sampler' in the workflow. Give the node's id"),
        (
            {"CLIPTextEncode.text": "x"},
            "2 nodes of that name, node source .*, node target .*. Give the node's id",
        ),
        (
            {"edit.cfgs": "4"},
            r"node edit \(The TokenFlowSampler\) has no value 'cfgs'. Its values are: .*cfg",
        ),
        ({"edit.model": "x"}, r"gets model from node demo .*\. Set that node's input"),
        ({"edit.cfg": "four"}, "'four'. node edit .*, input cfg, takes a number from 0.0 to 100.0"),
        ({"edit.cfg": "nan"}, "takes a number from"),
        ({"edit.cfg": "7,5"}, "takes a number from 0.0 to 100.0, written with a point"),
        ({"edit.cfg": 10**400}, "takes a number from"),
        ({"invert.steps": float("inf")}, "takes a whole number"),
        ({"invert.steps": "1e400"}, "takes a whole number"),
        ({"edit.cfg": "1e400"}, "takes a number from"),
        ({"invert.steps": "2.5"}, "takes a whole number from 1 to 1000"),
        ({"invert.steps": 0}, "takes a whole number"),
        ({"invert.steps": True}, "takes a whole number"),
        ({"seed": str(2**64)}, "takes a whole number"),
        ({"build.backend": "slow"}, "takes one of auto, faiss, torch"),
        ({"invert.check_reconstruction": "maybe"}, "takes true or false"),
        (
            {"clip": "none.mp4"},
            "'none.mp4'. node video .*, input file, takes a file, and there is none at .*none.mp4",
        ),
        (
            {"prompt": "x", "target.text": "y"},
            r"row 3, column 'target.text': .*is set by column 'prompt' too, to another value",
        ),
    ],
)
def test_a_wrong_cell_is_told_with_its_place_and_what_to_do(
    make: Make, cells: dict[str, Any], message: str
) -> None:
    (problem,) = wrong(make, {"clip": "a.mp4", **cells})
    assert problem.startswith("jobs.csv, row 3, column ")
    with pytest.raises(TableError, match=message):
        make({"clip": "a.mp4", **cells})


def test_everything_wrong_is_told_at_once(make: Make) -> None:
    assert len(wrong(make, {"seed": "x", "prmpt": "y", "invert.steps": "z"})) == 3


def test_what_is_wrong_in_many_rows_is_told_once(make: Make, info: Any, tmp_path: Path) -> None:
    rows = [
        Row(
            number,
            str(number),
            {"clip": "a.mp4", "promt": "x", "seed": number if number % 2 else "x"},
        )
        for number in range(1, 12)
    ]
    with pytest.raises(TableError) as raised:
        make_jobs(tmp_path / "jobs.csv", rows, made.prompt(), info, tmp_path)
    column, seed = raised.value.problems
    assert column.startswith(
        "jobs.csv, rows 1, 2, 3, 4, 5, 6, 7, 8 and 3 more, column 'promt': no such column"
    )
    assert seed.startswith("jobs.csv, rows 2, 4, 6, 8, 10, column 'seed': 'x'")


def test_what_is_missing_or_not_clear_is_told(make: Make) -> None:
    shared = made.prompt()
    shared["edit"]["inputs"]["positive"] = ["source", 0]
    assert (
        "is set by column 'source' too"
        in wrong(make, {"clip": "a.mp4", "source": "x", "prompt": "y"}, shared)[0]
    )
    assert (
        inputs(make({"clip": "a.mp4", "source": "x", "prompt": "x"}, shared), "source")["text"]
        == "x"
    )
    two = made.prompt()
    two["more"] = copy.deepcopy(two["edit"])
    two["more"]["inputs"]["positive"] = ["source", 0]
    assert "2 places to set, node source" in wrong(make, {"clip": "a.mp4", "prompt": "y"}, two)[0]
    assert (
        "no node that loads a video"
        in wrong(make, {"clip": "a.mp4"}, {"grey": made.node("EmptyImage", width=8, height=8)})[0]
    )


def test_a_workflows_own_file_is_looked_for_in_the_input_folder_alone(
    make: Make, tmp_path: Path
) -> None:
    prompt = made.prompt()
    prompt["video"]["inputs"]["file"] = "own.mp4 [input]"
    assert list(make({}, prompt).files.values()) == [(tmp_path / "inputs" / "own.mp4").resolve()]
    assert list(make({}).files.values()) == [ROOT / "demo" / "tokenflow_star.mp4"]
    for name in ("../a.mp4", str(tmp_path / "a.mp4"), "none.mp4"):
        prompt["video"]["inputs"]["file"] = name
        assert wrong(make, {}, prompt)[0].startswith("jobs.csv, row 3: no file for node video")


def test_groups_are_what_stage_1_depends_on_and_keys_are_everything(
    make: Make, tmp_path: Path
) -> None:
    first = make({"clip": "a.mp4"})
    same = [make({"clip": "a.mp4"}, name="other"), make({"clip": "a.mp4", "edit.cfg": 4})]
    assert {job.key for job in same} == {first.key}
    edited = [
        make({"clip": "a.mp4", **cells})
        for cells in ({"prompt": "x"}, {"seed": 5}, {"edit.cfg": 2})
    ]
    assert {job.group for job in edited} == {first.group}
    assert len({job.key for job in [first, *edited]}) == 4
    others = [
        make({"clip": "b.mp4"}),
        make({"clip": "a.mp4", "source": "x"}),
        make({"clip": "a.mp4", "build.seed": 1}),
    ]
    assert len({job.group for job in [first, *others]}) == 4
    shutil.copy(tmp_path / "a.mp4", tmp_path / "copy.mp4")
    assert make({"clip": "copy.mp4"}).key == first.key


def test_the_table_of_the_manual_fits_the_quickstart(info: Any, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "wolf.mp4").write_bytes(b"wolf")
    (tmp_path / "clips" / "man.mp4").write_bytes(b"man")
    table = tmp_path / "jobs.csv"
    table.write_text(
        (ROOT / "docs" / "cluster.md").read_text().split("```csv\n")[1].split("```")[0]
    )
    prompt = to_prompt(json.loads((ROOT / "workflows" / "quickstart.json").read_text()), info)
    robot, fox, marble = make_jobs(table, read_table(table), prompt, info, tmp_path)
    assert robot.group == fox.group != marble.group
    assert [job.name for job in (robot, fox, marble)] == ["robot", "fox", "marble"]


@pytest.mark.parametrize(
    "workflow", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem
)
def test_the_templates_take_the_four_columns(make: Make, info: Any, workflow: Path) -> None:
    prompt = to_prompt(json.loads(workflow.read_text()), info)
    cells = {"clip": "a.mp4", "source": "a wolf", "prompt": "a robot", "seed": "5"}
    if workflow.stem == "two_prompts":
        assert "2 places to set" in wrong(make, cells, prompt)[0]
        cells = {
            "First edit prompt.text" if column == "prompt" else column: cell
            for column, cell in cells.items()
        }
    if workflow.stem == "reconstruction_check":  # edits nothing
        assert len(wrong(make, cells, prompt)) == 2
        cells = {column: cells[column] for column in ("clip", "source")}
    job = make(cells, prompt)
    texts = [
        entry["inputs"]["text"]
        for entry in job.prompt.values()
        if entry["class_type"] == "CLIPTextEncode"
    ]
    assert texts.count("a wolf") == 1
    assert texts.count("a robot") == ("seed" in cells)
    assert job.seeds == ((5,) if "seed" in cells else ())
    assert len(job.files) == 1
