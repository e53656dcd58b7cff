"""The embedded clip, where the host's Load Video finds it."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import folder_paths

CLIP = Path(__file__).resolve().parents[2] / "demo" / "tokenflow_star.mp4"


def offer_clip() -> None:
    """Puts the embedded clip into the host's input folder, under its own name, whole or not at all.

    A file that has this name already stays as it is. A folder that cannot be written to is reported
    in the log: everything else works without it.
    """
    folder = Path(folder_paths.get_input_directory())
    try:
        if not os.path.lexists(folder / CLIP.name):
            _put(folder)
    except OSError as error:
        logging.warning(
            "TokenFlow: the templates' clip could not be put into %s (%s). Copy %s there.",
            folder,
            error,
            CLIP,
        )


def _put(folder: Path) -> None:
    part = folder / f".{CLIP.name}.{os.getpid()}"  # servers that share a folder may start at once
    try:
        shutil.copyfile(CLIP, part)
        try:
            os.link(part, folder / CLIP.name)  # unlike a renamed file it replaces no other
        except FileExistsError:
            pass
        except OSError:  # file systems without hard links
            os.rename(part, folder / CLIP.name)
    finally:
        part.unlink(missing_ok=True)
