"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pkgutil import walk_packages

import tokenflow_ops

LEAST = 8  # examples; fewer mean that they were not found


def test_examples_give_what_they_say() -> None:
    names = [module.name for module in walk_packages(tokenflow_ops.__path__, "tokenflow_ops.")]
    results = [doctest.testmod(import_module(name)) for name in ["tokenflow_ops", *names]]
    assert sum(result.attempted for result in results) >= LEAST
    assert not sum(result.failed for result in results)
