"""What the tables of bad input share: what a row is, the smallest good call of every node, and what
users connect by mistake.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from tokenflow_pack.host.files.clip_folders import TABLE
from tokenflow_pack.host.files.demo_clip import CLIP as EMBEDDED_CLIP
from tokenflow_pack.host.files.folders import SUFFIX
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.demo_model import LoadDemoModel
from tokenflow_pack.nodes.edit_mask import FindEditMask
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.keyframes.carry import CarryKeyframes
from tokenflow_pack.nodes.keyframes.pick import PickKeyframes
from tokenflow_pack.nodes.looking.clips import EDITS
from tokenflow_pack.nodes.looking.comparison import CompareClips
from tokenflow_pack.nodes.looking.metrics import Metrics
from tokenflow_pack.nodes.looking.reconstruction import CheckReconstruction
from tokenflow_pack.nodes.looking.views import PreviewCorrespondences, PreviewFeatures
from tokenflow_pack.nodes.sampling.apply import Apply
from tokenflow_pack.nodes.sampling.sampler import Sampler
from tokenflow_pack.nodes.stored import LoadInversion, SaveInversion
from tokenflow_pack.nodes.tuning import TuneAVideo
from tokenflow_pack.nodes.video.decoding import DecodeToVideo
from tokenflow_pack.nodes.video.encoding import EncodeVideo
from tokenflow_pack.nodes.video.folder import LoadFromFolder
from torch import Tensor

import nodes

from ..helpers import NEGATIVE, POSITIVE, SOURCE, Coder, Decoder, call, video
from ..once import once_a_session
from ..small import extracted, inverted, matched, tiny_model
from ..tiny_models import moving_clip

FRAMES, SIZE = CLIP = 2, (8, 8)
LONGEST = 600  # signs that an error message may have

INVERT, SAVE, LOAD, EXTRACT = (
    "DDIM Invert Video",
    "Save Inversion",
    "Load Inversion",
    "Extract SA Features",
)
BUILD, INJECTION, SAMPLER, APPLY = (
    "Build NN Correspondences",
    "Plug-and-Play Injection",
    "TokenFlow Sampler",
    "Apply TokenFlow",
)
METRICS, COMPARE, CHECK, TUNE = (
    "Video Consistency Metrics",
    "Compare Clips",
    "Check Reconstruction",
    "Tune-A-Video Tuning",
)
FEATURES, CORRESPONDENCES, FIND_MASK, DEMO = (
    "Preview Features",
    "Preview Correspondences",
    "Find Edit Mask",
    "Load Demo Model (TokenFlow)",
)
ENCODE, TO_VIDEO, FOLDER = "Encode Video", "Decode to Video", "Load Video from Folder"
PICK, CARRY = "Pick Keyframes", "Carry Keyframes"
NODES: dict[str, Any] = {
    INVERT: InvertVideo,
    SAVE: SaveInversion,
    LOAD: LoadInversion,
    EXTRACT: ExtractFeatures,
    BUILD: BuildCorrespondences,
    INJECTION: PlugAndPlay,
    SAMPLER: Sampler,
    APPLY: Apply,
    METRICS: Metrics,
    COMPARE: CompareClips,
    CHECK: CheckReconstruction,
    TUNE: TuneAVideo,
    FEATURES: PreviewFeatures,
    CORRESPONDENCES: PreviewCorrespondences,
    FIND_MASK: FindEditMask,
    DEMO: LoadDemoModel,
    ENCODE: EncodeVideo,
    TO_VIDEO: DecodeToVideo,
    FOLDER: LoadFromFolder,
    PICK: PickKeyframes,
    CARRY: CarryKeyframes,
}


@dataclass(frozen=True)
class Row:
    """A mistake: the node that has to refuse it and the input it has to name, what is run, patterns
    of what the error says.
    """

    name: str
    node: str
    socket: str | None
    run: Callable[[], Any]
    found: str
    remedy: str


def wrong(
    name: str, node: str, socket: str, value: Any, found: str, remedy: str, **others: Any
) -> Row:
    """The node's good call with another value of one input, by its id. value: what makes it,
    if it is no plain one.
    """
    called = EDITS.get(socket, socket)
    return Row(
        name,
        node,
        called,
        lambda: run(node, **{socket: value() if callable(value) else value, **others}),
        found,
        remedy,
    )


def refused(row: Row) -> None:
    """The run ends in an error that names node, input, what was found and what to do,
    in words that can be shown.
    """
    with pytest.raises(NodeError) as raised:
        row.run()
    error = raised.value.with_traceback(None)
    del raised  # a circle with this frame, and all tensors of the run in it
    assert (error.node, error.socket) == (row.node, row.socket), error
    assert re.search(row.found, error.found), error.found
    assert re.search(row.remedy, error.remedy), error.remedy
    told(error)


def told(error: NodeError) -> None:
    """Fails unless an error is fit to be shown: two sentences at least, printable, not long."""
    place = f"{error.node}, input '{error.socket}'" if error.socket else error.node
    assert str(error) == f"{place}: {error.found} {error.remedy}"
    assert error.found.endswith(".")
    assert error.remedy.endswith((".", ")"))
    assert str(error).replace("\n", " ").isprintable()
    assert len(str(error)) < LONGEST


# Good calls


@once_a_session
def frames(count: int = FRAMES, height: int = 64, width: int = 64, channels: int = 3) -> Tensor:
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(0))


def latents() -> dict[str, Tensor]:
    return moving_clip(FRAMES, *SIZE)


def stored(name: str = "good") -> str:
    """The name of a stored inversion, written when it is first asked for."""
    file = f"{name}_00001_{SUFFIX}"
    if not Path(folder_paths.get_output_directory(), file).exists():
        call(SaveInversion.execute, inverted(*CLIP)[0], name)
    return f"{file} [output]"


def clip_folder(name: str, table: str = "", clip: str = "a.mp4") -> str:
    """A folder of the input folder with a clip, or what is called so, and a table."""
    place = Path(folder_paths.get_input_directory(), name)
    place.mkdir(exist_ok=True)
    shutil.copy(EMBEDDED_CLIP, place / clip)
    (place / TABLE).unlink(missing_ok=True)
    if table:
        (place / TABLE).write_text(table, encoding="latin-1")
    return name


# The inputs of every node's good call: what makes them.
GOOD: dict[str, Callable[[], dict[str, Any]]] = {
    INVERT: lambda: {
        "model": tiny_model(),
        "latents": latents(),
        "positive": SOURCE,
        "steps": 1,
        "refinement": "none",
        "check_reconstruction": False,
    },
    SAVE: lambda: {"inversion": inverted(*CLIP)[0], "filename_prefix": "again"},
    LOAD: lambda: {
        "file": stored(),
        "model": tiny_model(),
        "positive": SOURCE,
        "latents": latents(),
    },
    EXTRACT: lambda: {"model": tiny_model(), "inversion": inverted(*CLIP)[0], "storage": "memory"},
    BUILD: lambda: {"features": extracted(*CLIP), "keyframe_interval": 2, "backend": "torch"},
    INJECTION: lambda: {"attention_until": 0.5},
    SAMPLER: lambda: {
        "model": tiny_model(),
        "positive": POSITIVE,
        "negative": NEGATIVE,
        "correspondences": matched(*CLIP),
        "cfg": 4.0,
        "start": 0.01,
    },
    APPLY: lambda: {"model": tiny_model(), "correspondences": matched(*CLIP)},
    METRICS: lambda: {"source": frames(), "edited": frames().flip(2)},
    COMPARE: lambda: {"source": frames(), "edited": frames().flip(2)},
    CHECK: lambda: {
        "model": tiny_model(),
        "inversion": inverted(*CLIP)[0],
        "vae": Decoder(),
        "most_frames": 1,
    },
    TUNE: lambda: {
        "model": tiny_model(),
        "latents": latents(),
        "positive": SOURCE,
        "steps": 1,
        "gradient_checkpointing": False,
    },
    FEATURES: lambda: {"features": extracted(*CLIP)},
    CORRESPONDENCES: lambda: {"correspondences": matched(*CLIP), "frames": frames()},
    FIND_MASK: lambda: {
        "model": tiny_model(),
        "inversion": inverted(*CLIP)[0],
        "positive": POSITIVE,
        "frames": frames(),
    },
    DEMO: dict,
    ENCODE: lambda: {"video": video(frames()), "vae": Coder()},
    TO_VIDEO: lambda: {"samples": latents(), "vae": Coder(), "source": video(frames())},
    FOLDER: lambda: {"folder": clip_folder("good")},
    PICK: lambda: {"frames": frames()},
    CARRY: lambda: {"frames": frames(), "keyframes": frames()[:1].flip(2), "vae": Coder()},
}


def run(node: str, **changes: Any) -> tuple[Any, ...]:
    """A node's good call, some of its inputs changed."""
    return call(NODES[node].execute, **{**GOOD[node](), **changes})


def sampled(model: Any, samples: Tensor) -> Tensor:
    """One step of KSampler (Advanced) on a model of Apply TokenFlow."""
    arguments = (
        "disable",
        0,
        3,
        4.0,
        "euler",
        "normal",
        POSITIVE,
        NEGATIVE,
        {"samples": samples},
        2,
        3,
        "disable",
    )
    return call(nodes.KSamplerAdvanced().sample, model, *arguments)[0]["samples"]


def bits(node: str) -> list[Tensor]:
    """All numbers that a node's good call gives."""
    out = run(node)
    if node == APPLY:
        return [sampled(out[0], inverted(*CLIP)[1]["samples"])]
    if node == SAVE:
        return [inverted(*CLIP)[0].latents]
    if node in (TO_VIDEO, FOLDER):
        return [out[0].get_components().images]
    if node == DEMO:
        return [weight.clone() for weight in out[0].model.diffusion_model.parameters()]
    return list(_numbers(out))


def _numbers(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, float):
        yield torch.tensor(value)


known = cache(bits)


def still_good(node: str) -> None:
    """Fails unless a node's good call gives what it gave at first, to the bit."""
    wanted, found = known(node), bits(node)
    assert len(wanted) == len(found)
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))
