"""The nodes' door: what comes in is what the schema says, or the user is told what came instead.

What is not used of it is told too.

The host compares linked sockets by the names of their types, and values with their ranges as they
stand in a prompt. Anything may come in all the same: a linked number is in no range, NaN passes
every comparison, a prompt of the API may hold a text in place of a link, and nodes of other packs
may give what they like.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..host.validation.errors import NodeError, library_error
from ..host.video.reading import held_pictures
from ..tokenflow_ops import Correspondences, Injection, Inversion, SourceFeatures
from ..tokenflow_ops.carrying.given import GivenKeyframes
from ..tokenflow_ops.libraries import LibraryError, library
from .schema import (
    CorrespondencesSocket,
    FeaturesSocket,
    InjectionSocket,
    InversionSocket,
    KeyframesSocket,
)

# What `validate_inputs` sees of a socket without a link; of a linked one, or of a widget's that is
# linked, it sees None.
UNCONNECTED = "unconnected"
# Pictures and masks have values from 0 to 1; bicubic interpolation overshoots by less than this.
OVERSHOOT = 0.5
LONGEST_SHOWN = 60


def checked(
    *own: str, needs: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a decorator of a node's `execute` that checks its inputs and its libraries first.

    Inputs are compared with the node's schema. The error calls an input as the node does. What of
    an input is not used is said on the node and in the log.

    Args:
        *own: Combos of files, which come and go while the host runs: the node looks for them
            itself.
        needs: Of `libraries.LIBRARIES`, those that the node cannot do without.

    Returns:
        The decorator.

    Raises:
        NodeError: When the node runs, for the first input that does not fit, or for a library that
            is missing or fails.
    """

    def wrap(execute: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(execute)
        # One, made when it is first needed: packs loaded after this one may bring samplers.
        schemas: list[Any] = []

        @functools.wraps(execute)
        def checking(cls: Any, *args: Any, **inputs: Any) -> Any:
            if not schemas:
                schemas.append(cls.define_schema())
            (schema,) = schemas
            # Some inputs have no name in the signature.
            given = signature.bind(cls, *args, **inputs).arguments | inputs
            notes = []
            for wanted in schema.inputs:
                if wanted.id in given:
                    value = given[wanted.id]
                    kind = "STRING" if wanted.id in own else str(wanted.get_io_type())
                    _compare(schema, kind, wanted, value)
                    if (note := _note(_fitting(kind, value), value)) is not None:
                        notes.append(f"{wanted.display_name or wanted.id}: {note}")
            try:
                for module in needs:
                    library(module)
                output = execute(cls, *args, **inputs)
            except LibraryError as error:
                raise library_error(schema.display_name, error) from error
            return _with_notes(output, schema.display_name, notes) if notes else output

        return checking

    return wrap


def before_run(
    node: type[io.ComfyNode],
    given: Mapping[str, Any],
    check: Callable[[], object] = lambda: None,
    needs: tuple[str, ...] = (),
) -> bool | str:
    """Answers the host's question whether a node's inputs are good before anything has run.

    Pages since 2026 show these words, and of errors in a run only that there was one. The host asks
    no more about the range of an input that `validate_inputs` names, so it is looked at here.

    Args:
        node: The node's class.
        given: Values of widgets by their ids, None for linked ones.
        check: Raises NodeError for what else can be known.
        needs: Of `libraries.LIBRARIES`, those that the node cannot do without.

    Returns:
        True, or why the node would fail.
    """
    schema = node.define_schema()
    try:
        for wanted in schema.inputs:
            if given.get(wanted.id) is not None:
                _compare(schema, str(wanted.get_io_type()), wanted, given[wanted.id])
        for module in needs:
            library(module)
        check()
    except LibraryError as error:
        return str(library_error(schema.display_name, error))
    except NodeError as error:
        return str(error)
    return True


def _compare(schema: io.Schema, kind: str, wanted: Any, value: Any) -> None:
    """Raises: NodeError for a value that is not what the schema says."""
    if (found := _mistake(_fitting(kind, value), wanted, value)) is not None:
        raise NodeError(schema.display_name, wanted.display_name or wanted.id, *found)


def _fitting(kind: str, value: Any) -> str:
    """Of the types that an input takes that of a value; all of them in words if it has none."""
    kinds = kind.split(",")
    return next((one for one in kinds if one in TYPES and TYPES[one](value)), " or ".join(kinds))


# What was found and what to do.
Mistake = tuple[str, str]


def _mistake(kind: str, wanted: Any, value: Any) -> Mistake | None:
    """What is wrong with the value of an input of this type, if anything."""
    if value is None and not isinstance(wanted, io.WidgetInput):
        return None if wanted.optional else ("nothing there.", f"Connect a {kind}.")
    if kind not in TYPES or not TYPES[kind](value):
        return f"{_shown(value)}, which is no {kind}.", f"Give a {kind}."
    if kind == "STRING" and not _is_unicode(value):
        return f"{_shown(value)}, with characters that no text may have.", "Type it again."
    if kind == "COMBO" and value not in wanted.options:
        return (
            f"{_shown(value)}, which is none of its {len(wanted.options)} choices.",
            f"Choose {_listed(wanted.options)}.",
        )
    if kind in ("INT", "FLOAT") and not wanted.min <= value <= wanted.max:  # nor is NaN
        return f"{_shown(value)}.", f"Give a number from {wanted.min} to {wanted.max}."
    if kind in ("IMAGE", "MASK"):
        return _mistake_in_pictures(kind, value)
    if kind == "VIDEO" and (pictures := held_pictures(value)) is not None:
        return _mistake_in_pictures("IMAGE", pictures)
    if kind == "LATENT" and (mask := value.get("noise_mask")) is not None:
        if not isinstance(mask, Tensor):
            return f"{_shown(mask)} as the noise mask.", "Set it with Set Latent Noise Mask."
        if (mistake := _mistake_in_pictures("MASK", mask)) is not None:
            return f"a noise mask: {mistake[0]}", mistake[1]
    return None


def _note(kind: str, value: Any) -> str | None:
    """What of a good value is not used, or may be there by mistake, if anything."""
    if kind == "IMAGE" and value is not None and value.shape[-1] > 3:
        return f"of {value.shape[-1]} channels red, green and blue are used, transparency is not"
    if (
        kind == "LATENT"
        and value is not None
        and isinstance(value["samples"], Tensor)
        and value["samples"].shape[:1] == (1,)
    ):
        return (
            "one frame. All frames of a clip belong into one batch; of a list each is run alone "
            "(Rebatch Latents makes a batch of it)"
        )
    return None


def _with_notes(output: Any, node: str, notes: list[str]) -> Any:
    """A node's output, with notes below what the node itself says."""
    for note in notes:
        logging.warning("%s, %s.", node, note)
    shown = (
        {}
        if output.ui is None
        else output.ui
        if isinstance(output.ui, dict)
        else output.ui.as_dict()
    )
    text = ui.PreviewText("\n".join([*shown.get("text", ()), *notes]))
    output.ui = {**shown, **text.as_dict()} if shown.keys() - {"text"} else text
    return output


def _mistake_in_pictures(kind: str, value: Tensor) -> Mistake | None:
    """Of pictures (N, H, W, 3 or more) or masks (N, H, W), (N, 1, H, W), (H, W)."""
    shape = tuple(value.shape)
    if kind == "IMAGE" and (len(shape) != 4 or shape[-1] < 3):
        return f"pictures of shape {shape}.", "Connect pictures of shape (N, height, width, 3)."
    if kind == "MASK" and not (2 <= len(shape) <= 3 or (len(shape) == 4 and shape[1] == 1)):
        return f"masks of shape {shape}.", "Connect masks of shape (N, height, width)."
    if value.numel() == 0:
        thing = "frame" if kind == "IMAGE" else "mask"
        return (
            f"nothing in it, shape {shape}.",
            f"Connect at least one {thing} with at least one pixel.",
        )
    if not value.is_floating_point():
        return f"numbers of type {value.dtype}.", "Connect floating-point values from 0 to 1."
    low, high = (float(bound) for bound in torch.aminmax(value))
    if not -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:  # nor is NaN
        return f"values from {low:.4g} to {high:.4g}.", "Connect values from 0 to 1, without NaN."
    return None


def _is_conditioning(value: Any) -> bool:
    """Whether it is a list of prompts, each an embedding and its options."""
    return isinstance(value, list) and all(
        isinstance(prompt, list | tuple)
        and len(prompt) == 2
        and isinstance(prompt[0], Tensor)
        and isinstance(prompt[1], dict)
        for prompt in value
    )


def _is_latent(value: Any) -> bool:
    samples = value.get("samples") if isinstance(value, dict) else None
    return isinstance(samples, Tensor) or getattr(samples, "is_nested", False)


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _has(*names: str) -> Callable[[Any], bool]:
    """For what other packs wrap: it can what the nodes ask of it."""
    return lambda value: not isinstance(value, type) and all(hasattr(value, name) for name in names)


TYPES: Mapping[str, Callable[[Any], bool]] = {
    "INT": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "FLOAT": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "BOOLEAN": _is(int),
    "STRING": _is(str),
    "COMBO": _is(str),
    "IMAGE": _is(Tensor),
    "MASK": _is(Tensor),
    "LATENT": _is_latent,
    "CONDITIONING": _is_conditioning,
    "MODEL": _has("clone", "get_model_object", "model", "model_options"),
    "VAE": _has("decode"),
    "VIDEO": _has("get_components", "save_to"),
    "CLIP": _has("tokenize", "encode_from_tokens"),
    "CLIP_VISION": _has("encode_image", "model"),
    str(InversionSocket.io_type): _is(Inversion),
    str(FeaturesSocket.io_type): _is(SourceFeatures),
    str(CorrespondencesSocket.io_type): _is(Correspondences),
    str(InjectionSocket.io_type): _is(Injection),
    str(KeyframesSocket.io_type): _is(GivenKeyframes),
}


def _is_unicode(text: str) -> bool:
    """Whether it can be written: JSON may hold halves of characters."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def _listed(options: list[str]) -> str:
    """As many options as an error has room for."""
    few = [
        option
        for i, option in enumerate(options)
        if sum(map(len, options[: i + 1])) < 2 * LONGEST_SHOWN
    ]
    return ", ".join(few) + (" or another of the list" if len(few) < len(options) else "")


def _shown(value: Any) -> str:
    """A value fit for an error message, whatever it is.

    Only plain ones are told, others may be large.
    """
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a number beyond 64 bits"
    if not isinstance(value, str | int | float):
        return f"something of type {type(value).__name__[:LONGEST_SHOWN]}"
    text = repr(value[:LONGEST_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
