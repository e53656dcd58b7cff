"""`python -m launch.judges`: outside judges of what a release holds, comfy-cli and nodesafe.

They bring packages of their own, and so have an environment of their own. A finding must be answered in docs/registry.md, in a table row
that begins with its category and the files it may be in; an answer without a finding is stale.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from .environment import HOST, ROOT, SetupError, Stage, make_venv, pip
from .release import checkout_files, copy_files, released_files

REQUIREMENTS = ROOT / "launch" / "judges.txt"
VENV = HOST / "judges"
PROGRAMS = VENV / ("Scripts" if os.name == "nt" else "bin")
ANSWERS = ROOT / "docs" / "registry.md"
ANSWER = re.compile(r"^\| `([a-z_]+)` \| `([^`]+)` \| .+ \|$", re.MULTILINE)


def main() -> int:
    """Judges a release of the checkout and prints what is wrong; returns the exit code."""
    try:
        install()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        checkout, release = Path(folder, "checkout"), Path(folder, "release")
        copy_files(checkout_files(), checkout)
        problems = [*pack(checkout, release), *validate(release), *scan(release)]
    print(*problems or ["nothing that is not answered in docs/registry.md"], sep="\n")
    return int(bool(problems))


def install() -> None:
    """Makes the judges' environment where it is missing or stale. Raises SetupError."""
    stamp, digest = VENV / "stamp", hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    with Stage(f"installing judges ({REQUIREMENTS.relative_to(ROOT)})"):
        make_venv(VENV)
        pip(PROGRAMS / "python", "install", "--no-compile", "-r", str(REQUIREMENTS))
    stamp.write_text(digest)


def pack(checkout: Path, release: Path) -> Iterator[str]:
    """Packs a checkout with comfy-cli and unpacks it at `release`; yields what is there too much or too little."""
    comfy(checkout, "node", "pack")
    with zipfile.ZipFile(checkout / "node.zip") as packed:
        packed.extractall(release)
        different = {file.as_posix() for file in released_files()} ^ set(packed.namelist())
    yield from (f"comfy-cli: {name} is packed or left out other than .comfyignore says" for name in sorted(different))


def validate(release: Path) -> Iterator[str]:
    """What comfy-cli says of a pack before it publishes it, unless that is nothing."""
    said = comfy(release, "node", "validate")
    if "All validation checks passed" not in said or re.search("warning|error", said, re.IGNORECASE):
        yield f"comfy-cli: {said}"


def comfy(folder: Path, *arguments: str) -> str:
    """What comfy-cli prints in a folder. It asks nothing and reports nothing, and its settings stay in the judges' environment."""
    quiet = {"DO_NOT_TRACK": "1", "NO_COLOR": "1", "HOME": str(VENV), "XDG_CONFIG_HOME": str(VENV / "config")}
    command = [str(PROGRAMS / "comfy"), "--skip-prompt", "--no-json", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | quiet, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout


def scan(release: Path) -> Iterator[str]:
    """Findings of nodesafe without an answer, and answers without a finding."""
    command = [str(PROGRAMS / "nodesafe"), "scan", "--format", "json", "--fail-on", "none", str(release)]
    findings = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)["findings"]
    answers = ANSWER.findall(ANSWERS.read_text())
    used = set()
    for finding in findings:
        fitting = {answer for answer in answers if finding["category"] == answer[0] and fnmatch(finding["file"] or "", answer[1])}
        used |= fitting
        if not fitting:
            yield f"nodesafe: {finding['file']}:{finding['line']}: {finding['category']} ({finding['severity']}): {finding['title']}"
    yield from (f"docs/registry.md answers {category} in {files}, which nodesafe does not find" for category, files in set(answers) - used)


if __name__ == "__main__":
    sys.exit(main())
