"""Find out what classes override of a library, and which of its private members they use."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any


def overridden(modules: Iterable[ModuleType], library: str) -> dict[str, set[str]]:
    """Return, by class of these modules, the members that a base class in `library` has too.

    `library` is the beginning of the names of the library's modules, such as `twisted.conch.`.
    """
    classes = [
        cls
        for module in modules
        for cls in vars(module).values()
        if isinstance(cls, type) and cls.__module__ == module.__name__
    ]
    return {cls.__name__: names for cls in classes if (names := _overridden_by(cls, library))}


def _overridden_by(cls: type, library: str) -> set[str]:
    bases = [base for base in cls.__mro__ if base.__module__.startswith(library)]
    return {
        name
        for name in vars(cls)
        if not name.startswith("__") and any(name in vars(base) for base in bases)
    }


def private_uses(modules: Iterable[ModuleType]) -> set[str]:
    """Return the private attributes of `self` and `super()` that these modules use or define."""
    return {name for module in modules for name in private_names(inspect.getsource(module))}


def private_names(source: str) -> set[str]:
    """Return the private attributes of `self` and `super()` that a text uses, and its methods."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"self", "super()"}:
            names.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def attributes_of(cls: Any, library: str) -> set[str]:
    """Return the attributes of a class of a library, and those that its methods set."""
    names = set(dir(cls))
    for base in cls.__mro__:
        if base.__module__.startswith(library):
            names |= {
                node.attr
                for node in ast.walk(ast.parse(inspect.getsource(base)))
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            }
    return names
