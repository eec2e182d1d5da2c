"""Requests whose credential may have been used before: nothing is done for them."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
from twisted.internet.task import Clock

from shiftergw.model import Session
from shiftergw.ports import ReplayUnchecked
from shiftergw.service.gateway import Gateway
from shiftergw.states import State
from shiftergw.web.api import ROUTES, Names, make_site
from tests.web.fakes import (
    IMAGE_ID,
    READY,
    FakeAuthenticator,
    FakeGateway,
    Wire,
    in_no_thread,
)


class Unsure(FakeAuthenticator):
    """Cannot say whether a credential is a fresh one."""

    async def authenticate(self, credential: str, system: str) -> Session:
        """Refuse what is none, and be unsure of the others."""
        session = await super().authenticate(credential, system)
        raise ReplayUnchecked("The database is away.", session, detail="10.0.0.1: refused")


@pytest.fixture
def gateway() -> FakeGateway:
    """Return a gateway that has told somebody that his pull waits."""
    return FakeGateway(pulls=[replace(READY, status=State.PENDING, id=None)])


@pytest.fixture
def wire(gateway: FakeGateway) -> Wire:
    """Return a connection to it."""
    site = make_site(cast("Gateway", gateway), {"mycluster": Unsure()}, Clock(), in_no_thread)
    return Wire(site)


NAMES = {Names.SYSTEM: "", Names.IMAGE: "docker/a:1/", Names.ID: f"{IMAGE_ID}/"}


@pytest.mark.parametrize("name", sorted({*ROUTES} - {"pull"}))
def test_every_other_route_sends_them_away(wire: Wire, gateway: FakeGateway, name: str) -> None:
    """They are to come again, and the gateway hears nothing of them."""
    route = ROUTES[name]
    reply = wire.ask(f"/api/{name}/mycluster/{NAMES[route.names]}", route.method)
    assert (reply.status, reply.json["code"]) == (503, "unavailable")
    assert int(reply.headers["retry-after"]) > 0
    assert b"10.0.0.1" not in reply.body
    assert gateway.asked == []


def test_a_poll_is_told_again_what_it_was_told(wire: Wire, gateway: FakeGateway) -> None:
    """Who polls goes on waiting; the pull itself is not asked for, nor its body looked at."""
    reply = wire.ask("/api/pull/mycluster/docker/a:1/", "POST", b"{")
    assert (reply.status, reply.json["status"]) == (200, "PENDING")
    ((what, session, itype, image, request_id),) = gateway.asked
    assert (what, session.user, itype, image) == ("told", "ann", "docker", "a:1")
    assert request_id == reply.headers["x-request-id"]


def test_a_wrong_credential_is_one_all_the_same(wire: Wire, gateway: FakeGateway) -> None:
    """Who is nobody is told nothing."""
    reply = wire.ask("/api/pull/mycluster/docker/a:1/", "POST", headers=("authentication:bad",))
    assert reply.status == 401
    assert gateway.asked == []
