"""Records of the store: images, the work on them, and the ends of that work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from shiftergw.errors import printable
from shiftergw.model.layer_progress import LayerProgress
from shiftergw.model.requests import ANONYMOUS, Session
from shiftergw.model.uploads import ImageFile
from shiftergw.states import POLLING_STATES, State

NOTICE_LIMIT = 500
"""Characters of setting names in a notice."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a stage in bytes; `total` 0 means unknown.

    `copied_bytes` of the bytes done of a delivery were not sent: the system copied them from
    another image. `downloaded_bytes` have arrived from a registry since the download of layers
    began; the others were in the cache. `signs` differs from that of the last report if the stage
    has worked meanwhile, even if no bytes were done: `mksquashfs` may sort a large directory for
    minutes. `rate` is in bytes a second, and `time_left` the seconds until the end of the whole
    pull, where they are known: an attempt adds them to the reports of its stages. `layers`
    are being downloaded.
    """

    stage: str = ""
    done: int = 0
    total: int = 0
    copied_bytes: int = 0
    signs: int = 0
    downloaded_bytes: int = 0
    rate: int | None = None
    time_left: float | None = None
    layers: tuple[LayerProgress, ...] = ()

    def after(self, earlier: Progress) -> Progress:
        """Return this progress as users see it after `earlier`.

        Within one stage the bytes never become fewer, although a part of the work may be done
        again, such as a download that broke; and they are never more than the total.
        """
        done, total = self.done, self.total
        if self.stage == earlier.stage:
            done, total = max(done, earlier.done), total or earlier.total
        return replace(self, done=min(done, total) if total else done, total=total)


@dataclass(frozen=True, slots=True)
class WorkerMachine:
    """A worker machine as it last reported itself.

    `jobs` are the keys of the records in work. `leaving` means that it accepts no more jobs.
    `heard` is the time of the report.
    """

    name: str
    version: str
    systems: tuple[str, ...]
    slots: int
    jobs: tuple[str, ...]
    leaving: bool
    heard: float


@dataclass(frozen=True, slots=True)
class Origin:
    """The repository that an image came from; `source_digest` is the digest of its tag there."""

    location: str
    repository: str
    source_digest: str
    private: bool = False


# Attributes that have another name in the stored document.
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
    """An image in the store, or one piece of work on it.

    Members of the document that the original gateway has too carry its names (`_WIRE_NAMES`).
    `None` means that the document lacks the member. Times are in seconds since 1970.
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
    """The number of attempts that ended because their worker died."""
    runner: str | None = None
    """The worker process of the attempt; None after an attempt that ended without a result."""
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
    rate: int | None = None
    time_left: float | None = None
    layers_in_flight: tuple[Any, ...] | None = None
    """The layers that are being downloaded, see `parse_layers`."""
    cause: str | None = None
    remedy: str | None = None
    retryable: bool | None = None
    own_failure: bool | None = None
    with_login: bool | None = None
    request_id: str | None = None
    requester: str | None = None
    """The name of the user, for the log; present only while work is in flight."""
    sealed: str | None = field(default=None, repr=False)
    report: dict[str, Any] | None = None
    verdict: dict[str, Any] | None = field(default=None, repr=False)
    """What the policy of the system decided when the image was last pulled, see `PolicyVerdict`."""
    upload: ImageFile | None = None
    """The file that the image is made of; None if it comes from a registry."""
    owners: dict[str, int] | None = None
    """The uids of the users who own the tags of a custom image, see `rules.access`."""
    only_user: int | None = None
    """The uid of the only user who has pulled the image or looked it up; None if that is unknown,
    or if there are several."""
    pinned_by: int | None = None
    """The uid of the user who has pinned the image, so that it does not expire."""
    unusable_id: str = ""
    """The invalid image id of a record that the original gateway wrote; not in documents."""
    queue_place: int | None = None
    queue_length: int | None = None
    """The place of waiting work, from 1, and the length of the queue; never stored."""

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ImageRecord:
        """Parse a stored document, and ignore unknown members."""
        values: dict[str, Any] = {}
        for name, wire_name in _MEMBERS:
            value = document.get(wire_name)
            if value is not None:
                values[name] = tuple(value) if isinstance(value, list) else value
        for name in ("tags", "entry", "cmd"):  # the original gateway wrote strings and lists
            if isinstance(values.get(name), str):
                values[name] = (values[name],)
        values["status"] = _state_of(values.get("status", State.PENDING))
        for name, kind in _OBJECT_CLASSES.items():
            if name in values:
                # A later version may have written more members.
                names = {f.name for f in fields(kind)}
                values[name] = kind(**{k: v for k, v in values[name].items() if k in names})
        values["key"] = str(document.get("_id", ""))
        return cls(**values)

    @property
    def is_ready(self) -> bool:
        """Return whether the image can be used."""
        return self.status is State.READY

    @property
    def is_polled(self) -> bool:
        """Return whether clients poll until this record has another state."""
        return self.status in POLLING_STATES

    @property
    def is_private(self) -> bool:
        """Return whether the image is private.

        The original gateway wrote null if it did not know; then an ACL makes the image private.
        """
        return bool(self.user_acl or self.group_acl) if self.private is None else self.private

    def may_be_read_by(self, session: Session) -> bool:
        """Return whether a user may see and run this image."""
        if not self.is_private:
            return True
        if session.uid == ANONYMOUS:
            return False
        if not self.user_acl and not self.group_acl:
            # The original gateway wrote private records without an ACL; they are open to everybody
            # until the image is pulled again.
            return True
        return session.uid in (self.user_acl or ()) or not session.groups.isdisjoint(
            self.group_acl or ()
        )

    @property
    def notice(self) -> str:
        """Return one line about what a pull could not do, for the image's users; mostly empty.

        An image loses settings that a `.meta` file cannot contain, and labels beyond
        `MaxRecordSize`. An upload does not change who may use an image of another user.
        """
        if not self.is_ready:
            return ""
        settings = (self.report or {}).get("metadata")
        sentences = []
        if isinstance(settings, list) and settings:
            names = printable(", ".join(map(str, settings)), NOTICE_LIMIT)
            sentences.append(f"Jobs do without settings that the gateway cannot store: {names}")
        if self.upload is not None and self.upload.public and self.is_private:
            sentences.append(
                "The image stays private: another user made it of the same content before."
            )
        if self.upload is not None and not self.upload.public and not self.is_private:
            sentences.append(
                "Everybody may use the image: its content was public before this upload."
            )
        return " ".join(sentences)

    @property
    def in_flight(self) -> bool:
        """Return whether a job works on this record or will do so."""
        return self.claim is not None


_OBJECT_CLASSES: Mapping[str, type[Origin | ImageFile]] = {"origin": Origin, "upload": ImageFile}
"""Attributes whose value is an object in the document, and their classes."""

_MEMBERS = tuple(
    (f.name, _WIRE_NAMES.get(f.name, f.name))
    for f in fields(ImageRecord)
    if f.name not in {"unusable_id", "queue_place", "queue_length"}
)
"""The name in the document of each attribute."""

MEMBERS = frozenset(wire_name for _, wire_name in _MEMBERS)
"""The names of all known members of a document."""


def _state_of(word: str) -> State:
    """Parse a status of this gateway or of the original one.

    Other states of the original belong to work that is lost: they count as FAILURE.
    """
    if word == "SUCCESS":
        return State.READY
    return State(word) if word in State.__members__ else State.FAILURE


def document_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Translate attributes of `ImageRecord` to members of its document."""
    document: dict[str, Any] = {}
    for name, value in changes.items():
        plain = value
        if isinstance(value, tuple):
            plain = list(value)
        elif isinstance(value, State):
            plain = str(value)
        elif isinstance(value, Origin | ImageFile):
            plain = {f.name: getattr(value, f.name) for f in fields(value)}
        document[_WIRE_NAMES.get(name, name)] = plain
    return document


@dataclass(frozen=True, slots=True)
class Ready:
    """The success of a pull: what `ImageStore.finish` writes into the READY record.

    `changes` are attributes of `ImageRecord`, without tag, status, claim and progress. A record
    that loses its last tag to this one does not expire before `untagged_until`. If the image id is
    blocked in this image `directory`, the record becomes EXPIRING at once.
    """

    id: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    untagged_until: float = 0
    directory: str = ""


@dataclass(frozen=True, slots=True)
class Expired:
    """The success of a removal: the files are removed, or belong to another record too."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The failure of a pull or removal, with cause and remedy for the user.

    `own` means that the failure concerns only this user, for example their login.
    """

    stage: str
    cause: str
    remedy: str
    retryable: bool
    own: bool = False
