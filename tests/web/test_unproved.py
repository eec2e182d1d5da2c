"""Requests whose credential may have been used before change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
from twisted.internet.task import Clock

from shiftergw.model.requests import Session
from shiftergw.ports import ReplayUnchecked
from shiftergw.service.gateway import Gateway
from shiftergw.states import State
from shiftergw.web.api import make_site
from shiftergw.web.routes import ROUTES, Names, Route
from tests.web.fakes import (
    IMAGE_ID,
    READY,
    FakeAuthenticator,
    FakeGateway,
    Wire,
    in_no_thread,
)


class UnsureAuthenticator(FakeAuthenticator):
    """An authenticator that cannot find out whether a credential was used before."""

    async def authenticate(self, credential: str, system: str) -> Session:
        """Raise `NotAuthenticated` for an invalid credential, else `ReplayUnchecked`."""
        session = await super().authenticate(credential, system)
        raise ReplayUnchecked("The database is away.", session, detail="10.0.0.1: refused")


@pytest.fixture
def gateway() -> FakeGateway:
    """Return a gateway whose last answer to a pull was PENDING."""
    return FakeGateway(pulls=[replace(READY, status=State.PENDING, id=None)])


@pytest.fixture
def wire(gateway: FakeGateway) -> Wire:
    """Return a connection to the gateway."""
    site = make_site(
        cast("Gateway", gateway), {"mycluster": UnsureAuthenticator()}, Clock(), in_no_thread
    )
    return Wire(site)


NAMES = {Names.SYSTEM: "", Names.IMAGE: "docker/a:1/", Names.ID: f"{IMAGE_ID}/"}


OTHER_ROUTES = [
    (name, route)
    for name, first_route in sorted(ROUTES.items())
    for route in (first_route, *first_route.siblings)
    if route.unproved_answer is None and not route.for_workers
]


@pytest.mark.parametrize(("name", "route"), OTHER_ROUTES)
def test_other_routes_refuse_for_now(
    wire: Wire, gateway: FakeGateway, name: str, route: Route
) -> None:
    """Every route but pull answers 503 with `Retry-After`, and the gateway is not called."""
    body = b"x" if route.takes_long_body else None
    reply = wire.ask(f"/api/{name}/mycluster/{NAMES[route.names]}", route.method, body)
    assert (reply.status, reply.json["code"]) == (503, "unavailable")
    assert int(reply.headers["retry-after"]) > 0
    assert b"10.0.0.1" not in reply.body
    assert gateway.calls == []


def test_a_poll_gets_the_last_answer_again(wire: Wire, gateway: FakeGateway) -> None:
    """A polling client continues to wait; no pull is started, and the body is not read."""
    reply = wire.ask("/api/pull/mycluster/docker/a:1/", "POST", b"{")
    assert (reply.status, reply.json["status"]) == (200, "PENDING")
    ((method, session, itype, image, request_id),) = gateway.calls
    assert (method, session.user, itype, image) == ("last_answer", "ann", "docker", "a:1")
    assert request_id == reply.headers["x-request-id"]


def test_an_invalid_credential_is_refused(wire: Wire, gateway: FakeGateway) -> None:
    """An invalid credential is a 401 on this route too."""
    reply = wire.ask("/api/pull/mycluster/docker/a:1/", "POST", headers=("authentication:bad",))
    assert reply.status == 401
    assert gateway.calls == []
