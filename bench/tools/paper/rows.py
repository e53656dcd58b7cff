"""The rows of the paper's table, and what of a clip they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenflow_pack.nodes.correspondences import EVEN, FIXED
from tokenflow_pack.nodes.presets import ATTENTION
from tokenflow_pack.nodes.tuning import TuneAVideo
from torch import Tensor

from bench.tools.case import Editable
from bench.tools.public_code import public_inversion

from .rerender import MODE, Keyframes, rerendered


@dataclass(frozen=True)
class Row:
    """One way of keeping frames together.

    injected: with Plug-and-Play. fixed: the same keyframes at every step. features, sampling:
    further inputs of Extract SA Features and of TokenFlow Sampler. tuned: with
    the model trained on the clip. public: from the public code's own inversion and noise levels.
    keyframes: these alone are sampled, and the other frames made of them.
    """

    name: str
    mode: str
    injected: bool = True
    fixed: bool = False
    features: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    tuned: bool = False
    public: bool = False
    keyframes: bool = False

    @property
    def source(self) -> tuple[str, bool, bool, bool]:
        """What rows have in common that need the same features."""
        return str(self.features), self.tuned, self.public, self.keyframes


TUNING_RATE = 1e-3  # of the embedded model: see the node's tooltip
# Plug-and-Play on all frames asks for the source's features at every step;
# so do the paper's matches.
EVERY = {"steps": "every", "layers": "all"}
ROWS = (
    Row("per frame (PnP-Diffusion)", "per frame", features=EVERY),
    Row("first frame (Text2Video-Zero)", "first frame", features=EVERY),
    Row("sparse-causal (Tune-A-Video, untrained)", "sparse-causal", features=EVERY),
    Row("Tune-A-Video", "sparse-causal", features=EVERY, tuned=True),
    Row("FateZero", "fatezero", injected=False, features=EVERY),
    Row("Rerender-A-Video", MODE, features=EVERY, keyframes=True),
    Row("Rerender-A-Video, all frames sampled", MODE, features=EVERY),
    Row("joint attention", "joint attention", features=EVERY),
    Row("TokenFlow, fixed keyframes", "tokenflow", fixed=True),
    Row("TokenFlow, public code", "tokenflow, public code", features=EVERY, public=True),
    Row(
        "TokenFlow, as in the paper, our weights",
        "tokenflow",
        features=EVERY,
        sampling={"carry_until": 0.0, "propagation": ATTENTION},
    ),
    Row("TokenFlow", "tokenflow"),
)


class Prepared:
    """A clip's first stage, shared by rows with the same inputs. seed: draws the keyframes. tuning:
    steps of training. storage: of features. alone: what one row needs is dropped when another one
    needs something else.
    """

    def __init__(
        self,
        case: Editable,
        seed: int,
        tuning: int = 0,
        storage: str = "memory",
        alone: bool = False,
    ) -> None:
        self.case, self.seed, self.tuning = case, seed, tuning
        self.storage, self.alone = storage, alone
        self.features: dict[tuple[str, bool, bool, bool], Any] = {}
        self.found: dict[tuple[str, bool, bool, bool, bool], Any] = {}

    def model(self, row: Row) -> Any:
        return self.tuned if row.tuned else self.case.world.model

    @cached_property
    def tuned(self) -> Any:
        case = self.case
        inputs = {"steps": self.tuning, "learning_rate": TUNING_RATE}
        return TuneAVideo.execute(
            model=case.world.model, latents=case.latents, positive=case.source_prompt, **inputs
        ).args[0]

    @cached_property
    def keyframes(self) -> Keyframes:
        return Keyframes(self.case)

    def edit(self, row: Row, found: Any, surface: str) -> Tensor:
        """The row's edit of the clip, (N, h, w, 3). found: the row's correspondences."""
        if row.keyframes:
            return rerendered(self.keyframes, found, surface, self.model(row), row.injected)
        inputs = row.mode, row.injected, self.model(row)
        return self.case.edit(found, surface, *inputs, **row.sampling)

    def correspondences(self, row: Row) -> Any:
        source, case = row.source, self.keyframes if row.keyframes else self.case
        if source not in self.features:
            if self.alone:
                self.features.clear()
                self.found.clear()
            model = self.model(row)
            inversion = public_inversion(case) if row.public else case.invert(model)
            self.features[source] = case.features(
                inversion, model, **{"storage": self.storage, **row.features}
            )
        inputs = (*source, row.fixed)
        if inputs not in self.found:
            choices = {"keyframes": FIXED} if row.fixed else {}
            choices |= {"intervals": EVEN} if row.public else {}
            self.found[inputs] = case.match(self.features[source], seed=self.seed, **choices)
        return self.found[inputs]
