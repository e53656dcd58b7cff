"""What comes to the UNet, compared with what the host made ready for it.

Patches between the two (`model_function_wrapper`: Tiled Diffusion and its like) may hand the UNet
tiles, other rows or another size. Whole conditionings with all their keys may come in any number of
calls; from anything else the passes would make other frames' features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...tokenflow_ops.passes import Place
from ..conditioning.conds import Conds
from .errors import NodeError

REMEDY = (
    "Remove it from the model: TokenFlow takes clips of any length and size in passes by itself "
    "(frames_per_pass)."
)
# Distances, 1 - cosine. A row is another frame's if it is closer than SAME to that frame and
# further than OTHER from its own.
SAME, OTHER = 1e-4, 1e-3


@dataclass
class Entrance:
    """One pass's way into the UNet.

    Attributes:
        node: The node's name, for errors.
        latents: (n, C, h, w) of the pass's frames.
        conds: Their conditionings.
        place: By uuid which conditioning it is.
        patched: Whether the model has a patch that stands between the host and the UNet.
    """

    node: str
    latents: Tensor
    conds: Conds
    place: Mapping[Any, Place]
    patched: bool
    _reached: set[Place] = field(default_factory=set)

    def check(self, x: Tensor, options: Mapping[str, Any]) -> None:
        """Checks that the UNet's input is whole conditionings of the pass.

        Args:
            x: The UNet's input, (rows * n, C, h, w).
            options: The host's transformer_options, which name the conditionings.

        Raises:
            NodeError: If it is not.
        """
        places = [self.place.get(uuid) for uuid in options.get("uuids", ())]
        if not places or None in places:
            self._refuse("its batch without the keys of its conditionings", "rebuilds the batch")
        frames, (height, width) = len(self.latents), self.latents.shape[2:]
        found, size = tuple(x.shape[2:]), f"{self.latents.shape[3]} x {self.latents.shape[2]}"
        if found not in self._sizes():
            smaller = x.shape[2] * x.shape[3] < height * width
            kind = (
                "cuts frames into tiles (Tiled Diffusion, MultiDiffusion)"
                if smaller
                else "enlarges frames"
            )
            self._refuse(
                f"pictures of {x.shape[3]} x {x.shape[2]} latent pixels instead of {size}", kind
            )
        if len(x) != len(places) * frames:
            kind = (
                "cuts the batch between frames"
                if len(x) < len(places) * frames
                else "repeats frames"
            )
            self._refuse(f"a batch of {len(x)} instead of {len(places)} x {frames} pictures", kind)
        if self.patched and found == (height, width):
            self._check_order(x[:, : self.latents.shape[1]].unflatten(0, (len(places), frames)))
        self._reached.update(place for place in places if place is not None)

    def check_reached(self, denoised: Sequence[Tensor]) -> None:
        """Checks that every answer came through `check`.

        Answers of lists of conditionings that were not evaluated are zero, and do not count.

        Args:
            denoised: The answers (n, C, h, w), one for each list of conditionings.

        Raises:
            NodeError: If one did not.
        """
        reached = {listed for listed, _ in self._reached}
        if any(i not in reached and bool(part.any()) for i, part in enumerate(denoised)):
            self._refuse(
                "no batch with what TokenFlow hands over",
                "leaves calls out or drops transformer_options (caches such as TeaCache)",
            )

    def _sizes(self) -> set[tuple[int, ...]]:
        """Sizes of whole frames, and of the areas that conditionings are limited to.

        An area ends where the frame does.
        """
        height, width = self.latents.shape[2:]
        areas = [
            entry["area"] for entries in self.conds for entry in entries or () if "area" in entry
        ]
        return {(height, width), *((min(h, height - y), min(w, width - x)) for h, w, y, x in areas)}

    def _check_order(self, rows: Tensor) -> None:
        """rows: (conditionings, n, C, h, w), the latents scaled."""
        wanted = torch.nn.functional.normalize(
            self.latents.flatten(1).to(rows.device, torch.float32)
        )
        alike = torch.nn.functional.normalize(rows.flatten(2).float(), dim=-1) @ wanted.T
        best, own = alike.amax(-1), alike.diagonal(dim1=1, dim2=2)
        if bool(((best > 1 - SAME) & (own < 1 - OTHER)).any()):
            self._refuse("frames in another order", "rearranges the batch")

    def _refuse(self, found: str, kind: str) -> None:
        raise NodeError(
            self.node, "model", f"the UNet gets {found}: a patch on the model {kind}.", REMEDY
        )
