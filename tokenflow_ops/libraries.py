"""Libraries that only a part of all this needs, imported when they are first asked for.

One that is missing or broken takes away what needs it and nothing else; the error quotes
its own words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pkgutil import resolve_name
from types import ModuleType

LONGEST = 300  # letters of a library's own words


@dataclass(frozen=True)
class Library:
    """A library: what is used of it, and what brings it.

    Attributes:
        name: As people call it.
        uses: What must be there, as `pkgutil.resolve_name` takes it.
        packages: What brings it, the usual first.
    """

    name: str
    uses: tuple[str, ...]
    packages: tuple[str, ...]

    @property
    def package(self) -> str:
        """The package that is installed, or that is to be."""
        return next(
            (package for package in self.packages if _is_installed(package)), self.packages[0]
        )


# By module.
LIBRARIES = {
    "faiss": Library(
        "FAISS",
        ("faiss:__version__", "faiss:IndexFlatIP"),
        ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cu11"),
    ),
    "cv2": Library(
        "OpenCV",
        ("cv2:DISOpticalFlow_create", "cv2:cvtColor", "cv2:grabCut", "cv2:threshold"),
        (
            "opencv-python-headless",
            "opencv-python",
            "opencv-contrib-python",
            "opencv-contrib-python-headless",
        ),
    ),
    "kornia": Library(
        "kornia",
        (
            "kornia:color.hsv_to_rgb",
            "kornia:color.rgb_to_grayscale",
            "kornia:filters.laplacian",
            "kornia:filters.spatial_gradient",
            "kornia:geometry.transform.remap",
        ),
        ("kornia",),
    ),
    "matplotlib": Library(
        "matplotlib",
        (
            "matplotlib:colormaps",
            "matplotlib.backends.backend_agg:FigureCanvasAgg",
            "matplotlib.figure:Figure",
            "matplotlib.font_manager:findfont",
            "matplotlib.lines:Line2D",
            "matplotlib.ticker:MaxNLocator",
            "matplotlib.transforms:IdentityTransform",
        ),
        ("matplotlib",),
    ),
    "torchvision": Library(
        "torchvision",
        (
            "torchvision.models.optical_flow:raft_large",
            "torchvision.models.optical_flow:raft_small",
        ),
        ("torchvision",),
    ),
}


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


class LibraryError(ImportError):
    """A library is missing, or does not do what is asked of it.

    The message says which and why, `remedy` how to get one that does.

    Args:
        module: The library's module, one of LIBRARIES.
        error: What it has raised.
    """

    def __init__(self, module: str, error: Exception) -> None:
        wanted = LIBRARIES[module]
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            found, self.remedy = "is not installed", f"pip install {wanted.packages[0]}"
        else:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            found = f"is installed and does not work ({words[:LONGEST]})"
            self.remedy = f"pip install --force-reinstall --no-deps {wanted.package}"
        super().__init__(f"{wanted.name} {found}")


def library(module: str) -> ModuleType:
    """Returns a library with all that is used of it.

    Args:
        module: One of LIBRARIES.

    Returns:
        The imported module.

    Raises:
        LibraryError: If it is missing or broken.
    """
    found = _found(module)
    if isinstance(found, LibraryError):
        raise found.with_traceback(None)
    return found


@cache
def _found(module: str) -> ModuleType | LibraryError:
    """Looked for once: what a broken library says when it is imported again is something else."""
    try:
        for use in LIBRARIES[module].uses:
            resolve_name(use)
        return import_module(module)
    except Exception as error:  # whatever its own code raises
        return LibraryError(module, error)


@contextmanager
def working(module: str) -> Iterator[ModuleType]:
    """Gives a library while it is used; whatever is raised meanwhile is the library's own error.

    Args:
        module: One of LIBRARIES.

    Yields:
        The imported module.

    Raises:
        LibraryError: If it is missing or broken, or in place of what is raised meanwhile.
    """
    found = library(module)
    try:
        yield found
    except Exception as error:
        raise LibraryError(module, error) from error
