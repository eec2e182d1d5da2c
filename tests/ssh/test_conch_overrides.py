"""The tables of overridden and private members of Conch agree with our code and with Conch."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from twisted.conch.ssh.transport import SSHClientTransport

from shiftergw import ssh
from shiftergw.ssh import channels, ciphers, host_keys, kex, login, transport
from shiftergw.ssh.conch_overrides import OVERRIDES, PRIVATE_FUNCTIONS, PRIVATE_MEMBERS
from tests import overrides

SOURCES = sorted(Path(ssh.__file__).parent.glob("*.py"))
MODULES = (channels, ciphers, host_keys, kex, login, transport)


def test_overrides_are_listed() -> None:
    """Every override of a member of Conch is in the table, and nothing else is."""
    assert overrides.overridden(MODULES, "twisted.conch.") == {
        name: set(members) for name, members in OVERRIDES.items()
    }


def test_private_members_are_listed() -> None:
    """Every private member of Conch that our code uses is in the table, and nothing else is."""
    conch = overrides.attributes_of(SSHClientTransport, "twisted.conch.")
    uses = {name for path in SOURCES for name in overrides.private_names(path.read_text())}
    assert uses & conch == set(PRIVATE_MEMBERS)


@pytest.mark.parametrize("name", sorted(PRIVATE_MEMBERS))
def test_private_members_exist(name: str) -> None:
    """The installed Conch has each private member that our code uses."""
    assert name in overrides.attributes_of(SSHClientTransport, "twisted.conch.")


@pytest.mark.parametrize("name", sorted(PRIVATE_FUNCTIONS))
def test_private_functions_exist(name: str) -> None:
    """The installed Conch has each private function that our code calls."""
    module, _, function = name.partition(".")
    assert callable(getattr(import_module(f"twisted.conch.ssh.{module}"), function))
    assert any(f"{module}.{function}(" in path.read_text() for path in SOURCES)


def test_a_missing_member_is_noticed() -> None:
    """A member that no version of Conch has is not among its attributes."""
    assert "_noSuchMember" not in overrides.attributes_of(SSHClientTransport, "twisted.conch.")
    assert overrides.private_names("super()._a(self._b, other._c)") == {"_a", "_b"}
