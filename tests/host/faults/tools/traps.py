"""A model with something of another pack at every place that the host offers,
each of which can be made to fail.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import CallbacksMP, WrappersMP

from .moments import Fault

WRAPPERS = (
    WrappersMP.OUTER_SAMPLE,
    WrappersMP.PREPARE_SAMPLING,
    WrappersMP.SAMPLER_SAMPLE,
    WrappersMP.PREDICT_NOISE,
    WrappersMP.CALC_COND_BATCH,
    WrappersMP.APPLY_MODEL,
    WrappersMP.DIFFUSION_MODEL,
)
CALLBACKS = CallbacksMP.ON_PRE_RUN, CallbacksMP.ON_CLEANUP
TOKENS = "attn1_patch", "attn2_patch", "attn1_output_patch", "attn2_output_patch"
BLOCKS = "input_block_patch", "input_block_patch_after_skip", "output_block_patch"


class Traps:
    """Counts what is called, by name; the call that is armed raises a `Fault`, once."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.armed = "", 0

    def arm(self, name: str, number: int) -> None:
        """Lets the `number`-th call of that name fail, counted from now."""
        self.seen.clear()
        self.armed = name, number

    def pass_by(self, name: str) -> None:
        """One call."""
        self.seen[name] += 1
        if (name, self.seen[name]) == self.armed:
            self.armed = "", 0
            raise Fault(name)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with a call before and after it."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.pass_by(f"before {name}")
            found = function(*args, **kwargs)
            self.pass_by(f"after {name}")
            return found

        return wrapped

    def on(self, model: Any, blocks: bool) -> Any:
        """A clone with all of it. blocks: with patches on the UNet's blocks too, whose presence
        makes frames run what is below them.
        """
        clone = model.clone()
        for kind in WRAPPERS:
            clone.add_wrapper_with_key(
                kind,
                "trap",
                lambda executor, *args, kind=kind, **kwargs: self.around(kind, executor)(
                    *args, **kwargs
                ),
            )
        for kind in CALLBACKS:
            clone.add_callback_with_key(kind, "trap", lambda *_, kind=kind: self.pass_by(kind))
        clone.set_model_unet_function_wrapper(
            self.around("unet wrapper", lambda run, of: run(of["input"], of["timestep"], **of["c"]))
        )
        clone.set_model_sampler_pre_cfg_function(
            self.around("before cfg", lambda given: given["conds_out"])
        )
        clone.set_model_sampler_post_cfg_function(
            self.around("after cfg", lambda given: given["denoised"])
        )
        for kind in TOKENS:
            several = kind in ("attn1_patch", "attn2_patch")
            clone.set_model_patch(
                self.around(
                    kind, lambda *given, several=several: given[:3] if several else given[0]
                ),
                kind,
            )
        for kind in BLOCKS if blocks else ():
            several = kind == "output_block_patch"
            clone.set_model_patch(
                self.around(
                    kind, lambda *given, several=several: given[:2] if several else given[0]
                ),
                kind,
            )
        return clone

    def some(self, seed: int) -> list[tuple[str, int]]:
        """Every name that was seen, with the number of one of its calls."""
        drawing = random.Random(seed)
        return [(name, drawing.randint(1, count)) for name, count in sorted(self.seen.items())]
