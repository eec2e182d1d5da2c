"""Records of the store: images, the work on them, and how that work ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from shiftergw.errors import printable
from shiftergw.model.requests import ANONYMOUS, Session
from shiftergw.states import State

NOTICE_LIMIT = 500
"""Characters of the names of settings that a notice repeats."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is: bytes done of bytes in all; `total` 0 means not known."""

    stage: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class WorkerMachine:
    """A machine that works for the gateway, by what it last told; `jobs` are records' keys."""

    name: str
    version: str
    systems: tuple[str, ...]
    slots: int
    jobs: tuple[str, ...]
    leaving: bool
    heard: float


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image came from; `source_digest` is what the tag answered there."""

    location: str
    repository: str
    source_digest: str
    private: bool = False


# Members whose name in the stored document is not that of the attribute.
_WIRE_NAMES = {
    "status": "status",
    "tags": "tag",
    "user_acl": "userACL",
    "group_acl": "groupACL",
    "env": "ENV",
    "entry": "ENTRY",
    "cmd": "CMD",
    "workdir": "WORKDIR",
    "labels": "LABELS",
}


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What the store holds of one image, or of one piece of work on it.

    Members and their names in the document are those of the original gateway where it had them.
    `None` means that the document lacks the member. Times are seconds since 1970.
    """

    key: str = ""
    system: str = ""
    itype: str = "docker"
    tags: tuple[str, ...] = ()
    pulltag: str | None = None
    status: State = State.PENDING
    status_message: str | None = None
    id: str | None = None
    user_acl: tuple[int, ...] | None = None
    group_acl: tuple[int, ...] | None = None
    private: bool | None = None
    env: tuple[str, ...] | None = None
    entry: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    workdir: str | None = None
    labels: dict[str, str] | None = None
    last_pull: float | None = None
    expiration: float | None = None
    format: str | None = None
    arch: str | None = None
    os: str | None = None
    location: str | None = None
    remotetype: str | None = None
    ostcount: str | None = None
    replication: str | None = None
    claim: str | None = None
    kind: str = "pull"
    attempt: int = 0
    deaths: int = 0
    """How many attempts ended because their worker died."""
    runner: str | None = None
    """The process that has the attempt; None once the attempt has ended without a result."""
    last_heartbeat: float | None = None
    not_before: float | None = None
    waits_for: str | None = None
    waited: float = 0
    waited_for_pulls: float = 0
    waited_for_system: float = 0
    requested_by: int | None = None
    by_admin: bool | None = None
    origin: Origin | None = None
    size: int | None = None
    sha256: str | None = None
    modified: int | None = None
    options: str | None = None
    stage: str | None = None
    done: int = 0
    total: int = 0
    cause: str | None = None
    remedy: str | None = None
    retryable: bool | None = None
    own_failure: bool | None = None
    with_login: bool | None = None
    request_id: str | None = None
    requester: str | None = None
    """The name of the user, for the log; only while work is in flight."""
    sealed: str | None = field(default=None, repr=False)
    report: dict[str, Any] | None = None
    unusable_id: str = ""
    """What a record of the original has in the place of an id; no member of documents."""

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ImageRecord:
        """Read a stored document; members that we do not know are left where they are."""
        found: dict[str, Any] = {}
        for name, wire_name in _MEMBERS:
            value = document.get(wire_name)
            if value is not None:
                found[name] = tuple(value) if isinstance(value, list) else value
        for name in ("tags", "entry", "cmd"):  # the original has both forms
            if isinstance(found.get(name), str):
                found[name] = (found[name],)
        found["status"] = _state_of(found.get("status", State.PENDING))
        if "origin" in found:
            known = {f.name for f in fields(Origin)}
            found["origin"] = Origin(**{k: v for k, v in found["origin"].items() if k in known})
        found["key"] = str(document.get("_id", ""))
        return cls(**found)

    @property
    def is_private(self) -> bool:
        """Say whether the image is anybody's own; the original wrote null where it did not know."""
        return bool(self.user_acl or self.group_acl) if self.private is None else self.private

    def may_be_read_by(self, session: Session) -> bool:
        """Say whether `session` may see and run this image."""
        if not self.is_private:
            return True
        if session.uid == ANONYMOUS:
            return False
        if not self.user_acl and not self.group_acl:
            # Records of the original: private without any ACL is open, until pulled again.
            return True
        return session.uid in (self.user_acl or ()) or not session.groups.isdisjoint(
            self.group_acl or ()
        )

    @property
    def notice(self) -> str:
        """Return what users of a READY image should know, in one line; mostly nothing.

        Settings that no `.meta` file can hold, and labels beyond `MaxRecordSize`, are left out.
        """
        omitted = (self.report or {}).get("metadata")
        if self.status is not State.READY or not isinstance(omitted, list) or not omitted:
            return ""
        names = printable(", ".join(map(str, omitted)), NOTICE_LIMIT)
        return f"Jobs do without settings that the gateway cannot store: {names}"

    @property
    def in_flight(self) -> bool:
        """Say whether somebody works, or is to work, on this record."""
        return self.claim is not None


_MEMBERS = tuple(
    (f.name, _WIRE_NAMES.get(f.name, f.name))
    for f in fields(ImageRecord)
    if f.name != "unusable_id"
)
"""Of each attribute, the name in the document."""

MEMBERS = frozenset(wire_name for _, wire_name in _MEMBERS)
"""The names of all members of a document that we know."""


def _state_of(word: str) -> State:
    """Read a status of ours or of the original; other words of its are for work that is lost."""
    if word == "SUCCESS":
        return State.READY
    return State(word) if word in State.__members__ else State.FAILURE


def document_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Translate attribute names and values of `ImageRecord` to those of the document."""
    document: dict[str, Any] = {}
    for name, value in changes.items():
        plain = value
        if isinstance(value, tuple):
            plain = list(value)
        elif isinstance(value, State):
            plain = str(value)
        elif isinstance(value, Origin):
            plain = {f.name: getattr(value, f.name) for f in fields(value)}
        document[_WIRE_NAMES.get(name, name)] = plain
    return document


@dataclass(frozen=True, slots=True)
class Ready:
    """The good end of a piece of work: what `finish` writes into the READY record.

    `changes` are attributes of `ImageRecord`, without tag, status, claim and progress.
    A record that loses its last tag to this one does not expire before `untagged_until`.
    If the id is blocked in this image `directory`, the record is EXPIRING at once.
    """

    id: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    untagged_until: float = 0
    directory: str = ""


@dataclass(frozen=True, slots=True)
class Expired:
    """The end of a removal: the files are gone, or are another record's."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The bad end: cause and remedy for the user; `own` says it concerns this user alone."""

    stage: str
    cause: str
    remedy: str
    retryable: bool
    own: bool = False
