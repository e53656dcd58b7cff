"""What an edit takes beside plain sampling and beside the method's public code, as flat figures.

All are of STEPS steps of inversion and as many of sampling. Where fewer were measured, stages are
put together from what they are made of: sampling from its steps, the inversion from its model
calls, the search from the pairs of frames that so many steps draw. The steps that are measured
take what is left of the step before as those of fifty do, which lie close.

sampling, sampling_injected: ours to the host's plain sampling, without and with Plug-and-Play.
first_edit: inversion, features, matches and sampling with Plug-and-Play, to the public code's
inversion and sampling with attention fused; first_edit_every_other with the inversion that asks the
model at every other step. second_edit: sampling with Plug-and-Play, to the same.
second_edit_8_steps: eight steps of such sampling, which lie far apart and take nothing, to STEPS of
the host's plain one.
The same with lean. in front are of the preset lean.
Transformers have no first_edit and no second_edit: the public code does not know them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tokenflow_pack.nodes.inversion import EVERY_OTHER, EXTRAPOLATED
from torch import Tensor

from bench.tools.costs.steps import asked

STEPS, FEW = 50, 8


@dataclass(frozen=True)
class Stages:
    """Seconds of every round, (rounds,), and of how many steps they are. far: of injected sampling
    whose steps take nothing of each other. public: of the public code's inversion and sampling,
    where the model is one of its kind.
    """

    steps: int
    interval: int
    plain: Tensor
    free: Tensor
    injected: Tensor
    far: Tensor
    inversion: Tensor
    features: Tensor
    matches: Tensor
    public: Tensor | None

    def ratios(self) -> dict[str, Tensor]:
        """By figure, (rounds,)."""
        found = {
            "sampling": self.free / self.plain,
            "sampling_injected": self.injected / self.plain,
            "second_edit_8_steps": self.far * FEW / STEPS / self.plain,
        }
        if self.public is None:
            return found
        whole = STEPS / self.steps
        public, second = self.public * whole, self.injected * whole
        a_call = self.inversion / asked(self.steps, EXTRAPOLATED)
        rest = self.features + second
        rest = rest + self.matches * pairs(STEPS, self.interval) / pairs(self.steps, self.interval)
        return found | {
            "first_edit": (a_call * asked(STEPS, EXTRAPOLATED) + rest) / public,
            "first_edit_every_other": (a_call * asked(STEPS, EVERY_OTHER) + rest) / public,
            "second_edit": second / public,
        }


def pairs(steps: int, interval: int) -> float:
    """Keyframes that a frame is matched with: two a step, of which those that are drawn again are
    not searched again.
    """
    return min(2.0 * steps, 2.5 * interval)


def write(path: Path, ratios: Mapping[str, Tensor], model: str) -> None:
    """Adds the medians to a file of flat figures, with .low and .high where there are several
    rounds; names of other models than the embedded UNet have the model's in front.
    """
    found = json.loads(path.read_text()) if path.exists() else {}
    prefix = "" if model == "embedded" else f"{model}."
    for name, rounds in ratios.items():
        values = rounds.tolist()
        found[prefix + name] = round(median(values), 4)
        if len(values) > 1:
            low, high = min(values), max(values)
            found |= {f"{prefix}{name}.low": round(low, 4), f"{prefix}{name}.high": round(high, 4)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
