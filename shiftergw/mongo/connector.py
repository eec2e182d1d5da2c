"""The way to the primary server of an address: hosts in turn, TLS, who is primary, login."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeGuard

from bson.binary import Binary
from bson.objectid import ObjectId
from OpenSSL import SSL
from pymongo.errors import PyMongoError
from twisted.internet import error as network
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from shiftergw import __version__
from shiftergw.errors import Unavailable, printable
from shiftergw.mongo.address import PLAIN, X509, MongoAddress, MongoHost, MongoLogin
from shiftergw.mongo.connection import MongoConnection, check
from shiftergw.mongo.login import LoginFailed, SaltedPasswords, Scram, mechanism_of
from shiftergw.mongo.tls import client_tls
from shiftergw.plumbing.timing import within

HOST_SECONDS = 3.0
"""How long one host may take to be reached, and to let us in."""

ADDRESS_SECONDS = 0.1
"""How long one address of a host is tried alone before the next one is tried as well."""

NO_ANSWER = "The gateway's database does not answer."
ACCESS_REFUSED = "The gateway's database does not let the gateway do what it must."
LOGIN_REMEDY = (
    "Tell the site's support: correct user, password and authSource in MongoDBURI, or give that"
    " user the role readWrite on the database."
)

_WHO = {
    "application": {"name": "shiftergw"},
    "driver": {"name": "shiftergw|txmongo", "version": __version__},
    "os": {"type": platform.system() or "unknown"},
}


CLOCK_SECONDS = 5.0
"""By how much clocks may differ: gateways judge each other's heartbeats and leases by their own."""


class NotUsableError(Exception):
    """This host is none that we can use now, and why."""


def login_refused(detail: str) -> Unavailable:
    """Return what to say when a server is there, and knows our user or his rights not."""
    return Unavailable(ACCESS_REFUSED, remedy=LOGIN_REMEDY, detail=printable(f"MongoDB: {detail}"))


class PrimaryConnector:
    """Opens links to whichever host of an address is the primary."""

    _log = Logger()

    def __init__(self, reactor: Any, address: MongoAddress, seconds: float = HOST_SECONDS) -> None:
        """Wait `seconds` for each host; raise `ConfigurationError` for unreadable certificates.

        Reads them now, and blocks so long.
        """
        self._reactor = reactor
        self._address = address
        self._tls = None if address.tls is None else client_tls(address.tls)
        self._seconds = seconds
        self._passwords = SaltedPasswords(reactor)
        self._primary: MongoHost | None = None
        self._members: tuple[MongoHost, ...] = ()
        self._election: ObjectId | None = None
        self._logged: set[tuple[MongoHost, str]] = set()
        self.ahead: float | None = None
        """By how many seconds our clock is ahead of the server's, if it tells its time."""

    async def open(self) -> MongoConnection:
        """Return a link to the primary; raise `Unavailable` that says of each host why not."""
        why: list[str] = []
        tried: list[MongoHost] = []
        refused = False
        while (host := self._next(tried)) is not None:
            tried.append(host)
            try:
                return await within(
                    self._seconds,
                    self._reactor,
                    self._open_at(host),
                    lambda: NotUsableError(f"no answer within {self._seconds:g} s"),
                )
            except CancelledError:
                raise
            except _UNUSABLE as error:
                refused = refused or isinstance(error, LoginFailed)
                why.append(f"{host}: {_said(error)}")
            except Exception as error:  # noqa: BLE001 - what is no server may say anything
                why.append(f"{host}: it cannot be used: {self._told(host, error)}")
        if refused:
            raise login_refused("; ".join(why))
        raise Unavailable(NO_ANSWER, detail=printable(f"MongoDB: {'; '.join(why)}"))

    def _told(self, host: MongoHost, error: Exception) -> str:
        """Return what kind of error it is; the first of its kind is logged as a whole."""
        kind = type(error).__name__
        if (host, kind) not in self._logged:
            self._logged.add((host, kind))
            self._log.failure("MongoDB: {host}", host=str(host))
        return kind

    def _next(self, tried: list[MongoHost]) -> MongoHost | None:
        """Return the host to try now: the primary, if a server has named it, then all others."""
        known = (self._primary, *self._address.hosts, *self._members)
        return next((host for host in known if host is not None and host not in tried), None)

    async def _open_at(self, host: MongoHost) -> MongoConnection:
        factory = Factory.forProtocol(MongoConnection)
        factory.noisy = False
        try:
            link: Any = await self._endpoint(host).connect(factory)
        except network.ConnectingCancelledError as error:
            raise CancelledError from error
        try:
            await self._greet(host, link)
        except BaseException:
            link.abort("it is not the primary")
            raise
        found: MongoConnection = link
        found.server = str(host)
        return found

    def _endpoint(self, host: MongoHost) -> IStreamClientEndpoint:
        if host.port is None:
            return UNIXClientEndpoint(self._reactor, host.name, timeout=self._seconds)
        endpoint = HostnameEndpoint(
            self._reactor, host.name, host.port, self._seconds, attemptDelay=ADDRESS_SECONDS
        )
        return endpoint if self._tls is None else wrapClientTLS(self._tls.to(host.name), endpoint)

    async def _greet(self, host: MongoHost, link: MongoConnection) -> None:
        """Return if the host is the primary, of the right set, and knows us."""
        login = self._address.login
        greeting: dict[str, Any] = {"isMaster": 1, "helloOk": True, "client": _WHO}
        if login is not None and login.mechanism is None:
            greeting["saslSupportedMechs"] = f"{login.source}.{login.user}"
        # The old name of `hello`: every server understands it.
        answer = check(await link.command("admin", greeting))
        name = answer.get("setName")
        if self._address.replica_set not in {None, name}:
            raise NotUsableError(f"it is a member of {name or 'no replica set'}")
        if name is not None:
            self._members = tuple(map(MongoHost.parse, answer.get("hosts") or ()))
            self._check_most(answer)
        if not (answer.get("isWritablePrimary") or answer.get("ismaster")):
            named = answer.get("primary")
            self._primary = MongoHost.parse(named) if named else None
            raise NotUsableError("it is not the primary")
        self._check_newest(answer)
        self._primary = host
        self._compare_clocks(answer)
        if login is not None:
            await log_in(link, login, answer.get("saslSupportedMechs"), self._passwords)

    def _compare_clocks(self, answer: Mapping[str, Any]) -> None:
        """Note how far the clocks are apart; the log is told once."""
        there = answer.get("localTime")
        if not isinstance(there, datetime):
            return
        told = is_clock_apart(self.ahead)
        self.ahead = self._reactor.seconds() - there.replace(tzinfo=UTC).timestamp()
        if is_clock_apart(self.ahead) and not told:
            self._log.warn("MongoDB: {apart}", apart=describe_clock_gap(self.ahead))

    def _check_most(self, answer: Mapping[str, Any]) -> None:
        """Raise if a write that has reached as many members as the URI says can be forgotten."""
        w = self._address.concern["w"]
        voters = sum(len(answer.get(kind) or ()) for kind in ("hosts", "passives", "arbiters"))
        if isinstance(w, int) and w <= voters // 2:
            raise NotUsableError(f"w={w} of MongoDBURI is not most of its {voters} members")

    def _check_newest(self, answer: Mapping[str, Any]) -> None:
        """Raise if another primary was elected since this one, which has not heard of it yet."""
        election = answer.get("electionId")
        if not isinstance(election, ObjectId):
            return
        if self._election is not None and election < self._election:
            raise NotUsableError("another was elected since it was the primary")
        self._election = election


def is_clock_apart(ahead: float | None) -> TypeGuard[float]:
    """Say whether clocks differ by more than they may."""
    return ahead is not None and abs(ahead) > CLOCK_SECONDS


def describe_clock_gap(ahead: float) -> str:
    """Return how far our clock is from the server's, in words."""
    word = "ahead of" if ahead > 0 else "behind"
    return f"the clock of this machine is {abs(ahead):.0f} s {word} that of the database"


_UNUSABLE = (
    NotUsableError, LoginFailed, PyMongoError, SSL.Error, network.ConnectError,
    network.ConnectionClosed, network.DNSLookupError, OSError,
)  # fmt: skip
"""What may go wrong with one host, and not with the next."""


def _said(error: BaseException) -> str:
    if isinstance(error, LoginFailed):
        return f"the login is refused: {error}"
    return str(error) or type(error).__name__


async def log_in(
    link: MongoConnection, login: MongoLogin, offered: list[str] | None, passwords: SaltedPasswords
) -> None:
    """Return once the server knows who we are; raise `LoginFailed`."""
    mechanism = mechanism_of(login, offered)

    async def say(body: dict[str, Any]) -> dict[str, Any]:
        answer = await link.command(login.source, body)
        if not answer.get("ok"):
            raise LoginFailed(str(answer.get("errmsg")))
        return answer

    if mechanism == X509:
        who = {"user": login.user} if login.user else {}
        await say({"authenticate": 1, "mechanism": mechanism, **who})
    elif mechanism == PLAIN:
        payload = Binary(f"\0{login.user}\0{login.password}".encode())
        await say({"saslStart": 1, "mechanism": mechanism, "payload": payload})
    else:
        scram = Scram(login, mechanism)
        start = {"saslStart": 1, "mechanism": mechanism, "payload": Binary(scram.first())}
        answer = await say({**start, "options": {"skipEmptyExchange": True}})
        talk = {"saslContinue": 1, "conversationId": answer.get("conversationId")}
        proof = await scram.prove(bytes(answer["payload"]), passwords)
        answer = await say({**talk, "payload": Binary(proof.message)})
        proof.check(bytes(answer["payload"]))
        if not answer.get("done"):  # old servers want one more, with nothing in it
            await say({**talk, "payload": Binary(b"")})
