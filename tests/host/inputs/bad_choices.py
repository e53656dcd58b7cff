"""Bad input: numbers, choices and texts that the host lets through: linked ones, NaN,
what is of another type.
"""

from __future__ import annotations

import math
from typing import Any

from .bad_input import (
    APPLY,
    BUILD,
    CARRY,
    CHECK,
    COMPARE,
    CORRESPONDENCES,
    ENCODE,
    EXTRACT,
    FEATURES,
    FIND_MASK,
    INJECTION,
    INVERT,
    METRICS,
    PICK,
    SAMPLER,
    TO_VIDEO,
    TUNE,
    Row,
    frames,
    run,
    wrong,
)
from .bad_models import distilled

NUMBERS = [
    wrong("ten thousand steps", INVERT, "steps", 10_000, "10000", "from 1 to 1000"),
    wrong("no steps", INVERT, "steps", 0, "0", "from 1 to 1000"),
    wrong("a share of a step", INVERT, "steps", 1.5, "1.5, which is no INT", "INT"),
    wrong("a text as a number", TUNE, "steps", "500", "'500', which is no INT", "INT"),
    wrong("no number", INVERT, "frames_per_pass", None, "NoneType, which is no INT", "INT"),
    wrong("passes of less than nothing", EXTRACT, "frames_per_pass", -1, "-1", "from 0"),
    Row(
        "a schedule that repeats noise levels",
        INVERT,
        "steps",
        lambda: repeats(),
        "'simple' .* at 100",
        "'normal'",
    ),
    wrong(
        "a scheduler that fails at one step",
        INVERT,
        "steps",
        1,
        "'kl_optimal' .* at 1 steps",
        "'normal'",
        scheduler="kl_optimal",
    ),
    wrong("no depth", INVERT, "depth", 0.0, "0.0", "from 0.01 to 1"),
    wrong("guidance that is NaN", SAMPLER, "cfg", math.nan, "nan", "from 0.0 to 100"),
    wrong("guidance without end", SAMPLER, "cfg", math.inf, "inf", "from 0.0 to 100"),
    wrong("a start above the noise", SAMPLER, "start", 1.01, "1.01", "to 1.0"),
    wrong("a negative seed", SAMPLER, "seed", -1, "-1", "from 0 to"),
    wrong("a seed of more than 64 bits", BUILD, "seed", 2**64, "beyond 64 bits", "from 0 to"),
    wrong("a seed of thousands of digits", TUNE, "seed", 10**5000, "beyond 64 bits", "from 0 to"),
    wrong("keyframes of no interval", BUILD, "keyframe_interval", 0, "0", "from 1 to 4096"),
    wrong("a window of negative size", BUILD, "search_window", -2, "-2", "from 0 to 1024"),
    wrong(
        "FAISS with a window",
        BUILD,
        "search_window",
        2,
        "FAISS searches",
        "Choose auto or torch",
        backend="faiss",
    ),
    wrong("keyframes too many", CORRESPONDENCES, "attended_keyframes", 5000, "5000", "to 4096"),
    wrong("a share above one", INJECTION, "attention_until", 1.5, "1.5", "to 1.0"),
    wrong("a share that is NaN", INJECTION, "features_until", math.nan, "nan", "to 1.0"),
    wrong("a level below the cleanest", FEATURES, "noise_level", -0.1, "-0.1", "from 0.0"),
    wrong("a sensitivity that is NaN", FIND_MASK, "sensitivity", math.nan, "nan", "from 0.1 to 10"),
    wrong("a mask that shrinks", FIND_MASK, "grow", -1, "-1", "from 0 to 256"),
    wrong("a negative number of frames", CHECK, "most_frames", -1, "-1", "from 0"),
    wrong("a learning rate that is NaN", TUNE, "learning_rate", math.nan, "nan", "from 1e-07"),
    wrong("a start behind the end", ENCODE, "start", 9, "number 9 on", "it has 2"),
    wrong("a frame that is none", CARRY, "numbers", "2", "frame 2 of a clip of 2", "0 to 1"),
    wrong("words for numbers", CARRY, "numbers", "0, two", "'two'", "counted from 0"),
    wrong(
        "two numbers, one picture",
        CARRY,
        "keyframes",
        lambda: frames()[:1],
        "1 pictures for 2",
        "per number",
        numbers="0, 1",
    ),
    wrong(
        "numbers that are left out",
        PICK,
        "numbers",
        "",
        "no frame number",
        "0, 8, 16",
        choice="by number",
    ),
    wrong("keyframes of no step", PICK, "every", 0, "0", "from 1"),
    wrong("no keyframe in a shot", PICK, "most", 0, "0", "from 1"),
    wrong("frames of no step", ENCODE, "every", 0, "0", "from 1 to"),
    wrong("a frame rate that is NaN", TO_VIDEO, "frame_rate", math.nan, "nan", "to 1000"),
    wrong("a frame rate next to nothing", TO_VIDEO, "frame_rate", 1e-9, "1e-09", "thousandth"),
    wrong("a quality beyond the worst", TO_VIDEO, "crf", 52, "52", "to 51"),
    wrong("moments too many", COMPARE, "moments", 10**9, "1000000000", "to 64"),
    wrong(
        "a list as a switch",
        TUNE,
        "gradient_checkpointing",
        [True],
        "type list, which is no BOOLEAN",
        "BOOLEAN",
    ),
]


def repeats() -> Any:
    return run(INVERT, model=distilled(), steps=100, scheduler="simple")


CHOICES = [
    wrong(
        "an unknown mode",
        SAMPLER,
        "consistency",
        "tokenflow 2",
        "'tokenflow 2', which is none of its 8",
        "Choose tokenflow, joint",
    ),
    wrong("an unknown preset", APPLY, "preset", "best", "'best'", "Choose balanced"),
    wrong(
        "an unknown sampler", SAMPLER, "sampler_name", "euler\0", r"'euler\\x00'", "Choose euler"
    ),
    wrong("an unknown scheduler", INVERT, "scheduler", "", "'', which is none", "Choose simple"),
    wrong(
        "an unknown kind of keyframes",
        BUILD,
        "keyframes",
        "Fixed",
        "'Fixed'",
        "Choose random at every step, fixed",
    ),
    wrong("a number as a choice", EXTRACT, "layers", 1, "1, which is no COMBO", "COMBO"),
    wrong(
        "several choices",
        EXTRACT,
        "storage",
        ["memory", "disk"],
        "type list, which is no COMBO",
        "COMBO",
    ),
    wrong("nothing chosen", INJECTION, "layers", None, "NoneType, which is no COMBO", "COMBO"),
    wrong(
        "a very long choice",
        BUILD,
        "blend",
        "x" * 10**6,
        r"x\.\.\., which is none",
        "Choose nearest",
    ),
    wrong(
        "a resolution that is none", FEATURES, "resolution", "coarse", "'coarse'", "Choose finest"
    ),
    wrong(
        "a layer that is none",
        FEATURES,
        "layer",
        "attn1",
        "no self-attention layer is called 'attn1'",
        "Leave it empty",
    ),
    wrong(
        "weights of optical flow that are not there",
        METRICS,
        "flow",
        "raft.pth",
        "no file 'raft.pth'",
        "choose DIS",
    ),
    wrong("weights outside of the folder", METRICS, "flow", "../../x.pth", "no file", "choose DIS"),
    wrong("names too many", COMPARE, "names", "a, b", "2 names for 1 edits", "as many names"),
    wrong(
        "an edit called as another input",
        METRICS,
        "names",
        "source",
        "a name twice",
        "a name of its own",
    ),
    wrong(
        "a name of a million characters", COMPARE, "names", "x" * 10**6, "more than 200", "shorter"
    ),
    wrong(
        "half of a character", METRICS, "names", "\ud800", r"'\\ud800', with characters", "again"
    ),
    wrong(
        "a prompt to score without CLIP",
        METRICS,
        "clip",
        None,
        "nothing there",
        "clip_vision",
        prompt="a star",
    ),
]

ROWS = [*NUMBERS, *CHOICES]
