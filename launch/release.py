"""What a release holds: the files that git does not ignore, without those of .comfyignore."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pathspec import GitIgnoreSpec

from .environment import ROOT


def checkout_files(ignored: tuple[str, ...] = (".gitignore",)) -> list[Path]:
    """Lists the files of the checkout, relative and sorted.

    What the files named by `ignored` leave out is not among them.
    """
    lines = [line for name in ignored for line in (ROOT / name).read_text().splitlines()]
    spec = GitIgnoreSpec.from_lines([".git", *lines])
    found = []
    for folder, folders, names in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = [name for name in folders if not spec.match_file(f"{here / name}/")]
        found += [here / name for name in names if not spec.match_file(here / name)]
    return sorted(found)


def released_files() -> list[Path]:
    """Lists the files of a release, relative and sorted."""
    return checkout_files((".gitignore", ".comfyignore"))


def copy_files(files: list[Path], folder: Path) -> None:
    """Copies files of the checkout into a folder.

    Args:
        files: Relative to the checkout.
        folder: Where they go, at the same relative paths. It is made.
    """
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, target)
