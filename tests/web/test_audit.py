"""Which requests are in the audit log, and what it tells of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.task import Clock

from shiftergw.errors import NotAllowed
from shiftergw.states import State
from tests.web.fakes import READY, FakeGateway, Reply, Wire, site_of

PULL = "/api/pull/mycluster/docker/ubuntu%3A24.04/"


class AuditedSite:
    """A site, and the events of its audit log."""

    def __init__(self) -> None:
        """Start without events."""
        self.gateway = FakeGateway(pulls=[READY])
        self.events: list[Any] = []
        self._site = site_of(self.gateway, Clock(), audit=self.events.append)

    def ask(self, path: str, method: str = "GET", user: str = "ann") -> Reply:
        """Send a request over a new connection."""
        headers = [f"authentication:good:{user}"] if user else []
        return Wire(self._site).ask(path, method, headers=headers)


@pytest.fixture
def site() -> AuditedSite:
    """Return a site."""
    return AuditedSite()


def test_a_pull(site: AuditedSite) -> None:
    """The event has who, from where, what, on which system, the answer and the image."""
    reply = site.ask(PULL, "POST")
    (event,) = site.events
    assert event == {
        "request": reply.headers["x-request-id"],
        "peer": "192.168.1.1",
        "user": "ann",
        "uid": 1000,
        "is_admin": False,
        "system": "mycluster",
        "action": "POST pull",
        "image": "docker:ubuntu:24.04",
        "id": READY.id,
        "status": 200,
        "state": "READY",
        "started_by": None,
        "cause": None,
    }


def test_polls_and_look_ups(site: AuditedSite) -> None:
    """A pull has an event at its begin and at its end; polls in between and look-ups have none."""
    site.gateway.pulls = [replace(READY, status=State.PENDING, id=None)]
    for _ in range(3):
        site.ask(PULL, "POST")
    site.gateway.pulls = [replace(READY, request_id="1a2b3c4d")]
    for _ in range(3):
        site.ask(PULL, "POST")
    site.ask("/api/lookup/mycluster/docker/ubuntu%3A24.04/")
    site.ask("/api/list/mycluster/")
    site.ask("/livez", user="")
    assert [event["state"] for event in site.events] == ["PENDING", "READY"]
    assert [event["started_by"] for event in site.events] == [None, "1a2b3c4d"]


def test_removals(site: AuditedSite) -> None:
    """Users and admins who remove images are in the log, with the id where the path has it."""
    site.ask("/api/expire/mycluster/docker/ubuntu%3A24.04/")
    site.ask("/api/autoexpire/mycluster/")
    site.ask(f"/api/takedown/mycluster/{READY.id}/", "POST")
    site.ask(f"/api/allow/mycluster/{READY.id}/", "POST")
    assert [(event["action"], event["image"], event["id"]) for event in site.events] == [
        ("GET expire", "docker:ubuntu:24.04", None),
        ("GET autoexpire", None, None),
        ("POST takedown", None, READY.id),
        ("POST allow", None, READY.id),
    ]


def test_refusals(site: AuditedSite) -> None:
    """Who was refused is in the log with the reason; without a credential it has no user."""
    site.gateway.raises = NotAllowed("Only admins may do this.", detail="it is ann")
    site.ask("/api/expire/mycluster/docker/a%3A1/")
    site.ask(PULL, "POST", user="")
    first, second = site.events
    assert (first["user"], first["status"]) == ("ann", 403)
    assert first["cause"] == "Only admins may do this. it is ann"
    assert (second["user"], second["uid"], second["status"]) == (None, None, 401)
