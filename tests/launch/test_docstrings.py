"""Docstrings have the form that tools read: what a function takes is said under Args."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from .test_floors import FLOORS, ROOT

# What ComfyUI calls; their inputs are described in the node's schema.
HOSTS = {"execute", "define_schema", "fingerprint_inputs", "validate_inputs", "check_lazy_status"}
FEW = 1  # parameters that a summary can tell of


def public(node: ast.AST) -> Iterator[ast.FunctionDef]:
    """Functions and methods that others call, without those inside functions."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.ClassDef) and not inner.name.startswith("_"):
            yield from public(inner)
        elif isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
            yield inner


def parameters(function: ast.FunctionDef) -> list[str]:
    """Names, without self and cls."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [one.arg for one in every if one.arg not in ("self", "cls") and one.arg[0] != "_"]


def undocumented(function: ast.FunctionDef) -> list[str]:
    """The parameters that its docstring does not describe under Args."""
    _, _, described = (ast.get_docstring(function) or "").partition("\nArgs:\n")
    described = described.partition("\n\n")[0]
    return [
        name for name in parameters(function) if not re.search(rf"^ +{name}: ", described, re.M)
    ]


@pytest.mark.parametrize("floor", FLOORS)
def test_every_function_says_what_it_takes(floor: str) -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        for path in sorted((ROOT / floor).rglob("*.py"))
        for function in public(ast.parse(path.read_text()))
        if function.name not in HOSTS and len(parameters(function)) > FEW and undocumented(function)
    ]
    assert not silent, "\n".join(silent)
