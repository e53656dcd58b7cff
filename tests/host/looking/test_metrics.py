"""Video Consistency Metrics: clips whose figures are known, RAFT and CLIP of the host's own classes
with random weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sd
import folder_paths
import pytest
import torch
from comfy import sd1_clip, supported_models_base
from safetensors.torch import save_file
from tokenflow_pack.host.measuring.optical_flow import FOLDER, RAFT_FILES, load_flow
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.looking.metrics import NAME, Metrics
from tokenflow_pack.reporting import report
from tokenflow_pack.reporting.tables import draw_table
from torch import Tensor
from torchvision.models.optical_flow import raft_large, raft_small

from ..helpers import call, interrupt_after, interrupted
from ..once import once_a_module
from ..tiny_models import random_module

STILL = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
FLICKER = STILL * torch.tensor([1.0, 0.5, 1.0]).view(-1, 1, 1, 1)
FLICKER_ERROR = float((STILL * 0.5).square().mean()) * 1e3
WIDTH = 32


def measured(*clips: Tensor, **inputs: Any) -> tuple[str, Tensor, dict[str, Any]]:
    """Text, plots and the parsed JSON."""
    text, plots, figures, _ = call(Metrics.execute, *clips, **inputs)
    return text, plots, json.loads(figures)


def refused(inputs: dict[str, Any], socket: str, *words: str) -> None:
    with pytest.raises(NodeError) as error:
        call(Metrics.execute, STILL, FLICKER, **inputs)
    assert str(error.value).startswith(f"{NAME}, input '{socket}': ")
    for word in words:
        assert word in str(error.value)


def test_a_still_clip_is_steady_and_a_flickering_one_is_not() -> None:
    text, plots, figures = measured(STILL, FLICKER, reference=STILL, edit_4=STILL * 0.1)
    assert figures["flow"] == "DIS"
    assert figures["visible"] == {"mean": 1, "values": [1, 1]}
    assert list(figures["clips"]) == ["source", "edit_1", "edit_2", "edit_4"]
    for name in ("source", "edit_2", "edit_4"):
        assert figures["clips"][name]["warp_error"] == {"mean": 0, "values": [0, 0]}
    edited = figures["clips"]["edit_1"]
    assert edited["warp_error"]["values"] == pytest.approx([FLICKER_ERROR] * 2, rel=1e-3)
    assert len(edited["sharpness"]["values"]) == 3
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines.keys() == figures["clips"].keys()
    assert (
        f"{edited['warp_error']['mean']:.2f}e-3   sharpness {edited['sharpness']['mean']:.4f}"
        in lines["edit_1"]
    )
    assert plots.shape == (1, 480, 800, 3)


def test_edits_are_called_by_their_names() -> None:
    text, _, figures = measured(STILL, FLICKER, edit_3=STILL, names="per frame, TokenFlow")
    assert list(figures["clips"]) == ["source", "per frame", "TokenFlow"]
    assert figures["clips"]["TokenFlow"]["warp_error"]["mean"] == 0
    assert text.splitlines()[1].startswith("per frame ")
    assert list(measured(STILL, FLICKER, edit_3=STILL, names=", steady")[2]["clips"]) == [
        "source",
        "edit_1",
        "steady",
    ]
    assert list(
        measured(STILL, FLICKER, edit_12=STILL, edit_9=STILL, names="a, b\n$^$\nc\n")[2]["clips"]
    ) == ["source", "a, b", "$^$", "c"]
    refused({"names": "a, b"}, "names", "2 names for 1 edits")
    refused({"names": "source"}, "names", "a name twice among source")


def test_excess_is_the_warp_error_above_the_floors_as_a_share_of_the_first_edits() -> None:
    # A quarter of the flicker's squared error.
    scale = torch.tensor([1.0, 0.75, 1.0]).view(-1, 1, 1, 1)
    excess = measured(STILL, FLICKER, reconstruction=STILL, reference=STILL * scale, edit_3=STILL)[
        2
    ]["excess"]
    assert excess == pytest.approx({"edit_1": 1, "edit_2": 0.25, "edit_3": 0}, rel=1e-3)
    excess = measured(STILL, FLICKER, reconstruction=STILL * scale, reference=STILL)[2]["excess"]
    assert excess == pytest.approx({"edit_1": 1, "edit_2": -1 / 3}, rel=1e-3)
    assert measured(STILL, FLICKER, reference=STILL)[2]["excess"] == {}
    assert measured(STILL, STILL, reconstruction=FLICKER)[2]["excess"] == {}


def test_the_table_has_the_best_edits_means_in_bold(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(report, "draw_table", lambda head, groups: drawn.append((head, groups)))
    inputs = {
        "reconstruction": STILL,
        "reference": STILL * 0.5,
        "names": "flicker, dark, still",
        "edit_3": STILL,
    }
    _, _, text, _ = call(Metrics.execute, STILL, FLICKER, **inputs)
    ((head, (bounds, edits)),) = drawn
    assert head == ["", "warp error ×10⁻³ ↓", "excess ↓", "sharpness"]
    figures = json.loads(text)["clips"]
    assert [row[0] for row in (*bounds, *edits)] == [
        (name, False) for name in ("source", "reconstruction", "flicker", "dark", "still")
    ]
    assert [row[1:3] for row in bounds] == [[("0.00", False), ("–", False)]] * 2
    assert edits[0][1:3] == [(f"{FLICKER_ERROR:.2f}", False), ("1.00", False)]
    assert [row[1:3] for row in edits[1:]] == [[("0.00", True), ("0.00", True)]] * 2
    for row in (*bounds, *edits):
        assert row[3] == (f"{figures[row[0][0]]['sharpness']['mean']:.4f}", False)

    call(Metrics.execute, STILL, FLICKER)
    head, (_, edits) = drawn[-1]
    assert head == ["", "warp error ×10⁻³ ↓", "sharpness"]
    assert not any(bold for _, bold in edits[0])  # nothing to choose from


def test_tables_grow_with_their_rows_and_bold_figures_look_it() -> None:
    def table(*rows: tuple[str, str, bool]) -> Tensor:
        return draw_table(
            ["", "warp error"],
            [[[(name, False), (figure, bold)] for name, figure, bold in rows], []],
        )

    plain, bold = table(("a $^$ b", "1.00", False)), table(("a $^$ b", "1.00", True))
    assert plain.shape == bold.shape
    assert bold.mean() < plain.mean()  # more ink
    columns = (bold != plain).any(-1).any(1)[0].nonzero()
    assert columns.min() > plain.shape[2] / 2  # figures to the right
    taller = table(*[("a $^$ b", "1.00", False)] * 3)
    assert (taller.shape[1] - plain.shape[1]) % 2 == 0
    assert taller.shape[1] > plain.shape[1]
    assert table(("a" * 1000, "1.00", False)).shape[2] < 1500


def test_pairs_in_which_nothing_is_visible_have_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    astray = torch.full((2, 32, 48), 5.0)  # there and never back
    monkeypatch.setattr(
        "tokenflow_pack.nodes.looking.metrics.load_flow", lambda *_: lambda *_: astray
    )
    text, plots, figures = measured(STILL, FLICKER, reconstruction=STILL, reference=STILL)
    assert figures["visible"]["values"] == [0, 0]
    assert figures["excess"] == {}
    assert figures["clips"]["edit_1"]["warp_error"] == {"mean": None, "values": [None, None]}
    assert "nan" in text
    assert torch.isfinite(plots).all()


@pytest.mark.parametrize("last", [1, 4, 8])
def test_a_run_counts_pairs_and_frames_and_can_be_stopped_after_each(
    last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = interrupt_after(last, 2 + 2 * 3, monkeypatch)  # pairs, then the frames of two clips
    with interrupted():
        call(Metrics.execute, STILL, FLICKER, clip_vision=tiny_vision())
    assert counted == [*range(1, last + 1)]


# RAFT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's only folder for optical flow, for as long as the test runs."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, FOLDER, ([str(tmp_path)], set()))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path.parent / "models"))
    folder_paths.filename_list_cache.pop(FOLDER, None)
    return tmp_path


@pytest.mark.parametrize(
    ("build", "file"), [(raft_small, "small.pth"), (raft_large, "large.safetensors")]
)
def test_raft_runs_with_weights_from_the_hosts_folder(build: Any, file: str, folder: Path) -> None:
    model = build(weights=None).eval()
    if file.endswith(".pth"):
        torch.save(model.state_dict(), folder / file)
    else:
        save_file(model.state_dict(), folder / file)
    assert file in flow_options()
    first, second = torch.rand(2, 3, 128, 136, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(first[None] * 2 - 1, second[None] * 2 - 1)[-1][0]
        flow = load_flow(NAME, "flow", file)
        found = flow(first, second)
        still = flow(first, first)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    assert torch.isfinite(still).all()


def test_raft_that_sees_no_motion_measures_what_changes_in_place(folder: Path) -> None:
    weights = raft_small(weights=None).state_dict()
    for name in ("weight", "bias"):
        weights[f"update_block.flow_head.conv2.{name}"].zero_()
    torch.save(weights, folder / RAFT_FILES[1])
    _, _, figures = measured(STILL[:2], FLICKER[:2], flow=RAFT_FILES[1])
    assert figures["flow"] == RAFT_FILES[1]
    assert figures["visible"]["values"] == [1]
    assert figures["clips"]["source"]["warp_error"]["values"] == [0]
    assert figures["clips"]["edit_1"]["warp_error"]["values"] == pytest.approx(
        [FLICKER_ERROR], rel=1e-3
    )


def test_weights_that_are_missing_or_foreign_are_refused(folder: Path) -> None:
    for file in RAFT_FILES:
        assert file in flow_options()
        refused({"flow": file}, "flow", file, str(folder), "choose DIS")
    save_file({"weight": torch.zeros(2)}, folder / "other.safetensors")
    torch.save([1, 2], folder / "list.pth")
    (folder / "note.txt").write_text("no weights")
    torch.save({"code": Code(folder / "ran")}, folder / "code.pth")
    for file in ("other.safetensors", "list.pth", "note.txt", "code.pth"):
        refused({"flow": file}, "flow", str(folder / file), "raft_large or raft_small")
    assert not (folder / "ran").exists()


class Code:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def flow_options() -> list[str]:
    (found,) = (item for item in Metrics.define_schema().inputs if item.id == "flow")
    return list(found.options)


# CLIP


@once_a_module
def tiny_vision(**changes: Any) -> Any:
    """The host's CLIP_VISION, two layers on pictures of 28 x 28."""
    config = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "hidden_act": "quick_gelu",
    }
    config |= {
        "image_size": 28,
        "patch_size": 14,
        "num_channels": 3,
        "model_type": "clip_vision_model",
        "projection_dim": WIDTH,
        **changes,
    }
    path = Path(folder_paths.get_temp_directory()) / f"vision{len(changes)}.json"
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    vision = comfy.clip_vision.ClipVisionModel(str(path))
    random_module(vision.model.float(), 0)
    return vision


@once_a_module
def tiny_text(projects: bool = True, width: int = WIDTH) -> Any:
    """The host's CLIP with a text encoder of one layer, which projects as SD 2.x's does, or does
    not, as SD 1.x's.
    """
    config = {
        "num_hidden_layers": 1,
        "hidden_size": width,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_act": "quick_gelu",
    }
    config |= {"max_position_embeddings": 77, "eos_token_id": 49407}

    class Encoder(sd1_clip.SDClipModel):
        def __init__(self, **inputs: Any) -> None:
            super().__init__(
                **inputs, textmodel_json_config=dict(config), return_projected_pooled=projects
            )

    class Model(sd1_clip.SD1ClipModel):
        def __init__(self, **inputs: Any) -> None:
            super().__init__(**inputs, clip_model=Encoder)

    class Words(sd1_clip.SDTokenizer):
        def __init__(self, **inputs: Any) -> None:
            super().__init__(**inputs, embedding_size=width)

    class Tokenizer(sd1_clip.SD1Tokenizer):
        def __init__(self, **inputs: Any) -> None:
            super().__init__(**inputs, tokenizer=Words)

    clip = comfy.sd.CLIP(
        supported_models_base.ClipTarget(Tokenizer, Model), model_options={"dtype": torch.float32}
    )
    random_module(clip.cond_stage_model, 1)
    return clip


def test_frames_that_do_not_change_are_alike_and_the_prompt_is_scored_by_its_cosine() -> None:
    edited = torch.rand(3, 40, 30, 3, generator=torch.Generator().manual_seed(1))
    still = edited[:1].expand(3, -1, -1, -1)
    vision, clip = tiny_vision(), tiny_text()
    text, plots, figures = measured(
        still, edited, clip_vision=vision, clip=clip, prompt="a red ball"
    )
    assert len(plots) == 3
    source, changing = (figures["clips"][name] for name in ("source", "edit_1"))
    assert source["frame_similarity"]["values"] == pytest.approx([1, 1], abs=1e-5)

    frames = vision.encode_image(edited).image_embeds.float()
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a red ball"))[0][1]["pooled_output"]
    unit, said = (torch.nn.functional.normalize(rows) for rows in (frames, prompt))
    assert changing["frame_similarity"]["values"] == pytest.approx(
        (unit[:-1] * unit[1:]).sum(1).tolist(), abs=1e-4
    )
    assert max(changing["frame_similarity"]["values"]) < 0.9999
    assert changing["prompt_score"]["values"] == pytest.approx(
        (unit @ said.T).flatten().tolist(), abs=1e-4
    )
    alike, scored = (changing[name]["mean"] for name in ("frame_similarity", "prompt_score"))
    assert f"CLIP frames {alike:.4f}   CLIP prompt {scored:.4f}" in text

    alone = measured(still, edited, clip_vision=vision)[2]["clips"]["edit_1"]
    assert alone["frame_similarity"] == changing["frame_similarity"]
    assert "prompt_score" not in alone


def test_a_frame_that_is_what_the_prompt_says_scores_one(monkeypatch: pytest.MonkeyPatch) -> None:
    edited = torch.rand(2, 28, 28, 3, generator=torch.Generator().manual_seed(2))
    vision, clip = tiny_vision(), tiny_text()
    frame = vision.encode_image(edited[:1]).image_embeds.float()
    pooled = clip.encode_from_tokens(clip.tokenize("a red ball"), return_pooled="unprojected")[1]
    projection = clip.cond_stage_model.clip_l.transformer.text_projection
    monkeypatch.setattr(projection.weight, "data", frame.T @ pooled)
    scores = measured(edited, edited, clip_vision=vision, clip=clip, prompt="a red ball")[2][
        "clips"
    ]["edit_1"]["prompt_score"]["values"]
    assert scores[0] == pytest.approx(1, abs=1e-4)
    assert scores[1] < 0.9999


def test_models_that_share_no_space_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vision, clip = tiny_vision(), tiny_text()
    refused({"clip": clip, "prompt": "a"}, "clip_vision", "nothing there")
    refused({"clip_vision": vision, "prompt": "a"}, "clip", "nothing there")
    refused({"clip_vision": vision, "clip": clip, "prompt": " "}, "prompt", "nothing there")
    score = {"clip_vision": vision, "prompt": "a"}
    refused(
        {**score, "clip": tiny_text(projects=False)},
        "clip",
        "does not project prompts",
        "ViT-H",
        "ViT-bigG",
    )
    refused({**score, "clip": tiny_text(width=64)}, "clip", "64 numbers", "32", "the same CLIP")
    refused(
        {"clip_vision": tiny_vision(model_type="siglip_vision_model", projection_dim=None)},
        "clip_vision",
        "without CLIP's projection",
    )
    for projection, inputs, socket in (
        (vision.model.visual_projection, {"clip_vision": vision}, "clip_vision"),
        (clip.cond_stage_model.clip_l.transformer.text_projection, {**score, "clip": clip}, "clip"),
    ):
        for value in (0.0, torch.nan):
            with monkeypatch.context() as patch:
                patch.setattr(projection.weight, "data", torch.full_like(projection.weight, value))
                refused(inputs, socket)
