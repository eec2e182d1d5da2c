"""Logins of users are tried at the registries of the configuration, a few at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.errors import (
    BadRequest,
    ConfigurationError,
    GatewayError,
    NotAllowed,
    NotAuthenticated,
    RegistryDenied,
    RegistryUnavailable,
    TooMany,
    Unavailable,
)
from shiftergw.model.requests import RegistryLogin
from shiftergw.service import login_checks
from shiftergw.service.login_checks import CHECK_SECONDS, MOST_OF_USER, PERIOD, LoginChecks
from tests.configurations import load_config
from tests.service.gateway_bench import ALICE, ANONYMOUS_SESSION, BOB

LOGIN = RegistryLogin("alice", "secret")
LOCATIONS = {
    "docker.io": {"remotetype": "dockerv2"},
    "ghcr.io": {"remotetype": "dockerv2"},
    "site": {"remotetype": "oci-layout", "url": "file:///images"},
}


class Checker:
    """Answers `result`, or raises it; without one it never answers."""

    def __init__(self) -> None:
        """Take all logins."""
        self.result: bool | GatewayError | None = True
        self.calls: list[tuple[str, RegistryLogin]] = []

    async def check_login(self, location: str, login: RegistryLogin) -> bool:
        """Answer."""
        self.calls.append((location, login))
        if self.result is None:
            await Deferred()
        if isinstance(self.result, GatewayError):
            raise self.result
        return bool(self.result)


@pytest.fixture
def checker() -> Checker:
    """Return a registry that takes all logins."""
    return Checker()


@pytest.fixture
def checks(checker: Checker, clock: Clock) -> LoginChecks:
    """Return what tries logins at it."""
    config = load_config({"Locations": LOCATIONS, "DefaultImageLocation": "docker.io"}).config
    return LoginChecks(config, checker, clock)


SESSION = replace(ALICE, logins={"default": LOGIN, "GHCR.io": LOGIN, "site": LOGIN, "none": LOGIN})


@pytest.mark.parametrize(
    ("place", "location"),
    [("default", "docker.io"), ("docker.io", "docker.io"), ("ghcr.io", "ghcr.io"),
     ("ghcr.io:443", "ghcr.io")],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_locations(checks: LoginChecks, checker: Checker, place: str, location: str) -> None:
    """The login of the session is tried at the registry that users call by this name."""
    assert (await checks.check(SESSION, place)).result == "accepted"
    assert checker.calls == [(location, LOGIN)]


@pytest.mark.parametrize(
    ("result", "word", "cause"),
    [
        (True, "accepted", ""),
        (False, "not-asked", ""),
        (RegistryDenied("It refused the login."), "refused", "It refused the login."),
        (RegistryUnavailable("It is away."), "unknown", "It is away."),
        (ConfigurationError("/secret/path"), "unknown", "The gateway could not ask the registry."),
    ],
)
@pytest_twisted.ensureDeferred
async def test_verdicts(
    checks: LoginChecks, checker: Checker, result: bool | GatewayError, word: str, cause: str
) -> None:
    """Only a refusal of the registry counts as one."""
    checker.result = result
    verdict = await checks.check(SESSION, "ghcr.io")
    assert (verdict.result, verdict.cause) == (word, cause)


@pytest.mark.parametrize(
    ("place", "error"),
    [("quay.io", BadRequest), ("none", BadRequest), ("site", NotAllowed), ("a b", BadRequest),
     ("", BadRequest)],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_no_registry(
    checks: LoginChecks, checker: Checker, place: str, error: type[GatewayError]
) -> None:
    """A login is sent to no registry that the gateway does not have."""
    with pytest.raises(error):
        await checks.check(SESSION, place)
    assert checker.calls == []


@pytest_twisted.ensureDeferred
async def test_no_login(checks: LoginChecks) -> None:
    """A session without a credential, or without the login, has nothing to try."""
    with pytest.raises(BadRequest, match=r"no login for ghcr\.io"):
        await checks.check(BOB, "ghcr.io")
    with pytest.raises(NotAuthenticated):
        await checks.check(ANONYMOUS_SESSION, "ghcr.io")


@pytest_twisted.ensureDeferred
async def test_a_user_may_try_a_few_logins(checks: LoginChecks, clock: Clock) -> None:
    """Nobody guesses passwords by the gateway; other users are not concerned."""
    for _ in range(MOST_OF_USER):
        await checks.check(SESSION, "ghcr.io")
    with pytest.raises(TooMany) as error:
        await checks.check(SESSION, "ghcr.io")
    assert error.value.retry_after == PERIOD
    assert (await checks.check(replace(SESSION, uid=BOB.uid), "default")).result == "accepted"
    clock.advance(PERIOD)
    assert (await checks.check(SESSION, "ghcr.io")).result == "accepted"


@pytest_twisted.ensureDeferred
async def test_a_silent_registry(
    checks: LoginChecks, checker: Checker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A try ends after a while, or with its request; only some are made at a time."""
    monkeypatch.setattr(login_checks, "MOST_CHECKS", 2)
    checker.result = None
    first, second = (Deferred.fromCoroutine(checks.check(SESSION, "ghcr.io")) for _ in range(2))
    with pytest.raises(Unavailable):
        await checks.check(SESSION, "ghcr.io")
    second.cancel()
    with pytest.raises(CancelledError):
        await second
    clock.advance(CHECK_SECONDS)
    verdict = await first
    assert verdict.result == "unknown"
    assert "within 20 s" in verdict.cause
    checker.result = True
    assert (await checks.check(SESSION, "ghcr.io")).result == "accepted"
