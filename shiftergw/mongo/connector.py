"""Connect to the primary server of an address: try its hosts in turn, use TLS, log in."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeGuard

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
from shiftergw.mongo.connection import MongoConnection, raise_for_error
from shiftergw.mongo.login import LoginFailed, SaltedPasswords, Scram, mechanism_of
from shiftergw.mongo.tls import client_tls
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

HOST_SECONDS = 3.0
"""Seconds that one host may take to accept a connection and a login."""

ADDRESS_SECONDS = 0.1
"""Seconds after which the next IP address of a host is tried as well (RFC 8305)."""

NO_ANSWER = "The gateway's database does not answer."
ACCESS_REFUSED = "The gateway's database does not let the gateway do what it must."
LOGIN_REMEDY = (
    "Tell the site's support: correct user, password and authSource in MongoDBURI, or give that"
    " user the role readWrite on the database."
)

_CLIENT = {
    "application": {"name": "shiftergw"},
    "driver": {"name": "shiftergw|txmongo", "version": __version__},
    "os": {"type": platform.system() or "unknown"},
}


CLOCK_SECONDS = 5.0
"""Seconds by which clocks may differ.

Each gateway judges the heartbeats and leases of others by its own clock.
"""


class NotUsableError(Exception):
    """A host cannot be used now; the text says why."""


def login_refused(detail: str) -> Unavailable:
    """Return the error for a server that refuses the user, or an action of the user."""
    return Unavailable(ACCESS_REFUSED, remedy=LOGIN_REMEDY, detail=printable(f"MongoDB: {detail}"))


class PrimaryConnector:
    """Open connections to whichever host of an address is the primary."""

    _log = Logger()

    def __init__(
        self, reactor: Reactor, address: MongoAddress, seconds: float = HOST_SECONDS
    ) -> None:
        """Allow each host `seconds` to answer; raise `ConfigurationError` for bad certificates.

        Reads the files of the certificates now, and blocks until then.
        """
        self._reactor = reactor
        self._address = address
        self._tls = None if address.tls is None else client_tls(address.tls)
        self._seconds = seconds
        self._passwords = SaltedPasswords(reactor)
        self._primary: MongoHost | None = None
        self._members: tuple[MongoHost, ...] = ()
        self._election: ObjectId | None = None
        self._logged_errors: set[tuple[MongoHost, str]] = set()
        self.clock_lead: float | None = None
        """Seconds by which this clock is ahead of the server's, if the server reports its time."""

    async def open(self) -> MongoConnection:
        """Return a connection to the primary.

        Raise `Unavailable` if there is none; its detail has the reason for each host.
        """
        reasons: list[str] = []
        hosts: list[MongoHost] = []
        is_login_refused = False
        while (host := self._next_host(hosts)) is not None:
            hosts.append(host)
            try:
                return await within(
                    self._seconds,
                    self._reactor,
                    self._open_at(host),
                    lambda: NotUsableError(f"no answer within {self._seconds:g} s"),
                )
            except CancelledError:
                raise
            except _EXPECTED_ERRORS as error:
                is_login_refused = is_login_refused or isinstance(error, LoginFailed)
                reasons.append(f"{host}: {_reason_of(error)}")
            except Exception as error:  # noqa: BLE001 - a host that is no server may send anything
                reasons.append(f"{host}: it cannot be used: {self._log_error(host, error)}")
        if is_login_refused:
            raise login_refused("; ".join(reasons))
        raise Unavailable(NO_ANSWER, detail=printable(f"MongoDB: {'; '.join(reasons)}"))

    def _log_error(self, host: MongoHost, error: Exception) -> str:
        """Return the name of an error; log the first one of this name with its traceback."""
        name = type(error).__name__
        if (host, name) not in self._logged_errors:
            self._logged_errors.add((host, name))
            self._log.failure("MongoDB: {host}", host=str(host))
        return name

    def _next_host(self, tried_hosts: list[MongoHost]) -> MongoHost | None:
        """Return the next host to try: the primary if a server has named it, then all others."""
        hosts = (self._primary, *self._address.hosts, *self._members)
        return next((host for host in hosts if host is not None and host not in tried_hosts), None)

    async def _open_at(self, host: MongoHost) -> MongoConnection:
        factory = Factory.forProtocol(MongoConnection)
        factory.noisy = False
        try:
            protocol: Any = await self._endpoint(host).connect(factory)
        except network.ConnectingCancelledError as error:
            raise CancelledError from error
        connection: MongoConnection = protocol
        try:
            await self._greet(host, connection)
        except BaseException:
            connection.abort("it is not the primary")
            raise
        connection.server = str(host)
        return connection

    def _endpoint(self, host: MongoHost) -> IStreamClientEndpoint:
        if host.port is None:
            return UNIXClientEndpoint(self._reactor, host.name, timeout=self._seconds)
        endpoint = HostnameEndpoint(
            self._reactor, host.name, host.port, self._seconds, attemptDelay=ADDRESS_SECONDS
        )
        return endpoint if self._tls is None else wrapClientTLS(self._tls.to(host.name), endpoint)

    async def _greet(self, host: MongoHost, connection: MongoConnection) -> None:
        """Log in; raise `NotUsableError` unless the host is the primary of the right set."""
        login = self._address.login
        greeting: dict[str, Any] = {"isMaster": 1, "helloOk": True, "client": _CLIENT}
        if login is not None and login.mechanism is None:
            greeting["saslSupportedMechs"] = f"{login.source}.{login.user}"
        # Every server understands the old name of `hello`.
        answer = raise_for_error(await connection.command("admin", greeting))
        name = answer.get("setName")
        if self._address.replica_set not in {None, name}:
            raise NotUsableError(f"it is a member of {name or 'no replica set'}")
        if name is not None:
            self._members = tuple(map(MongoHost.parse, answer.get("hosts") or ()))
            self._check_write_concern(answer)
        if not (answer.get("isWritablePrimary") or answer.get("ismaster")):
            primary = answer.get("primary")
            self._primary = MongoHost.parse(primary) if primary else None
            raise NotUsableError("it is not the primary")
        self._check_election(answer)
        self._primary = host
        self._compare_clocks(answer)
        if login is not None:
            await log_in(connection, login, answer.get("saslSupportedMechs"), self._passwords)

    def _compare_clocks(self, answer: Mapping[str, Any]) -> None:
        """Measure the difference of the clocks; log it once it exceeds the limit."""
        server_time = answer.get("localTime")
        if not isinstance(server_time, datetime):
            return
        is_logged = is_clock_apart(self.clock_lead)
        self.clock_lead = self._reactor.seconds() - server_time.replace(tzinfo=UTC).timestamp()
        if is_clock_apart(self.clock_lead) and not is_logged:
            self._log.warn("MongoDB: {gap}", gap=describe_clock_gap(self.clock_lead))

    def _check_write_concern(self, answer: Mapping[str, Any]) -> None:
        """Raise if a write could be lost after as many members as the URI says have it."""
        w = self._address.write_concern["w"]
        voters = sum(len(answer.get(kind) or ()) for kind in ("hosts", "passives", "arbiters"))
        if isinstance(w, int) and w <= voters // 2:
            raise NotUsableError(f"w={w} of MongoDBURI is not most of its {voters} members")

    def _check_election(self, answer: Mapping[str, Any]) -> None:
        """Raise if another primary was elected later and this one does not know it yet."""
        election = answer.get("electionId")
        if not isinstance(election, ObjectId):
            return
        if self._election is not None and election < self._election:
            raise NotUsableError("another was elected since it was the primary")
        self._election = election


def is_clock_apart(lead: float | None) -> TypeGuard[float]:
    """Return whether clocks differ by more than `CLOCK_SECONDS`."""
    return lead is not None and abs(lead) > CLOCK_SECONDS


def describe_clock_gap(lead: float) -> str:
    """Return in words how far this machine's clock is from the server's."""
    word = "ahead of" if lead > 0 else "behind"
    return f"the clock of this machine is {abs(lead):.0f} s {word} that of the database"


_EXPECTED_ERRORS = (
    NotUsableError, LoginFailed, PyMongoError, SSL.Error, network.ConnectError,
    network.ConnectionClosed, network.DNSLookupError, OSError,
)  # fmt: skip
"""Errors that one host may cause although the next host is fine."""


def _reason_of(error: BaseException) -> str:
    if isinstance(error, LoginFailed):
        return f"the login is refused: {error}"
    return str(error) or type(error).__name__


async def log_in(
    connection: MongoConnection,
    login: MongoLogin,
    mechanisms: list[str] | None,
    passwords: SaltedPasswords,
) -> None:
    """Log in with the best of the server's mechanisms for this user; raise `LoginFailed`."""
    mechanism = mechanism_of(login, mechanisms)

    async def send(body: dict[str, Any]) -> dict[str, Any]:
        answer = await connection.command(login.source, body)
        if not answer.get("ok"):
            raise LoginFailed(str(answer.get("errmsg")))
        return answer

    if mechanism == X509:
        user = {"user": login.user} if login.user else {}
        await send({"authenticate": 1, "mechanism": mechanism, **user})
    elif mechanism == PLAIN:
        payload = Binary(f"\0{login.user}\0{login.password}".encode())
        await send({"saslStart": 1, "mechanism": mechanism, "payload": payload})
    else:
        scram = Scram(login, mechanism)
        start = {"saslStart": 1, "mechanism": mechanism, "payload": Binary(scram.first())}
        answer = await send({**start, "options": {"skipEmptyExchange": True}})
        message = {"saslContinue": 1, "conversationId": answer.get("conversationId")}
        proof = await scram.prove(bytes(answer["payload"]), passwords)
        answer = await send({**message, "payload": Binary(proof.message)})
        proof.check(bytes(answer["payload"]))
        if not answer.get("done"):  # old servers expect one more message, an empty one
            await send({**message, "payload": Binary(b"")})
