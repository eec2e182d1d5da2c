"""Mock credentials, for tests and trials."""

from __future__ import annotations

import pytest
import pytest_twisted

from shiftergw.auth.mock import DEFAULT_ID, MockAuthenticator
from shiftergw.errors import NotAuthenticated
from shiftergw.model.requests import RegistryLogin, Session
from shiftergw.ports import Authenticator


class Groups:
    """Groups with one group more than the credential has."""

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:
        """Return the primary group and another one."""
        return frozenset({gid, 42})


def authenticator(*admins: str | int) -> Authenticator:
    """Return the authenticator of the system `perlmutter`."""
    return MockAuthenticator("perlmutter", Groups(), admins)


@pytest.mark.parametrize(
    ("credential", "uid", "gid", "logins"),
    [
        ("good:alice:users", DEFAULT_ID, DEFAULT_ID, {}),
        ("good:alice:users:", DEFAULT_ID, DEFAULT_ID, {}),
        ("good:alice:users::2001:2100", 2001, 2100, {}),
        (
            "good:alice:users:secret:2001:2100",
            2001,
            2100,
            {"default": RegistryLogin("alice", "secret")},
        ),
        (
            "good:alice:users:secret",
            DEFAULT_ID,
            DEFAULT_ID,
            {"default": RegistryLogin("alice", "secret")},
        ),
        ("good:alice:users::0:0", 0, 0, {}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_good_credentials(
    credential: str, uid: int, gid: int, logins: dict[str, RegistryLogin]
) -> None:
    """A credential has user and group, optionally token and ids; without ids no user is root."""
    session = await authenticator().authenticate(credential, "perlmutter")
    assert session == Session(
        system="perlmutter",
        user="alice",
        uid=uid,
        group="users",
        gid=gid,
        groups=frozenset({gid, 42}),
        logins=logins,
    )
    assert "secret" not in repr(session)


@pytest.mark.parametrize(
    "credential",
    [
        "",
        "(null)",
        "good",
        "good:alice",
        "bad:alice:users",
        "GOOD:alice:users",
        " good:alice:users",
        "good::users",
        "good:alice:",
        "good:alice:users:token:2001",
        "good:alice:users::2001:2100:more",
        "good:alice:users::-1:2100",
        "good:alice:users::2001:",
        "good:alice:users::2001:4294967295",
        "good:alice:users::99999999999:1",
        "good:alice:users::٣:1",
        "good:al\0ice:users",
        "good:al ice:users",
        "good:alice:us\ners",
        "MUNGE:AwQFAAC:",
    ],
)
@pytest_twisted.ensureDeferred
async def test_invalid_credentials_are_refused(credential: str) -> None:
    """A credential of another form is refused, and the answer does not quote it."""
    with pytest.raises(NotAuthenticated) as caught:
        await authenticator().authenticate(credential, "perlmutter")
    assert str(caught.value).isprintable()


@pytest_twisted.ensureDeferred
async def test_another_system() -> None:
    """A credential is valid for its own system only."""
    with pytest.raises(NotAuthenticated):
        await authenticator().authenticate("good:alice:users", "other")


@pytest.mark.parametrize(
    ("admins", "expected"),
    [
        ((), False),
        (("alice",), True),
        ((2001,), True),
        (("bob", 7), False),
        (("alic", "2001"), False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_admins(admins: tuple[str | int, ...], expected: bool) -> None:
    """An admin is listed by the exact name, or by uid."""
    session = await authenticator(*admins).authenticate("good:alice:users::2001:1", "perlmutter")
    assert session.admin is expected
