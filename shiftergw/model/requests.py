"""Users and their requests: sessions, logins, pulls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shiftergw.model.references import ImageReference

ANONYMOUS = -1
"""The uid of whoever sent no credential, where that is allowed: no user has it."""

IMAGE_TYPES = frozenset({"docker", "custom"})
"""The image types that live in records; `id` and `local` never ask the gateway."""


@dataclass(frozen=True, slots=True)
class RegistryLogin:
    """A user's login for one location; never shown."""

    user: str
    password: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> RegistryLogin:
        """Split `user:password` at the first colon; the password may hold more."""
        user, _, password = text.partition(":")
        return cls(user, password)


@dataclass(frozen=True, slots=True)
class Session:
    """Who asks, on which system, with which registry logins (location name → login)."""

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
    """How many pulls may wait for a worker: of all users together, and of each."""

    waiting: int
    waiting_per_user: int


@dataclass(frozen=True, slots=True)
class PullRequest:
    """One user's wish to have one image on one system.

    `kind` is "pull", or "acl" for work on who may read what lies there, without the registry.
    `location` is the name of the registry that the reference means.
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

    @property
    def tag(self) -> str:
        """Return the normalised reference, the key under which the result is found."""
        return str(self.reference)

    @property
    def claim(self) -> str:
        """Return the key that is unique among all work in flight."""
        return f"{self.system}/{self.itype}/{self.tag}"
