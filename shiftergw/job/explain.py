"""Explain what a pull would do, from what look-ups have found: a pure function.

`app/explain.py` asks the registry, the policy, the cache, the database and the image directory, and
downloads no layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shiftergw.errors import GatewayError, RetryLater, TimedOut, printable
from shiftergw.model.explanations import (
    DeliveredImage,
    Explanation,
    ImagePlace,
    LayerPresence,
    Obstacle,
    PullAction,
)
from shiftergw.model.images import Platform, ResolvedImage
from shiftergw.model.names import LARGEST_COUNT, is_count, is_time
from shiftergw.model.records import ImageRecord
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import Session
from shiftergw.model.signatures import PolicyVerdict
from shiftergw.rules.pull import Prove, Reuse, decide_from_manifest

MOST_LAYERS = 200
"""Layers that an explanation lists; the sums are those of all layers."""

MOST_TAGS = 20
"""Tags of a delivered image that an explanation names."""

MOST_PLACES = 20
"""Places that an explanation lists."""

_TEXT_LIMIT = 800
"""Characters of each text of an obstacle."""

_STAGES_LIMIT = 16


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What look-ups have found about an image; None stands for what is unknown.

    `layer_sizes` are the bytes of each layer in the cache, which only a conversion needs. If they
    could not be looked up, `cache_failure` says why. `records` are the READY records of the
    image's files, `tag_record` is that of the tag, and `work` a record of the tag in flight.
    `has_file` is false if the file in the image directory is not the one that was delivered.
    `failures` are the errors that a pull would meet: those of the source, the policy and the disks.
    `reader` is the user who asks, None an operator.
    """

    system: str
    reference: ImageReference
    platform: Platform
    directory: str
    user: str = ""
    places: Sequence[ImagePlace] = ()
    image: ResolvedImage | None = None
    layer_sizes: Sequence[int] | None = None
    is_converted: bool | None = None
    cache_failure: GatewayError | None = None
    verdict: PolicyVerdict | None = None
    records: Sequence[ImageRecord] = ()
    tag_record: ImageRecord | None = None
    work: ImageRecord | None = None
    has_file: bool = True
    failures: Sequence[GatewayError] = ()
    reader: Session | None = None

    @property
    def obstacles(self) -> Sequence[GatewayError]:
        """Return all errors of the look-ups."""
        return self.failures if self.cache_failure is None else (*self.failures, self.cache_failure)


def explain(facts: ImageFacts) -> Explanation:
    """Return what a pull of the image would do now.

    An explanation for a `reader` is the answer to this user, without what only operators may see:
    details of errors, settings of the gateway, its proxies and its logins, the addresses of
    mirrors, paths, and other users' private images. Without a reader it is that for a user who is
    not among the readers of a private image.
    """
    image = facts.image
    explanation = Explanation(
        image=str(facts.reference),
        system=facts.system,
        architecture=str(facts.platform),
        directory=printable(facts.system if facts.reader else facts.directory, _TEXT_LIMIT),
        action=_action(facts),
        user=printable(facts.user),
        places=tuple(_place(facts, place) for place in facts.places[:MOST_PLACES]),
        policy=facts.verdict,
        previous_image=_previous_image(facts),
        work=_work(facts),
        obstacles=tuple(_obstacle(facts, failure) for failure in facts.obstacles),
    )
    return explanation if image is None else _with_image(explanation, facts, image)


def _with_image(explanation: Explanation, facts: ImageFacts, image: ResolvedImage) -> Explanation:
    """Add what is known of the image once it is resolved."""
    layer_sizes = facts.layer_sizes
    cached_sizes = [None] * len(image.layers) if layer_sizes is None else layer_sizes
    layers = tuple(
        LayerPresence(str(layer.digest), layer.size, size)
        for layer, size in zip(image.layers, cached_sizes, strict=True)
    )
    missing_size = None
    if layer_sizes is not None:
        missing_sizes = {
            layer.digest: layer.size - size
            for layer, size in zip(image.layers, layer_sizes, strict=True)
        }
        missing_size = min(sum(missing_sizes.values()), LARGEST_COUNT)
    record = _own_record(facts)
    return replace(
        explanation,
        private=image.private,
        source=image.mirror or image.location,
        digest=str(image.digest),
        source_digest=str(image.source_digest),
        layers=layers[:MOST_LAYERS],
        layer_count=len(image.layers),
        size=min(image.download_size, LARGEST_COUNT),
        missing_size=missing_size,
        is_converted=facts.is_converted,
        delivered_image=None if record is None else _delivered_image(facts, record),
    )


def _place(facts: ImageFacts, place: ImagePlace) -> ImagePlace:
    if facts.reader is None:
        return replace(place, failure=printable(place.failure, _TEXT_LIMIT))
    failure = "it does not serve the image now" if place.failure else ""
    limits = () if place.user else place.limits
    url = place.url if place.kind == "registry" else ""
    return replace(place, url=url, proxy="", user="", limits=limits, failure=failure)


def _previous_image(facts: ImageFacts) -> DeliveredImage | None:
    """Return the other image that the tag means on the system."""
    record, image = facts.tag_record, facts.image
    if record is None or (image is not None and record.id == image.id):
        return None
    if facts.reader is not None and not record.may_be_read_by(facts.reader):
        return None
    return _delivered_image(facts, record)


def _work(facts: ImageFacts) -> str:
    work, reader = facts.work, facts.reader
    if work is None:
        return ""
    if reader is not None and work.requested_by != reader.uid:
        return "a pull of another user"
    return printable(f"{work.status}: {work.status_message or ''}")


def _own_record(facts: ImageFacts) -> ImageRecord | None:
    """Return the record of the image's file: that of the system itself, or of one beside it."""
    if not facts.has_file or not facts.records:
        return None
    own = (record for record in facts.records if record.system == facts.system)
    return next(own, facts.records[0])


def _action(facts: ImageFacts) -> PullAction:
    """Return what a pull does; an error that waiting does not mend counts more than others.

    A look-up that took too long leaves it open what the pull would meet there.
    """
    waits = [failure for failure in facts.failures if isinstance(failure, RetryLater)]
    gaps = [failure for failure in facts.failures if isinstance(failure, TimedOut)]
    if len(facts.failures) > len(waits) + len(gaps):
        return "fail"
    if waits:
        return "wait"
    if gaps or facts.image is None:
        return "unknown"
    missing_id = None if facts.has_file else facts.image.id
    uid = None if facts.reader is None else facts.reader.uid
    request = ImageRecord(system=facts.system, pulltag=str(facts.reference), requested_by=uid)
    match decide_from_manifest(request, facts.image, facts.records, missing_id):
        case Reuse():
            return "reuse"
        case Prove():
            return "prove"
    return "build" if facts.cache_failure is None else "unknown"


def _obstacle(facts: ImageFacts, error: GatewayError) -> Obstacle:
    texts: tuple[str, ...] = (error.what, error.remedy, error.detail)
    if facts.reader is not None:
        texts = (*error.texts_for_users(), "")
    what, remedy, detail = (printable(text, _TEXT_LIMIT) for text in texts)
    if isinstance(error, RetryLater):
        reason = printable(error.why)
        retry_at = error.at if is_time(error.at) else None
        return Obstacle(error.failure.code, what, remedy, detail, retry_at, reason)
    return Obstacle(error.code, what, remedy, detail)


def _delivered_image(facts: ImageFacts, record: ImageRecord) -> DeliveredImage:
    if facts.reader is not None and not record.may_be_read_by(facts.reader):
        return DeliveredImage(record.id or "", (), private=True)
    return DeliveredImage(
        record.id or "",
        tuple(printable(tag) for tag in record.tags[:MOST_TAGS]),
        record.is_private,
        record.size if is_count(record.size) else None,
        record.last_pull if is_time(record.last_pull) else None,
        _seconds_of(record.report),
        _count_of(record.report, "copied_bytes"),
        _count_of(record.report, "sent_bytes"),
    )


def _count_of(report: Mapping[str, Any] | None, name: str) -> int | None:
    """Return a number of bytes in the report of a record, or None."""
    count = (report or {}).get(name)
    return count if is_count(count) else None


def _seconds_of(report: Mapping[str, Any] | None) -> dict[str, float]:
    """Return how long each stage of a delivery took; records of earlier versions do not tell."""
    seconds = (report or {}).get("seconds")
    if not isinstance(seconds, dict):
        return {}
    stages = [(name, value) for name, value in seconds.items() if is_time(value)]
    return {printable(str(name), 40): float(value) for name, value in stages[:_STAGES_LIMIT]}
