"""`login` has the gateway try a login before it is stored."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from shiftergw.cli import credentials
from shiftergw.cli.exits import RequestRefused
from shiftergw.cli.login import check_login
from shiftergw.cli.settings import Settings
from shiftergw.errors import NotAllowed
from shiftergw.model.requests import Session
from shiftergw.service.login_checks import LoginVerdict
from tests.installed_reactor import reactor
from tests.parts import free_port
from tests.web.fakes import FakeGateway, listening, site_of


@dataclass
class LoginGateway(FakeGateway):
    """A gateway that tries logins, with the same verdict for all of them."""

    verdict: LoginVerdict = field(default_factory=lambda: LoginVerdict("accepted"))

    @property
    def logins(self) -> LoginGateway:
        """Return the object that tries logins."""
        return self

    async def check(self, session: Session, place: str) -> LoginVerdict:
        """Return the verdict."""
        await self._turn("check", session, place)
        return self.verdict


@pytest.fixture
def payloads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the payloads of the credentials that munge is asked for."""
    made_payloads: list[Any] = []

    def seal(payload: bytes, _: object) -> str:
        made_payloads.append(json.loads(payload))
        return "good:ann"

    monkeypatch.setattr(credentials, "seal", seal)
    return made_payloads


async def notice_of(fake: FakeGateway, content: bytes = b"ann:h\xc3\xbcsh:\xff") -> str:
    """Return what the user is told when a login is tried."""
    async with listening(site_of(fake, reactor)) as port:
        settings = Settings([f"http://127.0.0.1:{port}"], ["mycluster"])
        text: str = await deferToThread(check_login, settings, "ghcr.io", content)
    return text


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        (LoginVerdict("accepted"), "The registry has accepted it."),
        (LoginVerdict("not-asked"), "It was not tried: the registry asks for a login only where"),
        (LoginVerdict("unknown", "It is \x1b.", "Wait."), "It was not tried: It is \\x1b. Wait."),
        (LoginVerdict("odd"), "It was not tried: the gateway does not say why."),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_said(payloads: list[Any], verdict: LoginVerdict, text: str) -> None:
    """The login is in the credential alone, and the user is told what came of it."""
    fake = LoginGateway(verdict=verdict)
    assert (await notice_of(fake)).startswith(text)
    assert payloads == [{"authorized_locations": {"ghcr.io": "ann:hÃ¼sh:ÿ"}}]
    assert [call[2] for call in fake.calls] == ["ghcr.io"]


@pytest_twisted.ensureDeferred
async def test_a_refusal(payloads: list[Any]) -> None:
    """What the registry refuses is not stored."""
    fake = LoginGateway(verdict=LoginVerdict("refused", "It refused the login.", "Look."))
    with pytest.raises(RequestRefused, match=r"It refused the login\. Look\. Nothing is kept"):
        await notice_of(fake, b"ann:hush")
    assert payloads == [{"authorized_locations": {"ghcr.io": "ann:hush"}}]


@pytest.mark.usefixtures("payloads")
@pytest_twisted.ensureDeferred
async def test_a_gateway_that_tries_none() -> None:
    """A gateway that refuses, or knows no such request, is no obstacle."""
    refusal = NotAllowed("This gateway tries no logins.", remedy="")
    notice = await notice_of(LoginGateway(raises=refusal))
    assert notice == "It was not tried: This gateway tries no logins."


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (Settings([f"http://127.0.0.1:{free_port()}"], ["s"]), "cannot be reached"),
        (Settings([], ["s"]), "No gateway is known"),
        (Settings(["http://127.0.0.1:9"], ["s"], "good:ann"), "mock authentication"),
    ],
)
@pytest.mark.usefixtures("payloads")
def test_no_gateway(settings: Settings, text: str) -> None:
    """Without a gateway the login is stored, and the reason is told."""
    notice = check_login(settings, "ghcr.io", b"ann:hush")
    assert notice.startswith("It was not tried: ")
    assert text in notice
