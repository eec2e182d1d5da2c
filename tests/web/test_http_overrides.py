"""The tables of overridden and private members of twisted.web agree with our code and Twisted's."""

from __future__ import annotations

import pytest
from twisted.web.http import HTTPChannel

from shiftergw.web import channel, site
from shiftergw.web.http_overrides import OVERRIDES, PRIVATE_MEMBERS
from tests import overrides


def test_overrides_are_listed() -> None:
    """Every override of a member of Twisted is in the table, and nothing else is."""
    assert overrides.overridden((channel, site), "twisted.") == {
        name: set(members) for name, members in OVERRIDES.items()
    }


def test_private_members_are_listed() -> None:
    """Every private member of Twisted that our code uses is in the table, and nothing else is."""
    uses = overrides.private_uses((channel, site))
    assert uses & overrides.attributes_of(HTTPChannel, "twisted.") == set(PRIVATE_MEMBERS)


@pytest.mark.parametrize("name", sorted(PRIVATE_MEMBERS))
def test_private_members_exist(name: str) -> None:
    """The installed Twisted has each private member that our code uses."""
    assert name in overrides.attributes_of(HTTPChannel, "twisted.")


def test_a_missing_member_is_noticed() -> None:
    """A member that no version of Twisted has is not among its attributes."""
    assert "_noSuchMember" not in overrides.attributes_of(HTTPChannel, "twisted.")
