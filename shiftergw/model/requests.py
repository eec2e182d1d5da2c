"""Users and their requests: sessions, registry logins, pulls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shiftergw.model.references import ImageReference
from shiftergw.model.uploads import ImageFile

ANONYMOUS = -1
"""The uid of users without a credential, if the site permits them; no real user has it."""

IMAGE_TYPES = frozenset({"docker", "custom"})
"""The image types that records have; clients handle the types `id` and `local` themselves."""


IDENTITY_TOKEN_USER = "<token>"  # noqa: S105 - the name of a user
"""The user of a login whose password is an identity token: the convention of Docker's helpers."""


@dataclass(frozen=True, slots=True)
class RegistryLogin:
    """A user's login at one registry; the password is never shown.

    If the user is `IDENTITY_TOKEN_USER`, the password is an identity token: a refresh token of
    OAuth 2 (RFC 6749, section 1.5), which only the registry's token service takes.
    """

    user: str
    password: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> RegistryLogin:
        """Split `user:password` at the first colon; the password may contain more colons."""
        user, _, password = text.partition(":")
        return cls(user, password)

    @property
    def is_identity_token(self) -> bool:
        """Return whether the password is an identity token."""
        return self.user == IDENTITY_TOKEN_USER


@dataclass(frozen=True, slots=True)
class UserAccount:
    """The names of a uid and a gid, and all gids of the user, this gid included.

    The name of an id that the directory does not have is its digits, so no two names are the same.
    """

    user: str
    group: str
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class Session:
    """A user of a system, with registry logins by name of the location."""

    system: str
    user: str
    uid: int
    group: str
    gid: int
    groups: frozenset[int] = frozenset()
    logins: Mapping[str, RegistryLogin] = field(default_factory=dict, repr=False)
    admin: bool = False


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many pulls may wait for a worker: of all users together, and of each user."""

    waiting: int
    waiting_per_user: int


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A user's request to have an image on a system.

    `kind` is "pull", or "acl" for a change of the delivered image's readers without the registry.
    `location` is the configured name of the registry. `sealed` is the user's encrypted login.
    `upload` is the file that the image is made of, if it does not come from a registry.
    """

    system: str
    itype: str
    reference: ImageReference
    requested_by: int
    user_acl: tuple[int, ...] = ()
    group_acl: tuple[int, ...] = ()
    request_id: str = ""
    requester: str = ""
    sealed: str | None = field(default=None, repr=False)
    kind: str = "pull"
    by_admin: bool = False
    location: str | None = None
    upload: ImageFile | None = None

    @property
    def tag(self) -> str:
        """Return the normalized reference, under which clients look up the result."""
        return str(self.reference)

    @property
    def claim(self) -> str:
        """Return the claim, a key that is unique among all work in flight."""
        return f"{self.system}/{self.itype}/{self.tag}"
