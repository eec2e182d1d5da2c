"""The tables of overridden and private members of Conch agree with our code and with Conch."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from twisted.conch.ssh.transport import SSHClientTransport

from shiftergw import ssh
from shiftergw.ssh import channels, ciphers, host_keys, kex, login, transport
from shiftergw.ssh.conch_overrides import OVERRIDES, PRIVATE_FUNCTIONS, PRIVATE_MEMBERS

SOURCES = sorted(Path(ssh.__file__).parent.glob("*.py"))
MODULES = (channels, ciphers, host_keys, kex, login, transport)


def overridden_members(cls: type) -> set[str]:
    """Return the members of a class of ours that exist in a base class of Conch."""
    bases = [base for base in cls.__mro__ if base.__module__.startswith("twisted.conch.")]
    return {
        name
        for name in vars(cls)
        if not name.startswith("__") and any(name in vars(base) for base in bases)
    }


def private_attributes(source: str) -> set[str]:
    """Return the private attributes of `self` and `super()` that a file reads or writes."""
    attributes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return {
        node.attr
        for node in attributes
        if node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value) in {"self", "super()"}
    }


def attributes_of(cls: Any) -> set[str]:
    """Return the attributes of a class of Conch, and those that its methods set."""
    names = set(dir(cls))
    for base in cls.__mro__:
        if base.__module__.startswith("twisted.conch."):
            tree = ast.parse(inspect.getsource(base))
            names |= {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            }
    return names


def test_overrides_are_listed() -> None:
    """Every override of a member of Conch is in the table, and nothing else is."""
    classes = [
        cls
        for module in MODULES
        for cls in vars(module).values()
        if isinstance(cls, type) and cls.__module__ == module.__name__
    ]
    actual = {cls.__name__: names for cls in classes if (names := overridden_members(cls))}
    assert actual == {name: set(members) for name, members in OVERRIDES.items()}


def test_private_members_are_listed() -> None:
    """Every private member of Conch that our code uses is in the table, and nothing else is."""
    conch = attributes_of(SSHClientTransport)
    uses = {name for path in SOURCES for name in private_attributes(path.read_text())}
    assert uses & conch == set(PRIVATE_MEMBERS)


@pytest.mark.parametrize("name", sorted(PRIVATE_MEMBERS))
def test_private_members_exist(name: str) -> None:
    """The installed Conch has each private member that our code uses."""
    assert name in attributes_of(SSHClientTransport)


@pytest.mark.parametrize("name", sorted(PRIVATE_FUNCTIONS))
def test_private_functions_exist(name: str) -> None:
    """The installed Conch has each private function that our code calls."""
    module, _, function = name.partition(".")
    assert callable(getattr(import_module(f"twisted.conch.ssh.{module}"), function))
    assert any(f"{module}.{function}(" in path.read_text() for path in SOURCES)


def test_a_missing_member_is_noticed() -> None:
    """A member that no version of Conch has is not among its attributes."""
    assert "_noSuchMember" not in attributes_of(SSHClientTransport)
    assert private_attributes("super()._a(self._b, other._c)") == {"_a", "_b"}
