"""MongoDBURI: valid and invalid forms, and errors without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftergw.errors import ConfigurationError
from shiftergw.mongo.address import PLAIN, X509, MongoAddress, MongoHost, MongoLogin, MongoTls

SECRET = "hunter2"


def test_the_original_sample_is_read() -> None:
    """The URI in the original's samples names one host and nothing else."""
    address = MongoAddress.parse("mongodb://mongodb/")
    assert address == MongoAddress((MongoHost("mongodb", 27017),))
    assert address.write_concern == {"w": "majority", "j": True}


def test_all_parts_of_a_uri_are_read(tmp_path: Path) -> None:
    """Hosts, login, TLS, replica set and write concern."""
    for name in ("ca", "own"):
        (tmp_path / name).touch()
    address = MongoAddress.parse(
        f"mongodb://me:p%40{SECRET}@one:1,two,[::1]:3,%2Frun%2Fm.sock/there?replicaSet=rs0"
        f"&w=2&journal=false&tls=true&tlsCAFile={tmp_path}/ca&tlsCertificateKeyFile={tmp_path}/own"
        f"&tlsCertificateKeyFilePassword={SECRET}&authMechanism=SCRAM-SHA-1"
    )
    assert [str(host) for host in address.hosts] == ["one:1", "two:27017", "[::1]:3", "/run/m.sock"]
    assert address.login == MongoLogin("me", f"p@{SECRET}", "there", "SCRAM-SHA-1")
    assert address.tls == MongoTls(tmp_path / "ca", tmp_path / "own", SECRET)
    assert (address.replica_set, address.write_concern) == ("rs0", {"w": 2, "j": False})
    assert SECRET not in repr(address)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("mongodb://me:x@h", MongoLogin("me", "x", "admin")),
        ("mongodb://me:x@h/db", MongoLogin("me", "x", "db")),
        ("mongodb://me:x@h/db?authSource=other", MongoLogin("me", "x", "other")),
        ("mongodb://me:x@h/db?authMechanism=DEFAULT", MongoLogin("me", "x", "db")),
        ("mongodb://h/?authMechanism=MONGODB-X509", MongoLogin("", "", "$external", X509)),
        (
            "mongodb://CN=me@h/?authMechanism=MONGODB-X509",
            MongoLogin("CN=me", "", "$external", X509),
        ),
        (
            "mongodb://me:x@h/?authMechanism=PLAIN&tls=true",
            MongoLogin("me", "x", "$external", PLAIN),
        ),
        ("mongodb://h/db", None),
    ],
)
def test_logins(uri: str, expected: MongoLogin | None) -> None:
    """The user's database is that of authSource, or else of the path, or else `admin`."""
    assert MongoAddress.parse(uri).login == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("tls=true", MongoTls()),
        ("ssl=true", MongoTls()),
        ("tls=true&tlsInsecure=true", MongoTls(any_certificate=True, any_name=True)),
        ("tls=true&tlsAllowInvalidCertificates=true", MongoTls(any_certificate=True)),
        ("tls=true&tlsAllowInvalidHostnames=true", MongoTls(any_name=True)),
        ("tls=false", None),
        ("readPreference=secondary&maxPoolSize=9&connectTimeoutMS=1&appName=x", None),
    ],
)
def test_tls(options: str, expected: MongoTls | None) -> None:
    """Certificates are verified unless the URI says otherwise."""
    assert MongoAddress.parse(f"mongodb://h/?{options}").tls == expected


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("mongodb://", "at least one host"),
        ("postgres://h:27017", "must begin with"),
        ("mongodb+srv://h.example.com/", "name the hosts"),
        (f"mongodb+srv://me:{SECRET}@h.example.com/", "name the hosts"),
        ("mongodb://h,,g", "extra comma"),
        ("mongodb://h:port", "Port"),
        (f"mongodb://me:{SECRET}@h:99999", "between 0 and 65535"),
        (f"mongodb://me:@{SECRET}@h", "percent-encoded"),
        (f"mongodb://me:/{SECRET}@h/", "percent-encoded"),
        (f"mongodb://me%:{SECRET}@h/", "percent-encoded"),
        (f"mongodb://me:a:{SECRET}@h/", "percent-encoded"),
        ("mongodb://me@h/", "no password"),
        ("mongodb://h/?retries=5", "Unknown option: retries"),
        (f"mongodb://me:{SECRET}@h/?retries=5", "Unknown option: retries"),
        (f"mongodb://h/?tlsCertificateKeyFilePassword={SECRET}&tls=perhaps", "tls"),
        (f"mongodb://h/?authMechanismProperties={SECRET}", "Malformed auth mechanism properties"),
        ("mongodb://h/?tls=true&tlsCAFile=/nowhere/ca.pem", "No such file"),
        (f"mongodb://me:{SECRET}@h/?authMechanism=GSSAPI", "authMechanism: must be one of"),
        ("mongodb://h/?authMechanism=SCRAM-SHA-256", "needs a user"),
        (f"mongodb://me:{SECRET}@h/?authMechanism=PLAIN", "needs tls"),
        ("mongodb://h/?w=0", "may get lost"),
        ("mongodb://h/?loadBalanced=true", "load balancer"),
        (f"mongodb://h/?tls=true&tlsCRLFile={__file__}", "revoked"),
    ],
)
def test_errors_name_the_option_and_no_secret(uri: str, reason: str) -> None:
    """Each invalid URI raises an error that names the fault."""
    with pytest.raises(ConfigurationError, match=reason) as caught:
        MongoAddress.parse(uri)
    assert str(caught.value).startswith("MongoDBURI: ")
    assert SECRET not in str(caught.value) + caught.value.detail
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_names_of_members_are_read() -> None:
    """A server names other members as host:port."""
    reason = ["db1.example.com:27018", "[::1]:5", "db1"]
    assert [str(MongoHost.parse(name)) for name in reason] == [*reason[:2], "db1:27017"]
