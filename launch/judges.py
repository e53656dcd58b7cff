"""`python -m launch.judges`: outside judges of a release.

comfy-cli, nodesafe and bandit judge what it holds, pip-audit what it needs. They bring packages of
their own, and so have an environment of their own. A finding of nodesafe must be answered in
docs/registry.md, in a table row that begins with its category and the files it may be in; an answer
without a finding is stale. The others may find nothing.
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
from contextlib import suppress
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .environment import HOST, ROOT, SetupError, Stage, make_venv, pip
from .needs import PACK, requirements
from .needs import REQUIREMENTS as INSTALLED
from .release import checkout_files, copy_files, released_files

REQUIREMENTS = ROOT / "launch" / "judges.txt"
VENV = HOST / "judges"
PROGRAMS = VENV / ("Scripts" if os.name == "nt" else "bin")
ANSWERS = ROOT / "docs" / "registry.md"
# The launcher and the benches start programs, each by a list of words without a shell, ask servers
# on this machine by http, draw numbers, and call outputs and passes so; the trainer takes its
# tokenizer from the host's folder.
WORKSHOP = ("run.py", "launch", "bench", "cluster", "demo")
LAUNCHES = "B105,B310,B311,B404,B603,B606,B615"
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
        problems = [
            *pack(checkout, release),
            *validate(release),
            *scan(release),
            *weaknesses(release),
            *weaknesses(checkout, LAUNCHES),
        ]
    problems += audit()
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
    """Packs a checkout with comfy-cli and unpacks it.

    Args:
        checkout: The folder of the checkout.
        release: The folder it is unpacked at.

    Yields:
        What is there too much or too little, a line each.
    """
    comfy(checkout, "node", "pack")
    with zipfile.ZipFile(checkout / "node.zip") as packed:
        packed.extractall(release)
        different = {file.as_posix() for file in released_files()} ^ set(packed.namelist())
    yield from (
        f"comfy-cli: {name} is packed or left out other than .comfyignore says"
        for name in sorted(different)
    )


def validate(release: Path) -> Iterator[str]:
    """Yields what comfy-cli says of a pack before it publishes it, unless that is nothing."""
    said = comfy(release, "node", "validate")
    if "All validation checks passed" not in said or re.search(
        "warning|error", said, re.IGNORECASE
    ):
        yield f"comfy-cli: {said}"


def comfy(folder: Path, *arguments: str) -> str:
    """Runs comfy-cli in a folder.

    It asks nothing and reports nothing, and its settings stay in the judges' environment.

    Args:
        folder: Where it runs.
        *arguments: Of its command line.

    Returns:
        What it prints.
    """
    quiet = {
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
        "HOME": str(VENV),
        "XDG_CONFIG_HOME": str(VENV / "config"),
    }
    command = [str(PROGRAMS / "comfy"), "--skip-prompt", "--no-json", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | quiet,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ).stdout


def scan(release: Path) -> Iterator[str]:
    """Yields findings of nodesafe without an answer, and answers without a finding."""
    command = [str(PROGRAMS / "nodesafe"), "scan", "--format", "json"]
    command += ["--fail-on", "none", str(release)]
    findings = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    )["findings"]
    answers = ANSWER.findall(ANSWERS.read_text())
    used = set()
    for finding in findings:
        fitting = {
            answer
            for answer in answers
            if finding["category"] == answer[0] and fnmatch(finding["file"] or "", answer[1])
        }
        used |= fitting
        if not fitting:
            kind = f"{finding['category']} ({finding['severity']})"
            yield f"nodesafe: {finding['file']}:{finding['line']}: {kind}: {finding['title']}"
    yield from (
        f"docs/registry.md answers {category} in {files}, which nodesafe does not find"
        for category, files in set(answers) - used
    )


def weaknesses(folder: Path, but: str = "") -> Iterator[str]:
    """Yields what bandit finds in a release, or in the workshop of a checkout.

    Args:
        folder: The release or the checkout.
        but: Bandit's tests that are left out, with commas between. With any, it is the workshop
            that is looked at.

    Yields:
        A line for each finding.
    """
    places = [str(folder / name) for name in WORKSHOP] if but else [str(folder)]
    command = [str(PROGRAMS / "bandit"), "--quiet", "--recursive", "--format", "json"]
    command += ["--exit-zero", *places, "--configfile", str(ROOT / "pyproject.toml")]
    command += ["--skip", f"B101,{but}"] if but else []
    said = json.loads(
        subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
        ).stdout
    )
    for found in [*said["results"], *said["errors"]]:
        place = os.path.relpath(found["filename"], folder)
        text = found.get("issue_text", found.get("reason"))
        yield f"bandit: {place}:{found.get('line_number')}: {found.get('test_id')}: {text}"


def pinned_requirements() -> Iterator[str]:
    """Yields what requirements.txt asks for, in the versions that are here.

    Of FAISS's two builds one is here.
    """
    for name, _ in requirements(INSTALLED[PACK].read_text()):
        with suppress(PackageNotFoundError):
            yield f"{name}=={version(name)}"


def audit() -> Iterator[str]:
    """Yields known vulnerabilities of what requirements.txt brings, as installed here.

    Prints of how many packages nothing could be learned.
    """
    wanted = list(pinned_requirements())
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder, "requirements.txt")
        pinned.write_text("\n".join(wanted))
        command = [str(PROGRAMS / "pip-audit"), "--requirement", str(pinned), "--no-deps"]
        command += ["--disable-pip", "--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        packages = [{"name": name, "skip_reason": done.stderr} for name in wanted]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown:
        print(
            f"pip-audit: the advisories of {len(unknown)} of {len(packages)} packages "
            f"were not to be had: {', '.join(unknown)}"
        )
    for package in packages:
        for known in package.get("vulns", ()):
            mended = known["fix_versions"] or "none"
            which = f"{package['name']} {package['version']}"
            yield f"pip-audit: {which}: {known['id']}, mended in {mended}"


if __name__ == "__main__":
    sys.exit(main())
