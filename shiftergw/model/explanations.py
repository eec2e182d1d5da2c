"""What a pull would do: the request to explain it, and the places, layers and obstacles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin, Session
from shiftergw.model.signatures import PolicyVerdict

PlaceKind = Literal["registry", "mirror", "directory"]

PullAction = Literal["reuse", "prove", "build", "wait", "fail", "unknown"]
"""What a pull does now.

* `reuse`: nothing, since the image is delivered.
* `prove`: the image is delivered and private. A user who is not among its readers has to prove at
  the registry that they may read it; then nothing is downloaded.
* `build`: download what is missing, convert the image and deliver it.
* `wait`: stay in the queue until the time of an obstacle.
* `fail`: fail at once.
* `unknown`: it depends on a look-up that has not ended in time; an obstacle says which.
"""

EXPLANATION_BYTES = 256 << 10
"""Bytes of an explanation as JSON in UTF-8, at most."""

EXPLANATION_SECONDS = 90.0
"""Seconds that a gateway takes for one explanation, at most."""

MOST_EXPLANATIONS = 20
"""Explanations that a gateway makes or has waiting, at most; it makes them one after the other."""


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """A request to explain the pull of an image for a system; `login` is for its registry.

    `reader` is the user who gets the explanation; None stands for an operator, who sees everything.
    """

    reference: ImageReference
    system: str
    login: RegistryLogin | None = field(default=None, repr=False)
    reader: Session | None = None

    def to_document(self) -> dict[str, Any]:
        """Return the request as a JSON object, which has the password."""
        login, reader = self.login, self.reader
        return {
            "image": str(self.reference),
            "system": self.system,
            "login": None if login is None else f"{login.user}:{login.password}",
            "uid": None if reader is None else reader.uid,
            "groups": [] if reader is None else sorted(reader.groups),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ExplainRequest:
        """Parse what `to_document` returns."""
        system, login, uid = document["system"], document["login"], document["uid"]
        groups = frozenset(document["groups"])
        return cls(
            ImageReference.parse(document["image"]),
            system,
            None if login is None else RegistryLogin.parse(login),
            None if uid is None else Session(system, str(uid), uid, "", -1, groups),
        )


@dataclass(frozen=True, slots=True)
class RequestLimit:
    """A limit on the requests at a registry, as it told in its last answer.

    `user` is the name of the login that it holds for, empty for anonymous requests. `remaining`
    requests are left; `text` has the limit in words.
    """

    user: str
    remaining: int
    text: str


@dataclass(frozen=True, slots=True)
class ImagePlace:
    """A registry, a mirror of one, or a directory, where an image is looked for.

    `name` is that of the location, or the host of the mirror. `url` is where its API begins, or the
    path of the directory, and `repository` the path of the repository there. `proxy` is the
    `host:port` of the proxy on the way, empty for a direct connection. `user` is the name of the
    gateway's own login at a mirror. A `standalone` mirror decides what a tag means. `failure` says
    why the mirror was passed over.
    """

    kind: PlaceKind
    name: str
    url: str
    repository: str
    proxy: str = ""
    user: str = ""
    standalone: bool = False
    limits: tuple[RequestLimit, ...] = ()
    failure: str = ""


@dataclass(frozen=True, slots=True)
class LayerPresence:
    """A layer: its digest, its compressed size, and how many of these bytes are in the cache.

    `cached_size` is None if the cache could not be looked up.
    """

    digest: str
    size: int
    cached_size: int | None


@dataclass(frozen=True, slots=True)
class DeliveredImage:
    """An image in the image directory of a system.

    `size` is that of the file, `last_pull` the time of the last pull. `seconds` maps each stage of
    the delivery to the time that it took. `copied_bytes` of the file were copied by the system from
    another image, and `sent_bytes` were sent. They are empty or None for images that earlier
    versions delivered.
    """

    id: str
    tags: tuple[str, ...]
    private: bool
    size: int | None = None
    last_pull: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    copied_bytes: int | None = None
    sent_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What keeps a pull from success: the texts of its error.

    `retry_at` is the time until which the pull would wait, for `reason`; None if it does not wait.
    """

    code: str
    what: str
    remedy: str
    detail: str = ""
    retry_at: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a pull of `image` for a system would do now.

    `user` is the name of the login, empty without one; `private` says that the registry asked for
    it. `places` are in the order in which they are looked at, and `source` is the name of the one
    that served the manifest. `digest` is that of the manifest for the architecture, `source_digest`
    what the reference itself means: perhaps an index. The digests are empty, and the numbers None,
    if the image could not be resolved.

    `layers` has at most as many layers as `job.explain` lists, of `layer_count`. `size` is that of
    all distinct layers; `missing_size` bytes of them are not in the cache. `is_converted` says
    that the converted file is on this machine. `delivered_image` is the image itself in
    `directory`, the image directory; `previous_image` is what the tag means there, if that is
    another image. `work` is the state of a pull of this tag that is under way.
    """

    image: str
    system: str
    architecture: str
    directory: str
    action: PullAction
    user: str = ""
    private: bool | None = None
    places: tuple[ImagePlace, ...] = ()
    source: str = ""
    digest: str = ""
    source_digest: str = ""
    layers: tuple[LayerPresence, ...] = ()
    layer_count: int | None = None
    size: int | None = None
    missing_size: int | None = None
    is_converted: bool | None = None
    policy: PolicyVerdict | None = None
    delivered_image: DeliveredImage | None = None
    previous_image: DeliveredImage | None = None
    work: str = ""
    obstacles: tuple[Obstacle, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """Return the explanation as a JSON object."""
        return asdict(self)
