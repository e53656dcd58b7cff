"""What a release holds: the files that git does not ignore, without those of .comfyignore.

`python -m launch.release v0.2.0` prints what it says to users.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
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


def notes(version: str) -> str:
    """Reads what a version's release says to users.

    Args:
        version: As pyproject.toml has it, or with a v before it as tags have.

    Returns:
        The changelog's section of that version, without its heading.

    Raises:
        ValueError: If pyproject.toml has another version, or the changelog no section of it.
    """
    version = version.removeprefix("v")
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    if project is None or project[1] != version:
        found = project[1] if project else "none"
        raise ValueError(f"pyproject.toml has version {found}, not {version}")
    sections = re.split(r"^## \[(.+)\].*$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    told = dict(zip(sections[1::2], sections[2::2], strict=True))
    if not told.get(version, "").strip():
        raise ValueError(f"CHANGELOG.md has no section [{version}]: name it before the release")
    return told[version].strip()


if __name__ == "__main__":
    print(notes(sys.argv[1]))
