"""What `helpers` has, on a smaller model: for tests where its depth is no matter."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from . import helpers
from .helpers import NEGATIVE, POSITIVE
from .once import once_a_session
from .tiny_models import SMALL_SD15, tiny_unet


@once_a_session
def tiny_model(seed: int = 0) -> Any:
    return tiny_unet(SMALL_SD15, seed)


inverted = partial(helpers.inverted, of=tiny_model)
extracted = partial(helpers.extracted, of=tiny_model)
matched = partial(helpers.matched, of=tiny_model)
stock = partial(helpers.stock, of=tiny_model)


def edit(
    model: Any = None,
    positive: Any = POSITIVE,
    negative: Any = NEGATIVE,
    correspondences: Any = None,
    **inputs: Any,
) -> Tensor:
    """TokenFlow Sampler's latents."""
    return helpers.edit(
        model or tiny_model(), positive, negative, correspondences or matched(), **inputs
    )


def applied(model: Any = None, correspondences: Any = None, **inputs: Any) -> Any:
    """Apply TokenFlow's model."""
    return helpers.applied(model or tiny_model(), correspondences or matched(), **inputs)
