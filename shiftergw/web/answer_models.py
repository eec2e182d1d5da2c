"""The members of all answers, for the description of the interface.

`web.render` and the modules of the routes write the answers. Every member that they write is here
with its type: `tests/golden/test_descriptions.py` compares them with the recorded answers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shiftergw.model.explanations import Explanation
from shiftergw.states import State

OPTIONAL: Any = None
"""The value of members that only some answers have; models of answers are never filled."""

Missing = Literal["MISSING"]
"""The text that stands for the value of a member that a record lacks."""

ImageId = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Time = Annotated[float, Field(ge=0)]
Id = Annotated[int, Field(ge=-1)]


class AnswerModel(BaseModel):
    """A JSON object of an answer. Clients must ignore members that they do not know."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class AcceptedImage(AnswerModel):
    """Why the policy of the system accepts an image."""

    requirement: str
    """The type of the requirement that decided, with its scope."""
    identity: str
    """The signers, or ""."""
    reason: str
    """A sentence for the user."""
    policy: str
    """The digest of the policy."""
    image: str
    """The name that was judged; the image may have others."""


class Record(AnswerModel):
    """An image, or the work on it. All members but `policy` are always there.

    A member that has no value is the text "MISSING".
    """

    id: ImageId | Missing
    """The digest of the manifest for the system's architecture."""
    system: str
    """The system that has the image."""
    itype: str
    """The type of the image: docker or custom."""
    tag: tuple[str, ...]
    """The names of the image; empty until it is READY."""
    status: State
    """The state. Clients poll while it is INIT, PENDING, PULLING, EXAMINATION, CONVERSION or
    TRANSFER."""
    user_acl: tuple[int, ...] | Missing = Field(alias="userACL")
    """The uids that may use a private image."""
    group_acl: tuple[int, ...] | Missing = Field(alias="groupACL")
    """The gids that may use a private image."""
    env: tuple[str, ...] | Missing = Field(alias="ENV")
    """The environment: NAME=VALUE."""
    entry: tuple[str, ...] | Missing = Field(alias="ENTRY")
    """The entrypoint."""
    workdir: str = Field(alias="WORKDIR")
    """The working directory."""
    labels: dict[str, str] | Missing = Field(alias="LABELS")
    """The labels, with `ENABLE_LABELS`."""
    last_pull: Time | Missing
    """The time of the last pull, in seconds since 1970, always with a decimal point."""
    status_message: str
    """What is going on, in words."""
    policy: AcceptedImage = OPTIONAL


class ListedImage(Record):
    """An image in the list of images."""

    size: Count = OPTIONAL
    """The size of the squashfs file in bytes."""
    private: bool = OPTIONAL
    """Whether only some users may use the image."""
    owner: Count = OPTIONAL
    """The uid of the user whose image it is."""
    expiration: Time = OPTIONAL
    """The time at which the image expires, in seconds since 1970."""
    pinned: Literal[True] = OPTIONAL
    """The image does not expire."""


class ImageNames(AnswerModel):
    """What an image can be called."""

    id: ImageId
    """The id of the image."""
    itype: str
    """The type of the image: docker or custom."""
    tag: tuple[str, ...]
    """The names of the image."""


class LayerInFlight(AnswerModel):
    """A layer that is being downloaded."""

    digest: str
    """The first 12 hexadecimal digits of its digest."""
    done: Count
    """Bytes that are there."""
    total: Count
    """Bytes of the layer."""


class WorkMembers(AnswerModel):
    """The progress or the end of a pull; each member is there if it has a value."""

    stage: str = OPTIONAL
    """What the pull is doing, or where it has failed."""
    done: Count = OPTIONAL
    """Bytes of the stage that are done."""
    total: Count = OPTIONAL
    """Bytes of the stage; 0 while they are unknown."""
    rate: Count = OPTIONAL
    """Bytes a second."""
    time_left: Time = OPTIONAL
    """Seconds until the end of the pull."""
    activity: str = OPTIONAL
    """`status_message` without its numbers."""
    layers_in_flight: tuple[LayerInFlight, ...] = OPTIONAL
    """The layers that are being downloaded, at most 8."""
    queue_place: Count = OPTIONAL
    """The place of a pull that waits for a worker, from 1."""
    queue_length: Count = OPTIONAL
    """The number of pulls that wait for a worker."""
    waits_for: str = OPTIONAL
    """What a postponed pull waits for."""
    waits_until: Time = OPTIONAL
    """The time until which it waits, in seconds since 1970."""
    cause: str = OPTIONAL
    """Why the pull has failed."""
    remedy: str = OPTIONAL
    """What to do about that."""
    retryable: bool = OPTIONAL
    """Whether the same pull may succeed later."""
    request_id: str = OPTIONAL
    """The id of the request that has begun the pull, for its user and for admins."""
    notice: str = OPTIONAL
    """What the pull could not do, although it has succeeded."""


class PullAnswer(Record, WorkMembers):
    """The record of a pull in any state, with its progress or the reason of its failure."""


class QueueRow(WorkMembers):
    """Work in flight, or a failure."""

    status: State
    """The state of the work."""
    image: str
    """The name of the image."""
    type: str
    """The type of the image: docker or custom."""
    status_message: str = OPTIONAL
    """What is going on, in words."""
    since: Time = OPTIONAL
    """When the pull was requested, or when it has failed, in seconds since 1970."""
    owner: Count = OPTIONAL
    """The uid of the user of the pull, for this user and for admins."""
    user: str = OPTIONAL
    """The name of this user, while the pull lasts."""


class ImageList(AnswerModel):
    """The READY images that the caller may use."""

    list: tuple[ListedImage, ...]


class NameList(AnswerModel):
    """The names of the READY images that the caller may use."""

    list: tuple[ImageNames, ...]


class SystemRow(AnswerModel):
    """A system of the gateway."""

    system: str
    """Its name."""


class SystemList(AnswerModel):
    """The systems of the gateway."""

    list: tuple[SystemRow, ...]


class Queue(AnswerModel):
    """The work that the caller may see."""

    list: tuple[QueueRow, ...]


class Machine(AnswerModel):
    """A machine with workers, as it last reported itself."""

    name: str
    version: str
    systems: tuple[str, ...]
    """The systems that it works for."""
    slots: Count
    """The number of jobs that it does at the same time."""
    jobs: tuple[str, ...]
    """The names of the images that it works on."""
    leaving: bool
    """Whether it accepts no more jobs."""
    heard: Time
    """The time of its report, in seconds since 1970."""


class MachineList(AnswerModel):
    """The machines with workers of the system."""

    list: tuple[Machine, ...]


class RegistryRow(AnswerModel):
    """A registry in the configuration of the gateway."""

    location: str
    """Its name in the configuration, and in names of images."""
    host: str
    """HOST or HOST:PORT."""


class RegistryList(AnswerModel):
    """The configured registries."""

    list: tuple[RegistryRow, ...]


class Lookup(AnswerModel):
    """A look-up that was answered with an image; old ones may lack members."""

    user: str = OPTIONAL
    uid: Id = OPTIONAL
    """The uid of the user; -1 if the request had no credential."""
    system: str = OPTIONAL
    type: str = OPTIONAL
    tag: str = OPTIONAL
    """The name of the image, as the request had it."""
    id: str = OPTIONAL
    time: Time
    """Seconds since 1970."""


class Success(AnswerModel):
    """The change is made, or will be made soon."""

    status: Literal[True]


class ImageChange(AnswerModel):
    """The change of an image is made, or will be made soon."""

    status: Literal[True]
    id: ImageId
    """The id of the image."""


class RemovalAnswer(ImageChange):
    """The files of the image are being removed."""

    names: tuple[str, ...] = Field(alias="removed")
    """The names that the image had."""


class PinAnswer(ImageChange):
    """Whether the image is pinned now."""

    pinned: bool
    """Whether the image stays, however long nobody uses it."""


class LoginVerdictAnswer(AnswerModel):
    """What a registry says of a login."""

    result: Literal["accepted", "refused", "not-asked", "unknown"]
    """The registry accepts or refuses it, answers without a login, or cannot be asked."""
    cause: str
    """Why, or ""."""
    remedy: str
    """What to do, or ""."""


class ExpiredImages(AnswerModel):
    """The images that expire now."""

    status: tuple[ImageId, ...]


class UploadAnswer(AnswerModel):
    """The state of an upload."""

    upload: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """The id of the upload."""
    offset: Count
    """Bytes of the file that have arrived; the next chunk begins here."""
    size: Count
    """The size of the file in bytes."""
    chunk: Count
    """Bytes of a chunk, at most."""
    expires: Time
    """The time at which the upload is removed, in seconds since 1970."""


class UploadRow(AnswerModel):
    """An upload in the list of uploads."""

    upload: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """The id of the upload."""
    filename: str
    """The name of the file on the user's machine, or ""."""
    kind: str
    """The kind of the file, or ""."""
    size: Count
    """The size of the file in bytes."""
    offset: Count
    """Bytes of the file that have arrived."""
    expires: Time
    """The time at which the upload is removed, in seconds since 1970."""
    images: tuple[str, ...]
    """The names of the images that are being made of it."""


class UploadList(AnswerModel):
    """The uploads of the caller, the last changed one first."""

    list: tuple[UploadRow, ...]


class PageEntry(AnswerModel):
    """An address of the page for browsers, which works once."""

    path: str
    """The address below that of the gateway."""
    seconds: float
    """The time within which it has to be opened."""


class NameIsFree(AnswerModel):
    """An image of this name may be made of an upload of this size."""

    status: Literal[True]
    limit: Count
    """Bytes of the largest upload."""


class ExplanationState(AnswerModel):
    """The state of an explanation, and the explanation once it is READY."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """The id for polls."""
    status: Literal["WAITING", "RUNNING", "READY", "FAILURE"]
    cause: str = OPTIONAL
    """Why the explanation has failed."""
    remedy: str = OPTIONAL
    """What to do about that."""
    explanation: Explanation = OPTIONAL


class Error(AnswerModel):
    """Why a request was refused, or has failed."""

    status: int
    """The status of the answer."""
    error: str
    """What happened, and what to do, for people."""
    message: str
    """The words of HTTP for the status, and the path."""
    code: Annotated[str, Field(pattern="^[a-z-]+$")]
    """The kind of the error, for programs."""
    offset: Count = OPTIONAL
    """With `upload-conflict`: where the upload continues."""
