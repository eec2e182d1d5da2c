"""Logins and TLS with a MongoDB server: errors name the fault, and no secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.logger import capturedLogs, formatEvent

from shiftergw.errors import ConfigurationError, Unavailable
from shiftergw.store.mongo.store import MongoStore
from tests.certificates import Authority
from tests.mongod import Mongod
from tests.patience import stretch
from tests.store.places import mongo_running
from tests.store.pulls import NOW, complete_pull, request

PASSWORD = "p@ss:w/ord"
ESCAPED_PASSWORD = "p%40ss%3Aw%2Ford"


async def works(uri: str) -> None:
    """Pull an image through a store on this URI."""
    async with mongo_running(uri, "images") as store:
        record = await complete_pull(store, request())
        assert await store.get(record.key) == record


async def refusal(uri: str) -> str:
    """Return the error for a server that cannot be used."""
    with capturedLogs() as log:
        async with mongo_running(uri, "images", seconds=stretch(2)) as store:
            with pytest.raises(Unavailable) as caught:
                await store.claim(request(), NOW)
    assert "127.0.0.1" not in str(caught.value)
    for secret in (PASSWORD, ESCAPED_PASSWORD, "secret"):
        assert secret not in f"{caught.value!r} {caught.value.detail} {log} {store!r}"
    assert caught.value.http_status == 503
    return f"{caught.value} {caught.value.detail} {' '.join(filter(None, map(formatEvent, log)))}"


@pytest.fixture(scope="module")
def server_with_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """Return a server with users: `old` has SHA-1 only, `new` SHA-256, and `guest`."""
    server = Mongod(
        tmp_path_factory.mktemp("server_with_users"), "--standalone", "--sync-on-commit"
    )
    server.start()
    try:
        with pymongo.MongoClient[dict[str, Any]](server.uri) as client:
            for user, mechanism in (("old", "SCRAM-SHA-1"), ("new", "SCRAM-SHA-256")):
                client.admin.command(
                    "createUser", user, pwd=PASSWORD, mechanisms=[mechanism],
                    roles=[{"role": "readWrite", "db": "images"}],
                )  # fmt: skip
            client.elsewhere.command(
                "createUser", "guest", pwd=PASSWORD, roles=[{"role": "read", "db": "images"}]
            )
        server.kill()
        server.start("--auth")
        yield server
    finally:
        server.kill()


def uri_of(server: Mongod, login: str, rest: str = "") -> str:
    """Return the URI of a server for a user."""
    return f"mongodb://{login}@127.0.0.1:{server.port}/{rest}"


@pytest.mark.parametrize(
    "login", [("old", ""), ("new", ""), ("new", "?authMechanism=SCRAM-SHA-256&authSource=admin")]
)
@pytest_twisted.ensureDeferred
async def test_logins(server_with_users: Mongod, login: tuple[str, str]) -> None:
    """Both kinds of SCRAM work, whether the URI names the mechanism or not."""
    user, rest = login
    await works(uri_of(server_with_users, f"{user}:{ESCAPED_PASSWORD}", rest))


@pytest.mark.parametrize(
    ("login", "rest", "reason"),
    [
        ("new:secret", "", "the login is refused"),
        ("nobody:secret", "", "the login is refused"),
        (f"old:{ESCAPED_PASSWORD}", "?authMechanism=SCRAM-SHA-256", "the login is refused"),
        (f"new:{ESCAPED_PASSWORD}", "?authSource=elsewhere", "the login is refused"),
        (f"guest:{ESCAPED_PASSWORD}", "?authSource=elsewhere", "may not do this"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_refused_logins_are_explained(
    server_with_users: Mongod, login: str, rest: str, reason: str
) -> None:
    """A wrong password, user, mechanism or database, and missing rights, have different errors.

    None of them says that the server is away, because the configuration has to be corrected.
    """
    error = await refusal(uri_of(server_with_users, login, rest))
    assert reason in error
    assert (
        "does not let the gateway do what it must. Tell the site's support: correct user" in error
    )
    assert "does not answer" not in error


@pytest_twisted.ensureDeferred
async def test_a_server_may_require_a_login(server_with_users: Mongod) -> None:
    """A server that requires a login refuses a URI without a user."""
    assert "may not do this" in await refusal(server_with_users.uri)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that signs certificates."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """Return a server with TLS whose certificate is for `localhost` only."""
    certificate = authority.file("localhost")
    options = ["--tls-cert-file", str(certificate), "--tls-key-file", str(certificate)]
    ca = ["--tls-ca-file", str(authority.pem)]
    with Mongod(tmp_path_factory.mktemp("tls_server"), "--standalone", *options, *ca) as running:
        yield running


@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("localhost", "tlsCAFile={ca}"),
        ("127.0.0.1", "tlsCAFile={ca}&tlsAllowInvalidHostnames=true"),
        ("127.0.0.1", "tlsInsecure=true"),
        ("localhost", "tlsAllowInvalidCertificates=true"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_authority_of_the_uri_is_used(
    tls_server: Mongod, authority: Authority, host: str, options: str
) -> None:
    """Options of the URI may relax the verification."""
    options = options.format(ca=authority.pem)
    await works(f"mongodb://{host}:{tls_server.port}/?tls=true&{options}")


@pytest.mark.parametrize(
    ("host", "options", "reason"),
    [
        ("127.0.0.1", "tls=true&tlsCAFile={ca}", "is for localhost, not for 127.0.0.1"),
        ("localhost", "tls=true", "not trusted. Name the file of its authority by tlsCAFile"),
        ("localhost", "", "was lost"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_invalid_certificates_are_refused(
    tls_server: Mongod, authority: Authority, host: str, options: str, reason: str
) -> None:
    """A wrong host name, an unknown authority, and a server without TLS are refused."""
    options = options.format(ca=authority.pem)
    assert reason in await refusal(f"mongodb://{host}:{tls_server.port}/?{options}")


@pytest_twisted.ensureDeferred
async def test_a_server_may_require_a_client_certificate(
    authority: Authority, tmp_path: Path
) -> None:
    """The key of the certificate may have a password."""
    certificate = authority.file("localhost")
    options = ["--tls-cert-file", certificate, "--tls-key-file", certificate]
    ca = ["--tls-ca-file", authority.pem, "--tls-require-client-cert"]
    with Mongod(tmp_path, "--standalone", *map(str, [*options, *ca])) as server:
        base = f"mongodb://localhost:{server.port}/?tls=true&tlsCAFile={authority.pem}"
        own = authority.file("gateway")
        await works(f"{base}&tlsCertificateKeyFile={own}")
        own = authority.file("gateway", "secret")
        await works(f"{base}&tlsCertificateKeyFile={own}&tlsCertificateKeyFilePassword=secret")
        assert "certificate required" in await refusal(base)


@pytest.mark.parametrize(
    "options",
    [
        "tlsCAFile={empty}",
        "tlsCertificateKeyFile={empty}",
        "tlsCertificateKeyFile={own}",
        "tlsCertificateKeyFile={own}&tlsCertificateKeyFilePassword=x",
    ],
)
def test_unreadable_certificates_prevent_the_start(
    authority: Authority, tmp_path: Path, options: str
) -> None:
    """The error names the files for the operator."""
    (tmp_path / "empty").touch()
    own = authority.file("gateway", "secret")
    options = options.format(empty=tmp_path / "empty", own=own)
    store = MongoStore(reactor, f"mongodb://h/?tls=true&{options}", "images")
    with pytest.raises(ConfigurationError, match="certificates cannot be read") as caught:
        store.startService()
    assert "secret" not in str(caught.value)
    assert not store.running
