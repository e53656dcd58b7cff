"""What benchmarks measure with: a wrong one would give wrong figures and no error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.ops
import pytest
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_sampling import ModelSamplingDiscrete
from tokenflow_pack.nodes.presets import PRESETS
from tokenflow_pack.tokenflow_ops.matching.cuts import BROKEN

from bench.costs import fit, gpu, search
from bench.tools.costs.ratios import Stages
from bench.tools.costs.ratios import write as write_ratios
from bench.tools.costs.steps import Steps, levels_of, taking
from bench.tools.gpu.sizes import REHEARSAL
from bench.tools.materials import made_of
from bench.tools.memory import kept
from bench.tools.public_code import SCHEDULER, loop_over_heads

from ...conftest import COMFYUI, ROOT
from ..tiny_models import tiny_sd15


@dataclass(frozen=True)
class Holder:
    first: Any
    second: Any = None


def test_kept_counts_every_tensor_once() -> None:
    one, other = torch.zeros(2**18), torch.zeros(2**18)
    assert kept({"a": [one, one[:5]]}, (other, "text", None, 3)) == 2
    inner = Holder(one, {1: other})
    assert kept(inner, Holder(inner, [torch.zeros(2**17)])) == 2.5


def test_looped_attention_is_the_hosts() -> None:
    attention = loop_over_heads(tiny_sd15()).model_options["transformer_options"][
        "optimized_attention_override"
    ]

    def fused(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise AssertionError("not a loop")

    q, k, v = (
        torch.randn(2, tokens, 32, generator=torch.Generator().manual_seed(tokens))
        for tokens in (6, 18, 18)
    )
    torch.testing.assert_close(attention(fused, q, k, v, 4), optimized_attention(q, k, v, 4))
    with pytest.raises(AssertionError, match="not a loop"):
        attention(fused, q, k[:, :7], v[:, :7], 4)


def test_the_bench_of_the_search_has_a_row_for_every_shape(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "SECONDS", 0.0)
    monkeypatch.setattr(
        "sys.argv", ["search", "--tokens", "9", "70", "--widths", "4", "8", "--rounds", "2"]
    )
    search.main()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line[2:3].isdigit()
    ]
    searched = [["9", "4", "144"], ["9", "8", "144"], ["70", "4", "1120"], ["70", "8", "1120"]]
    assert [row[:3] for row in rows[:4]] == searched
    # Without FAISS there is no second table.
    assert [row[:3] for row in rows[4:]] in ([], [["9", "4", "3"], ["70", "4", "8"]])
    assert len({len(row) for row in rows[:4]}) == 1


def measured(steps: int, slower: float = 1.0, public: bool = True) -> Stages:
    """As if a model call of 16 frames took a second."""
    calls = steps + 3 - (steps >= 40) * (2 + (6 * steps // 10 - 2) // 2)
    sampling = [share * steps for share in (2.0, 0.4, 0.5, 0.6)]
    times = [*sampling, calls, 1.0, min(2 * steps, 20) / 4]
    rounds = [torch.tensor([seconds, seconds * slower]) for seconds in times]
    return Stages(steps, 8, *rounds, torch.full((2,), 4.0 * steps) if public else None)


def test_ratios_of_few_steps_are_those_of_fifty() -> None:
    fifty = {name: found[0].item() for name, found in measured(50).ratios().items()}
    expected = {
        "sampling": 0.2,
        "sampling_injected": 0.25,
        "second_edit_8_steps": 0.048,
        "first_edit": (37 + 1 + 5 + 25) / 200,
        "first_edit_every_other": (29 + 1 + 5 + 25) / 200,
        "second_edit": 25 / 200,
    }
    assert fifty == pytest.approx(expected)
    for steps in (5, 10):
        few = {name: found[0].item() for name, found in measured(steps).ratios().items()}
        assert few == pytest.approx(expected)


def test_few_steps_take_what_those_of_fifty_take() -> None:
    """In the same shares, while a bench asks for it, and not after it."""
    levels, usual = levels_of(ModelSamplingDiscrete(), 5), dict(PRESETS)
    with taking(close=True):
        assert Steps.of(levels, PRESETS["balanced"]) == Steps(4, 3, 1, 3)
    with taking(close=False):
        assert Steps.of(levels, PRESETS["balanced"]) == Steps(5, 4, 0, 4)
        assert PRESETS["lean"] == usual["lean"]
    assert usual == PRESETS
    assert Steps.of(levels, PRESETS["balanced"]) == Steps(5, 4, 0, 4)


def test_steps_are_counted_as_they_run() -> None:
    """Of fifty evenly spread ones a fifth carries pictures, and then every second one to six tenths
    of the schedule runs no keyframes.
    """
    levels = levels_of(ModelSamplingDiscrete(), 50)
    assert Steps.of(levels, PRESETS["balanced"]) == Steps(40, 30, 10, 30)
    assert Steps.of(levels, PRESETS["lean"]) == Steps(30, 20, 20, 25)
    assert Steps.of(levels_of(ModelSamplingDiscrete(), 30), PRESETS["balanced"]).again == 0


def test_ratios_of_several_models_go_into_one_flat_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "ratios.json"
    write_ratios(file, measured(10).ratios(), "embedded")
    plain = torch.tensor([8.0, 4.0])
    found = {"sampling": torch.tensor([2.0, 2.0]) / plain}
    write_ratios(file, found, "transformer")
    flat = json.loads(file.read_text())
    assert flat["sampling"] == 0.2
    assert flat["transformer.sampling"] == 0.375
    assert (flat["transformer.sampling.low"], flat["transformer.sampling.high"]) == (0.25, 0.5)
    assert "first_edit" in flat
    assert not {name for name in measured(10, public=False).ratios() if "edit" in name} - {
        "second_edit_8_steps"
    }


def test_what_fails_on_a_gpu_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    def fails(_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: unknown")

    def never_ends(_: Any) -> Any:
        while True:
            pass

    def works(_: Any) -> Any:
        return [{"one": 1.0}, {"other": "words"}]

    sections = {"fails": fails, "works": works, "never ends": never_ends, "comes too late": works}
    found = gpu.run(sections, REHEARSAL, 2.0, tmp_path)
    assert "CUDA error: unknown" in found["fails"]["error"]
    assert found["works"]["lines"] == works(None)
    assert {name for name, part in found.items() if "no time left" in part.get("error", "")} == {
        "never ends",
        "comes too late",
    }
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert kept == {"rehearsal": True, "sections": found}
    text = (tmp_path / "gpu.md").read_text()
    assert "| one | other |\n| --- | --- |\n| 1 |  |\n|  | words |" in text
    assert "in fails" in text


def test_every_section_is_rehearsed_without_a_gpu(tmp_path: Path) -> None:
    """In a process of its own: it compiles, trains, and changes how the host keeps weights."""
    options = ["--rehearse", "--minutes", "60", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "launch", "bench", "gpu", *options]
    environment = {**os.environ, "COMFYUI_PATH": str(COMFYUI), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert {name: part["error"] for name, part in found.items() if "error" in part} == {}
    assert list(found) == list(gpu.SECTIONS)
    lines = {name: part["lines"] for name, part in found.items()}
    assert lines["halving"][0]["went on"] >= 1
    assert lines["halving"][0]["error"] < 1e-4
    assert all(line["error"] < 1e-4 for line in lines["offload"])
    assert all(line["same"] > 0.99 for line in lines["search"] if line["same"] != "")
    stages = {line["stage"] for line in lines["edit sd15"]}
    assert {"inversion", "plain sampling", "first edit, balanced"} <= stages
    assert all(line["pictures a second"] > 0 for line in lines["training"])


@pytest.mark.parametrize("number", [1, 2, 4])
def test_an_ideal_edit_is_of_the_asked_surface_where_the_object_is(number: int) -> None:
    from clips import Clip  # on the path once bench is imported

    clip = Clip("plain", number, 2)
    (surface,), masks, bare = clip.surfaces(1), clip.masks(), clip.bare()

    def overlap(pictures: torch.Tensor) -> float:
        found = made_of(pictures, surface, clip.source.ground, bare, clip.pictures(), masks)
        return float((found & masks).sum() / (found | masks).sum())

    assert overlap(clip.dressed(surface).pictures()) > 0.93
    assert overlap(clip.pictures()) < 0.05
    assert overlap(bare) < 0.05
    moved = clip.dressed(surface).pictures().roll(20, -1)
    assert overlap(moved) < 0.7


@pytest.mark.parametrize("number", [15, 28])
def test_cuts_between_shots_of_the_same_things_are_told_from_motion(number: int) -> None:
    from clips import Clip
    from tokenflow_pack.host.files.demo_model import load_demo_model

    from bench.quality.cuts import HOWS, told, ways

    clip = Clip("cut", number, 16)
    with torch.inference_mode():
        found = ways(clip, load_demo_model()[2])
    assert list(found) == list(HOWS)
    for breaks in found.values():
        assert [i for i, broken in enumerate(breaks) if broken > BROKEN] == [clip.cut_at]
        assert told([clip], [list(breaks)])[1] == "0"
        assert told([clip], [[0.0] * len(breaks)])[1] == "1"


@pytest.fixture(scope="module")
def clip() -> Any:
    from bench.tools.case import Case, Settings, World

    with torch.inference_mode():
        return Case.numbered(World(), Settings(frames=4, steps=2, interval=4))


def test_the_table_knows_the_ideal_from_the_source_and_from_what_stands_elsewhere(
    clip: Any,
) -> None:
    ideal = clip.figures(clip.ideal("gold"), "gold")
    assert ideal.structure > 0.9
    assert ideal.distance > 60
    assert ideal.drift == 0
    source = clip.figures(clip.source, "gold")
    assert source.structure < 0.05
    assert source.distance < ideal.distance
    moved = clip.figures(clip.ideal("gold").roll(12, 2), "gold")
    assert moved.structure < 0.8
    assert moved.distance < source.distance
    fading = clip.ideal("gold") * torch.linspace(1, 0.9, 4).view(4, 1, 1, 1)
    assert clip.figures(fading, "gold").drift > 3
    assert clip.figures(clip.source).structure is None


def test_the_public_code_is_run_from_its_own_inversion(clip: Any) -> None:
    from bench.quality import choices, table

    rows = {row.name: row for row in table.ROWS}
    with torch.inference_mode():
        prepared = table.Prepared(clip, seed=1, tuning=0)
        public = prepared.correspondences(rows["TokenFlow, public code"]).features.inversion
        ours = prepared.correspondences(rows["joint attention"]).features.inversion
    assert public.scheduler == SCHEDULER != ours.scheduler
    assert not torch.equal(public.latents[0], ours.latents[0])
    assert [row.name for row in choices.ROWS if row.public] == ["public code"]


def test_lines_of_edits_become_means_shares_and_intervals(tmp_path: Path) -> None:
    from bench.tools.paper.summary import BASE, FLOOR, OURS, Line, summarize, write

    def line(row: str, clip: int, warp: float, structure: float | None) -> Line:
        surface = "" if row == FLOOR else "gold"
        drift = None if clip == 2 else 1.0
        return Line(clip, surface, row, warp, warp, 1.0, 1.0, structure, 20.0 + clip, drift, 2.0, 3)

    figures = {FLOOR: (1.0, None), BASE: (5.0, 0.5), OURS: (2.0, 0.9)}
    lines = [line(row, clip, *found) for row, found in figures.items() for clip in (1, 2)]
    again = [
        Line.read({k: "" if v is None else str(v) for k, v in x.record().items()}) for x in lines
    ]
    assert again == lines
    table = summarize(lines)
    ours = {row.row: row for row in table.rows}[OURS]
    assert (ours.excess.value, ours.structure.value) == (0.25, 0.9)
    assert (ours.distance.value, ours.distance.low, ours.distance.high) == (21.5, 21, 22)
    assert ours.drift.value == 1.0  # of the one clip that has ground to measure it on
    write(tmp_path, table, "settings")
    text = (tmp_path / "table.md").read_text().splitlines()
    cells = dict(
        zip(*([c.strip() for c in row.split("|")] for row in (text[2], text[-1])), strict=True)
    )
    assert cells["structure"] == "0.90 (0.90 to 0.90)"
    assert cells["distance (dB)"] == "21.50 (21.00 to 22.00)"
    assert (tmp_path / "table.png").stat().st_size > 0


def test_what_fits_on_a_card_is_counted_from_the_published_layouts() -> None:
    """Parameters as their authors give them; what keyframes leave, by hand."""
    sd15 = fit.unet("sd15", 512)
    assert round(sd15.weights / fit.HALF / 1e6) == 860
    deep = 640 * 64**2 + 5 * 320 * 64**2
    assert sd15.kept == deep
    no_memory = {"device": "meta", "operations": comfy.ops.disable_weight_init}
    flux = fit.transformer("Flux", 1024, Flux(**fit.FLUX, **no_memory), 3.1, 1)
    assert round(flux.weights / 1e9, 1) == 11.9
    assert round(8 * flux.kept * fit.HALF / 1e9, 1) == 11.5
    assert round(8 * flux.narrow * fit.HALF / 1e9, 1) == 2.6


def test_a_smaller_card_takes_fewer_keyframes_and_frames() -> None:
    sd15 = fit.unet("sd15", 512)
    large, small = (fit.row(sd15, card) for card in (8, 2.6))
    assert large[-3:] == ["6.01", "16", "8 (8)"]
    assert small[-2:] == ["2", "6 (4)"]
    assert fit.row(sd15, 1.5)[-2] == "1 (2 by hand)"
