"""Explanations are made one at a time, and only the user of the request gets the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.errors import (
    BadRequest,
    NotAuthenticated,
    NotFound,
    TimedOut,
    TooMany,
)
from shiftergw.model.explanations import MOST_EXPLANATIONS, ExplainRequest
from shiftergw.model.requests import ANONYMOUS, RegistryLogin, Session
from shiftergw.service import explanations as module
from shiftergw.service.explanations import Explanations
from tests.configurations import load_config

ALICE = Session("mycluster", "alice", 2001, "users", 100)
BOB = replace(ALICE, user="bob", uid=2002)
DOCUMENT = {"action": "build"}


class ManualExplainer:
    """An `Explainer` with the answers of the test."""

    def __init__(self) -> None:
        """Start without requests."""
        self.requests: list[ExplainRequest] = []
        self.answers: list[Deferred[Mapping[str, Any]]] = []
        self.cancellations = 0

    async def explain(self, request: ExplainRequest) -> Mapping[str, Any]:
        """Wait for the answer."""
        self.requests.append(request)
        self.answers.append(Deferred(self._count))
        return await self.answers[-1]

    def _count(self, _: Deferred[Mapping[str, Any]]) -> None:
        self.cancellations += 1


class Bench:
    """The service with a manual explainer and clock."""

    def __init__(self) -> None:
        """Start with nothing in progress."""
        self.clock = Clock()
        self.explainer = ManualExplainer()
        config = load_config({}).config
        self.service = Explanations(config, self.explainer, self.clock)
        self.service.startService()

    def begin(self, image: str = "app:1", session: Session = ALICE, itype: str = "docker") -> Any:
        """Ask for an explanation."""
        return self.service.begin(session, itype, image)

    def status(self, state: Any, session: Session = ALICE) -> Any:
        """Return the present status of an explanation."""
        return self.service.find(session, state["id"])["status"]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Yield a service for one test, and stop it."""
    bench = Bench()
    yield bench
    assert bench.service.stopService().called


def test_an_explanation(bench: Bench) -> None:
    """Only its user can poll an explanation, until it is complete and for some minutes after."""
    state = bench.begin()
    assert state["status"] == "RUNNING"
    bench.explainer.answers[0].callback(DOCUMENT)
    answer = bench.service.find(ALICE, state["id"])
    assert answer == {"id": state["id"], "status": "READY", "explanation": DOCUMENT}
    for stranger in (BOB, replace(ALICE, system="other")):
        with pytest.raises(NotFound):
            bench.service.find(stranger, state["id"])
    bench.clock.advance(module.KEEP_SECONDS + 1)
    with pytest.raises(NotFound, match="no such explanation"):
        bench.status(state)


def test_the_request(bench: Bench) -> None:
    """The request has the normalized name, the user, and the login for the image's registry."""
    logins = {"default": RegistryLogin("alice", "secret")}
    bench.begin("app", replace(ALICE, logins=logins))
    (request,) = bench.explainer.requests
    assert str(request.reference) == "app:latest"
    assert request.login == logins["default"]
    assert request.reader is not None
    assert request.reader == ALICE  # without logins
    assert "secret" not in repr(request)
    bench.explainer.answers[0].callback(DOCUMENT)
    (entry,) = bench.service._all.values()
    assert entry.request.login is None  # a password is not kept with a result


def test_one_at_a_time(bench: Bench) -> None:
    """The next explanation begins when one has ended, also by an error."""
    first, second = bench.begin("a:1"), bench.begin("b:1", BOB)
    assert (second["status"], len(bench.explainer.requests)) == ("WAITING", 1)
    bench.explainer.answers[0].errback(TimedOut("It took too long.", remedy="Try again."))
    failure = bench.service.find(ALICE, first["id"])
    assert (failure["status"], failure["cause"]) == ("FAILURE", "It took too long.")
    assert bench.status(second, BOB) == "RUNNING"
    bench.explainer.answers[1].callback(DOCUMENT)
    assert bench.status(second, BOB) == "READY"


def test_the_same_request_again(bench: Bench) -> None:
    """The request finds the explanation in progress; with another login it begins a new one."""
    state = bench.begin("app:1")
    assert bench.begin("docker://app:1")["id"] == state["id"]
    assert bench.begin("app:1", BOB)["id"] != state["id"]
    after_login = replace(ALICE, logins={"default": RegistryLogin("alice", "secret")})
    assert bench.begin("app:1", after_login)["id"] != state["id"]
    bench.explainer.answers[0].callback(DOCUMENT)
    assert bench.begin("app:1")["id"] != state["id"]
    assert bench.status(state) == "READY"


def test_limits(bench: Bench) -> None:
    """The number of explanations in progress is limited for a user, and for all users."""
    bench.begin("a:1")
    bench.begin("b:1")
    with pytest.raises(TooMany, match="2 of your pulls"):
        bench.begin("c:1")
    for number in range(MOST_EXPLANATIONS - 2):
        bench.begin("a:1", replace(BOB, uid=3000 + number))
    with pytest.raises(TooMany, match="of other users"):
        bench.begin("a:1", BOB)


def test_the_oldest_results_are_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory for results is bounded; those in progress stay."""
    monkeypatch.setattr(module, "MOST_RESULTS", 2)
    states = []
    for number in range(4):
        states.append(bench.begin(f"a:{number}"))
        bench.explainer.answers[-1].callback(DOCUMENT)
    running = bench.begin("b:1")
    for state in states[:2]:
        with pytest.raises(NotFound):
            bench.status(state)
    assert [bench.status(state) for state in (*states[2:], running)] == ["READY"] * 2 + ["RUNNING"]


def test_requests_for_explanations_that_are_refused(bench: Bench) -> None:
    """Anonymous users, other types, and names without a registry are refused."""
    with pytest.raises(NotAuthenticated):
        bench.begin(session=replace(ALICE, uid=ANONYMOUS))
    for image, itype in (("app:1", "custom"), ("APP:1", "docker"), ("x.example.org/a", "docker")):
        with pytest.raises(BadRequest):
            bench.begin(image, itype=itype)
    assert bench.explainer.requests == []


def test_a_fault(bench: Bench) -> None:
    """A client does not wait forever after a fault of the program."""
    state = bench.begin()
    bench.explainer.answers[0].errback(RuntimeError("bug"))
    assert bench.status(state) == "FAILURE"


def test_the_stop_of_the_gateway(bench: Bench) -> None:
    """A stop ends explanations in progress, and begins no other."""
    bench.begin("a:1")
    bench.begin("b:1")
    stopping = bench.service.stopService()
    assert stopping.called
    assert (len(bench.explainer.requests), bench.explainer.cancellations) == (1, 1)
