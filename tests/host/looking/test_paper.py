"""`bench paper`: readers of clips and prompts, and a whole table of a tiny checkpoint."""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import av
import folder_paths
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenflow_pack.host.measuring.clip_scores import frame_embedding, prompt_embedding
from tokenflow_pack.host.measuring.optical_flow import DIS, FOLDER, RAFT_FILES
from tokenflow_pack.nodes.looking.metrics import Metrics
from tokenflow_pack.tokenflow_ops.measuring.metrics import dis_flow
from torch import Tensor
from torchvision.models.optical_flow import raft_small

from bench.quality import paper
from bench.tools.case import Settings
from bench.tools.paper.clip import PaperClip, Prompted, read_clip
from bench.tools.paper.jobs import Size, make_jobs
from bench.tools.paper.models import Files, Judges, Scorers, find_judges
from bench.tools.paper.pairs import TGVE_EDITS, PairsError, read_pairs
from bench.tools.paper.summary import BASE, FLOOR, OURS

from ...conftest import COMFYUI, ROOT
from ..checkpoint_files import write_sd1, write_sd3
from ..helpers import call
from .test_metrics import tiny_text, tiny_vision

DEMO = ROOT / "demo" / "tokenflow_star.mp4"


def frames(folder: Path, count: int = 3, ending: str = "jpg") -> Path:
    """A folder of grey frames, each lighter than the one before."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (48, 32), (40 * i,) * 3).save(folder / f"frame{i}.{ending}")
    return folder


def video(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(DEMO, path))


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def short(folder: Path) -> list[tuple[str, ...]]:
    found = read_pairs(folder)
    return [(p.clip, p.path.relative_to(folder).as_posix(), p.source, p.edit) for p in found]


def test_videos_and_folders_of_frames_with_a_table(tmp_path: Path) -> None:
    video(tmp_path / "wolf.mp4"), video(tmp_path / "videos" / "man.MP4")
    frames(tmp_path / "woman", ending="png")
    rows = ("Clip;source;prompt", "wolf;a wolf;a fox", "woman;;a robot", "wolf.mp4;a wolf;a bear")
    table(tmp_path / "prompts.csv", *rows, "man.MP4;a man;a robot")
    assert short(tmp_path) == [
        ("wolf", "wolf.mp4", "a wolf", "a fox"),
        ("woman", "woman", "", "a robot"),
        ("wolf", "wolf.mp4", "a wolf", "a bear"),
        ("man", "videos/man.MP4", "a man", "a robot"),
    ]


def test_frames_of_davis_with_a_table_in_lines_of_json(tmp_path: Path) -> None:
    frames(tmp_path / "JPEGImages" / "480p" / "bear", count=12)
    (tmp_path / "Annotations" / "480p" / "bear").mkdir(parents=True)
    row = {"clip": "bear", "source": "a bear", "edit": "a panda"}
    table(tmp_path / "prompts.jsonl", json.dumps(row))
    assert short(tmp_path) == [("bear", "JPEGImages/480p/bear", "a bear", "a panda")]
    found, _ = read_clip(tmp_path / "JPEGImages" / "480p" / "bear", 0)
    levels = found.mean((1, 2, 3))
    assert len(levels) == 12
    assert bool((levels[:7].diff() > 0).all())  # frame 10 is not behind frame 1


def test_the_table_of_tgve(tmp_path: Path) -> None:
    frames(tmp_path / "DAVIS_480p" / "480p_frames" / "gold-fish")
    video(tmp_path / "youtube_480p" / "480p_videos" / "car.mp4")
    head = ",".join(["Video name", "Our GT caption", *TGVE_EDITS])
    rows = [head, "DAVIS Videos:,,,,,", "gold-fish,fish swim,f1,f2,f3,f4", ",,,,,"]
    rows += ["Youtube Videos:,,,,,", 'car,"a car, red",c1,,c3,c4']
    table(tmp_path / "LOVEU-TGVE-2023_Dataset.csv", *rows)
    found = short(tmp_path)
    assert [pair[3] for pair in found] == ["f1", "f2", "f3", "f4", "c1", "c3", "c4"]
    assert found[0][:3] == ("gold-fish", "DAVIS_480p/480p_frames/gold-fish", "fish swim")
    assert found[-1][:3] == ("car", "youtube_480p/480p_videos/car.mp4", "a car, red")


def test_the_public_codes_pairs(tmp_path: Path) -> None:
    video(tmp_path / "data" / "woman-running.mp4")
    (tmp_path / "configs").mkdir()
    config = "seed: 1\ndata_path: 'data/woman-running'\nprompt: \"marble, 'Venus'\"\n"
    table(tmp_path / "configs" / "config_pnp.yaml", config)
    table(tmp_path / "configs" / "other.yaml", "a: 1")
    path = "data/woman-running.mp4"
    assert short(tmp_path) == [("woman-running", path, "", "marble, 'Venus'")]


def test_what_is_wrong_with_a_folder_is_told_at_once(tmp_path: Path) -> None:
    video(tmp_path / "wolf.mp4")
    with pytest.raises(PairsError, match="is no folder"):
        read_pairs(tmp_path / "none")
    with pytest.raises(PairsError, match=r"no edit in.*prompts\.csv"):
        read_pairs(tmp_path)
    rows = ["clip,source,prompt", "wolf,a,b", "bear,a,b", "wolf,a,", "wolf.mp4,a,b", ",a,b"]
    prompts = table(tmp_path / "prompts.csv", *rows)
    with pytest.raises(PairsError) as raised:
        read_pairs(tmp_path)
    told = str(raised.value).splitlines()
    words = ("no clip 'bear'", "no prompt", "twice", "no clip in it")
    assert all(word in line for word, line in zip(words, told, strict=True))
    assert "row 2:" in told[0]
    table(prompts, "file,text", "wolf,b")
    with pytest.raises(PairsError, match="its columns are file, text"):
        read_pairs(tmp_path)
    table(tmp_path / "more.csv", *rows[:2])
    with pytest.raises(PairsError, match="several tables"):
        read_pairs(tmp_path)
    assert len(read_pairs(tmp_path, tmp_path / "more.csv")) == 1


def test_edits_have_names_of_their_own_that_more_of_them_do_not_change(tmp_path: Path) -> None:
    for path in ("a/wolf.mp4", "b/wolf.mp4", "fox.mp4"):
        video(tmp_path / path)
    rows = [f"{clip},x,{edit}" for clip in ("a/wolf", "b/wolf", "fox") for edit in ("é!", "é?")]
    table(tmp_path / "prompts.csv", "clip,source,prompt", *rows)
    checkpoint = ROOT / "demo" / "model.safetensors"

    def names(rows: list[str], first: int = 0) -> list[str]:
        pairs = read_pairs(tmp_path)[first:]
        inputs = Files(str(checkpoint)), Judges(), Settings(), Size(64, 64, 1.0), 0
        return [job.name for job in make_jobs(pairs, rows, *inputs)]

    every = names([BASE, OURS])
    assert len(set(every)) == len(every) == 3 * (1 + 2 * 2)
    assert all(re.fullmatch(r"[\w -]+", name) for name in every)
    assert set(names([OURS], 4)) < set(every)


def test_judges_are_what_lies_in_the_hosts_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (FOLDER, "clip_vision", "text_encoders"):
        (tmp_path / kind).mkdir()
        entry = ([str(tmp_path / kind)], {".safetensors", ".pth"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, entry)
        folder_paths.filename_list_cache.pop(kind, None)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    assert find_judges() == Judges(DIS, "", "")

    def put(kind: str, name: str, key: str, *shape: int) -> str:
        save_file({key: torch.zeros(shape)}, tmp_path / kind / name)
        folder_paths.filename_list_cache.pop(kind, None)
        return str(tmp_path / kind / name)

    large = put("clip_vision", "a_l.safetensors", "visual_projection.weight", 768, 1024)
    put("text_encoders", "l.safetensors", "text_projection.weight", 768, 768)
    put("text_encoders", "t5.safetensors", "encoder.weight", 4)
    assert find_judges() == Judges(DIS, large, "")
    vision = put("clip_vision", "g.safetensors", "visual_projection.weight", 1280, 1664)
    text = put("text_encoders", "g.safetensors", "text_projection.weight", 1280, 1280)
    put(FOLDER, RAFT_FILES[1], "weight", 1)
    folder_paths.filename_list_cache.pop(FOLDER, None)
    assert find_judges() == Judges(RAFT_FILES[1], vision, text)
    assert find_judges(DIS, "a_l.safetensors") == Judges(DIS, large, "")
    with pytest.raises(ValueError, match="no optical flow other"):
        find_judges("other")
    with pytest.raises(ValueError, match=r"no file x\.safetensors"):
        find_judges("", "x.safetensors")


def test_figures_are_those_of_the_metrics_node() -> None:
    draw = torch.Generator().manual_seed(0)
    source, edit = (torch.rand(3, 32, 48, 3, generator=draw) for _ in range(2))
    vision, text = tiny_vision(), tiny_text()

    def prompt(words: str) -> Tensor:
        return prompt_embedding("", "", text, words, vision)

    scorers = Scorers(frame_embedding("", "", vision), prompt)
    case = Prompted(None, Settings(), source, "a")  # type: ignore[arg-type]
    with torch.inference_mode():
        found = PaperClip(case, read_clip(DEMO, 2)[1], dis_flow, scorers).figures(edit, "a dog")
    inputs = {"clip": text, "clip_vision": vision, "prompt": "a dog"}
    said = json.loads(call(Metrics.execute, source, edit, **inputs)[2])["clips"]["edit_1"]
    named = {"warp": "warp_error", "prompt": "prompt_score", "frames": "frame_similarity"}
    for ours, theirs in {**named, "sharpness": "sharpness"}.items():
        assert found[ours] == pytest.approx(said[theirs]["mean"], rel=1e-4)


class Sources(HTMLParser):
    """What a page shows and links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [unquote(value or "") for name, value in attrs if name in ("src", "href")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd1(tmp_path_factory.mktemp("checkpoint") / "sd1.safetensors")


@pytest.fixture
def raft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAFT's weights in the host's folder."""
    folder = tmp_path / "flow"
    folder.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, FOLDER, ([str(folder)], set()))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    weights = raft_small(weights=None).state_dict()
    for name in ("weight", "bias"):  # it sees no motion: everything is visible
        weights[f"update_block.flow_head.conv2.{name}"].zero_()
    torch.save(weights, folder / RAFT_FILES[1])


def test_a_table_of_a_checkpoint_is_made_shown_and_gone_on_with(
    checkpoint: Path,
    raft: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out"
    video(clips / "star.mp4"), frames(clips / "grey"), frames(clips / "one", count=1)
    rows = ["clip,source,prompt", "star,a star,<b>gold</b>", "grey,,red", "one,,red"]
    table(clips / "prompts.csv", *rows)
    words = f"--checkpoint {checkpoint} --clips {clips} --out {out} --frames 2 --steps 2"
    words += " --interval 2 --width 64 --rows"
    monkeypatch.setenv("COMFYUI_PATH", str(COMFYUI))

    def run() -> str:
        monkeypatch.setattr("sys.argv", ["paper", *words.split(), BASE, OURS])
        with pytest.raises(SystemExit) as ended:
            paper.main()
        assert ended.value.code == 1  # one clip is too short
        return capsys.readouterr().out

    said = run()
    assert "9 jobs, 0 done before" in said
    assert "3 not made:\n  one autoencoder: ValueError: " in said
    assert "take two or more of one size" in said
    text = (out / "table.md").read_text()
    assert f"2 edits of 2 clips, {checkpoint.name}, 64 x 64, 2 frames, 2 steps, cfg 7.5" in text
    assert f"flow {RAFT_FILES[1]}" in text
    assert "CLIP prompt" not in text
    assert "fidelity" not in text
    head, base = ([c.strip() for c in line.split("|")] for line in text.splitlines()[2:6:3])
    cells = dict(zip(head[1:-1], base[1:-1], strict=True))
    assert cells[""] == BASE
    assert float(cells["warp error"]) > 0
    assert cells["seconds, share"] == "1.00"
    with (out / "edits.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["state"] for line in lines] == ["done"] * 6 + ["failed"] * 3
    assert all(float(line["sampling"]) > 0 for line in lines[:6] if line["row"] != FLOOR)
    page = (out / "index.html").read_text()
    assert "<b>gold</b>" not in page
    shown = Sources(page).found
    assert len([name for name in shown if name.endswith(".mp4")]) == 6
    for name in shown:
        assert (out / name).is_file(), name
        if name.endswith(".mp4"):
            with av.open(str(out / name)) as opened:
                assert sum(1 for _ in opened.decode(video=0)) == 2

    manifest = out / "edits" / "manifest.jsonl"
    before = len(manifest.read_text().splitlines())
    next((out / "edits").glob("star*TokenFlow/edit.mp4")).unlink()
    assert "9 jobs, 5 done before" in run()
    again = [json.loads(line) for line in manifest.read_text().splitlines()[before:]]
    assert [(line["inputs"]["clip"], line["state"]) for line in again] == [
        ("star", "done"),
        *[("one", "failed")] * 3,
    ]


def test_rerender_makes_its_frames_of_keyframes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video(tmp_path / "star.mp4")
    table(tmp_path / "prompts.csv", "clip,source,prompt", "star,a star,gold")
    words = f"paper --checkpoint {checkpoint} --clips {tmp_path} --out {tmp_path / 'out'}"
    words += " --frames 6 --steps 4 --interval 5 --width 80 --height 64 --rows"
    monkeypatch.setenv("COMFYUI_PATH", str(COMFYUI))
    monkeypatch.setattr("sys.argv", [*words.split(), BASE, "Rerender-A-Video"])
    with pytest.raises(SystemExit) as ended:
        paper.main()
    assert ended.value.code == 0
    with (tmp_path / "out" / "edits.csv").open(newline="") as file:
        warp = {line["row"]: float(line["warp"]) for line in csv.DictReader(file)}
    assert 0 < warp["Rerender-A-Video"] < 0.9 * warp[BASE]


def test_a_transformer_goes_without_the_rows_of_unets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, clips = write_sd3(tmp_path / "sd3.safetensors"), tmp_path / "clips"
    video(clips / "star.mp4")
    table(clips / "prompts.csv", "clip,source,prompt", "star,a star,gold")
    words = f"paper --checkpoint {checkpoint} --clips {clips} --out {tmp_path} --frames 2 --steps 2"
    monkeypatch.setenv("COMFYUI_PATH", str(COMFYUI))
    rows = [BASE, OURS, "FateZero"]
    monkeypatch.setattr("sys.argv", [*words.split(), "--height", "64", "--rows", *rows])
    with pytest.raises(SystemExit) as ended:
        paper.main()
    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    assert "made for UNets alone: FateZero\n" in said
    assert "3 jobs, 0 done before" in said
    assert "64 x 64, 2 frames, 2 steps, cfg 4.5" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--rows TokenFlow", "must be one of them"),
        ("--checkpoint none.safetensors", "there is no checkpoint none.safetensors"),
        ("--checkpoint demo/transformer.safetensors", "Name them by --text-encoders"),
        ("--text-kind nothing", "is not known to ComfyUI, which knows stable_diffusion"),
        ("--vae none.safetensors", "no file none.safetensors in ComfyUI's folder vae"),
        ("--width 63", "multiples of 16"),
        ("--prompts none.csv", "there is no table none.csv"),
    ],
)
def test_what_cannot_be_run_is_told_in_a_line(
    words: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video(tmp_path / "wolf.mp4")
    table(tmp_path / "prompts.csv", "clip,source,prompt", "wolf,a,b")
    monkeypatch.setenv("COMFYUI_PATH", str(COMFYUI))
    monkeypatch.chdir(ROOT)
    usual = f"paper --checkpoint demo/model.safetensors --clips {tmp_path} --out {tmp_path}/out"
    monkeypatch.setattr("sys.argv", [*usual.split(), *words.split()])
    with pytest.raises(SystemExit) as ended:
        paper.main()
    assert said in f"{ended.value.code} {capsys.readouterr().err}"


def test_workers_of_ray_make_the_table_of_the_embedded_model(tmp_path: Path) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out"
    video(clips / "star.mp4")
    prompt = "a gold star on grass"
    (clips / "prompts.csv").write_text(f"clip,source,prompt\nstar,a wood star on grass,{prompt}\n")
    words = ["--checkpoint", "demo/model.safetensors", "--clips", clips, "--out", out]
    words += ["--frames", "2", "--steps", "2", "--interval", "2", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "launch", "bench", "paper", *words, "--rows", BASE, OURS],
        cwd=ROOT,
        env=os.environ | {"COMFYUI_PATH": str(COMFYUI), "RAY_AUTH_TOKEN": secrets.token_hex(32)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "worker 1: ready" in done.stdout
    assert "3 jobs, 0 done before; 1 workers" in done.stdout
    lines = (out / "edits" / "manifest.jsonl").read_text().splitlines()
    records = {record["inputs"]["row"]: record for record in map(json.loads, lines)}
    assert records.keys() == {FLOOR, BASE, OURS}
    for record in records.values():
        assert record["state"] == "done"
        assert record["attempts"][0]["worker"] == "worker 1"
    figures = {row: record["figures"]["warp"] for row, record in records.items()}
    assert figures[FLOOR] < figures[OURS] < figures[BASE]
    text = (out / "table.md").read_text()
    assert text.startswith("1 edits of 1 clips, model.safetensors, 128 x 128, 2 frames, 2 steps")
