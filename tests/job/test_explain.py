"""An explanation follows from the look-ups, and its size is bounded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from shiftergw.errors import (
    ConfigurationError,
    GatewayError,
    ImageRefused,
    RegistryDenied,
    RegistryUnavailable,
    RetryLater,
    TimedOut,
)
from shiftergw.job.explain import MOST_LAYERS, ImageFacts, explain
from shiftergw.model.explanations import EXPLANATION_BYTES, ImagePlace, RequestLimit
from shiftergw.model.images import Descriptor, Digest, Platform, ResolvedImage
from shiftergw.model.records import ImageRecord, Origin
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import Session
from shiftergw.states import State

BIG, SMALL = (
    Descriptor(Digest.of(b"big"), 1000),
    Descriptor(Digest.of(b"small"), 10),
)
IMAGE = ResolvedImage(
    Digest.of(b"manifest"), Digest.of(b"index"), SMALL, (BIG, SMALL, BIG), "reg", "team/app"
)
READY = ImageRecord(
    system="a",
    tags=("team/app:1",),
    status=State.READY,
    id=IMAGE.id,
    private=False,
    origin=Origin("reg", "team/app", str(IMAGE.source_digest)),
    size=900,
    last_pull=1000.0,
    report={"seconds": {"PULLING": 2.5, "TRANSFER": 1}, "copied_bytes": 7, "sent_bytes": 3},
)
FACTS = ImageFacts(
    "a",
    ImageReference.parse("team/app:1"),
    Platform(),
    "/images",
    image=IMAGE,
    layer_sizes=(400, 10, 400),
    is_converted=False,
)
DENIAL = RegistryDenied("The registry refused it.")
LATE = TimedOut("The database did not answer in time.")
WAIT = RetryLater(2000.0, "reg (rate limit)", RegistryUnavailable("Too many requests."))


def test_an_image_that_is_not_delivered() -> None:
    """A pull downloads the missing bytes of each distinct layer."""
    explanation = explain(FACTS)
    assert explanation.action == "build"
    assert (explanation.layer_count, explanation.size, explanation.missing_size) == (3, 1010, 600)
    assert [layer.cached_size for layer in explanation.layers] == [400, 10, 400]
    assert (explanation.source, explanation.private) == ("reg", False)
    assert explanation.digest == str(IMAGE.digest)
    assert explanation.source_digest == str(IMAGE.source_digest)
    assert (explanation.delivered_image, explanation.previous_image) == (None, None)


def test_a_delivered_image() -> None:
    """A pull does nothing; the explanation says how long the delivery took."""
    explanation = explain(replace(FACTS, records=(READY,), tag_record=READY))
    assert explanation.action == "reuse"
    image = explanation.delivered_image
    assert image is not None
    assert (image.id, image.size, image.tags) == (IMAGE.id, 900, ("team/app:1",))
    assert image.seconds == {"PULLING": 2.5, "TRANSFER": 1.0}
    assert (image.copied_bytes, image.sent_bytes) == (7, 3)
    assert explanation.previous_image is None


def test_a_private_delivered_image() -> None:
    """Another user proves access in the repository that it came from; elsewhere it is built."""
    private = replace(READY, private=True, user_acl=(7,))
    image = replace(IMAGE, private=True)
    assert explain(replace(FACTS, image=image, records=(private,))).action == "prove"
    copy = replace(image, repository="other/app")
    assert explain(replace(FACTS, image=copy, records=(private,))).action == "build"


def test_a_delivered_file_that_is_gone() -> None:
    """The record alone does not count."""
    explanation = explain(replace(FACTS, records=(READY,), has_file=False))
    assert (explanation.action, explanation.delivered_image) == ("build", None)


def test_the_record_of_the_system_itself_is_shown() -> None:
    """A system beside it in the same image directory has a record of its own."""
    neighbor = replace(READY, system="b", size=1)
    image = explain(replace(FACTS, records=(neighbor, READY))).delivered_image
    assert image is not None
    assert image.size == 900


def test_a_tag_that_has_moved() -> None:
    """The image that the tag has on the system is shown, with and without a new image."""
    old = replace(READY, id="b" * 64, tags=("team/app:1",) * 100)
    for image in (IMAGE, None):
        previous = explain(replace(FACTS, image=image, tag_record=old)).previous_image
        assert previous is not None
        assert previous.id == "b" * 64
        assert len(previous.tags) < 100


@pytest.mark.parametrize(
    ("failures", "action"),
    [
        ([DENIAL], "fail"),
        ([WAIT], "wait"),
        ([WAIT, DENIAL], "fail"),
        ([ImageRefused("The policy refuses it.")], "fail"),
        ([LATE], "unknown"),
        ([LATE, WAIT], "wait"),
        ([LATE, DENIAL], "fail"),
    ],
)
def test_obstacles(failures: list[GatewayError], action: str) -> None:
    """An error that waiting does not mend decides, and a gap least; each obstacle has its texts."""
    for image in (IMAGE, None):
        explanation = explain(replace(FACTS, image=image, records=(READY,), failures=failures))
        assert explanation.action == action
        assert [o.what for o in explanation.obstacles] == [error.what for error in failures]
        assert [o.retry_at for o in explanation.obstacles] == [
            2000.0 if error is WAIT else None for error in failures
        ]
    waits = [obstacle for obstacle in explanation.obstacles if obstacle.retry_at is not None]
    assert {(o.code, o.reason) for o in waits} <= {("registry-unavailable", "reg (rate limit)")}


def test_a_cache_that_could_not_be_looked_up() -> None:
    """The explanation says so and lists the layers; only the fate of a conversion is unknown."""
    facts = replace(FACTS, layer_sizes=None, is_converted=None, cache_failure=LATE)
    explanation = explain(facts)
    assert (explanation.action, explanation.missing_size) == ("unknown", None)
    assert [layer.cached_size for layer in explanation.layers] == [None] * 3
    assert [obstacle.what for obstacle in explanation.obstacles] == [LATE.what]
    assert explain(replace(facts, records=(READY,))).action == "reuse"


@pytest.mark.parametrize("number", [1e300, float("nan"), -1.0, 10**400, True])
def test_odd_numbers_of_a_record(number: Any) -> None:
    """Numbers that another program has written, and no date or size can be, are left out."""
    record = replace(READY, last_pull=number, size=-1, report={"seconds": {"A": number, "B": 1}})
    image = explain(replace(FACTS, records=(record,))).delivered_image
    assert image is not None
    assert (image.last_pull, image.size, image.seconds) == (None, None, {"B": 1.0})


def test_a_pull_that_is_under_way() -> None:
    """The state of a pull in progress is part of the explanation, on one printable line."""
    work = replace(READY, status=State.PULLING, status_message="Pulling\nlayers")
    assert explain(replace(FACTS, work=work)).work == r"PULLING: Pulling\x0alayers"


@pytest.mark.parametrize("seconds", [None, [1], {"A": "x"}, {}])
def test_records_without_durations(seconds: Any) -> None:
    """Records of earlier versions, and odd ones, have no durations."""
    for report in (None, {"seconds": seconds, "copied_bytes": "x", "sent_bytes": -1}):
        record = replace(READY, report=report)
        image = explain(replace(FACTS, records=(record,))).delivered_image
        assert image is not None
        assert image.seconds == {}
        assert (image.copied_bytes, image.sent_bytes) == (None, None)


def test_the_explanation_for_a_user() -> None:
    """No details, proxies and logins of the gateway, and nothing of other users' images."""
    limit = RequestLimit("", 1, "1 request")
    mirror = ImagePlace("mirror", "m", "https://m", "r", "proxy:3128", "robot", limits=(limit,))
    places = (
        replace(mirror, failure="The mirror 'm' is down: 10.0.0.1"),
        ImagePlace("registry", "reg", "https://reg", "r", "proxy:3128", limits=(limit,)),
    )
    private = replace(READY, private=True, user_acl=(7,))
    work = replace(READY, requested_by=7, status=State.PULLING, status_message="Pulling")
    denial = RegistryDenied("It refused.", detail="10.0.0.1")
    facts = replace(
        FACTS,
        reader=Session("a", "bob", 8, "users", 100),
        places=places,
        records=(private,),
        tag_record=replace(private, id="b" * 64),
        work=work,
        failures=(denial, ConfigurationError("clientKey cannot be read: /etc/key.")),
        directory="host:/images",
    )
    explanation = explain(facts)
    text = json.dumps(explanation.to_document())
    for secret in (
        "10.0.0.1",
        "https://m",
        "/etc/key",
        "proxy:3128",
        "robot",
        "/images",
        'team/app:1"]',
        "b" * 64,
        "Pulling",
    ):
        assert secret not in text
    assert explanation.places[1].limits == (limit,)
    assert explanation.places[0].failure == "it does not serve the image now"
    assert explanation.work == "a pull of another user"
    assert [o.what for o in explanation.obstacles] == [
        "It refused.",
        "A setting of the gateway is wrong.",
    ]
    operator = json.dumps(explain(replace(facts, reader=None)).to_document())
    for text in ("10.0.0.1", "https://m", "/etc/key", "proxy:3128", "robot", "host:/images"):
        assert text in operator
    image = explanation.delivered_image
    assert image is not None
    assert (image.id, image.size, image.seconds) == (IMAGE.id, None, {})
    owner = explain(replace(facts, reader=Session("a", "ann", 7, "users", 100)))
    assert owner.work == "PULLING: Pulling"
    assert owner.delivered_image is not None
    assert owner.delivered_image.size == 900
    assert owner.previous_image is not None


def test_a_reader_of_a_private_image() -> None:
    """A user in its list need not prove anything; another one has to."""
    facts = replace(
        FACTS,
        image=replace(IMAGE, private=True),
        records=(replace(READY, private=True, user_acl=(7,)),),
    )
    for uid, action in ((7, "reuse"), (8, "prove")):
        reader = Session("a", "x", uid, "users", 100)
        assert explain(replace(facts, reader=reader)).action == action


def test_the_size_of_an_explanation() -> None:
    """However many layers, tags, places and words there are, its JSON is not too long."""
    layers = tuple(Descriptor(Digest.of(bytes([n % 256, n // 256])), 2) for n in range(500))
    record = replace(
        READY,
        tags=tuple("\U0001f600" * 500 for _ in range(1000)),
        report={"seconds": {f"{n}" * 100: 1.0 for n in range(1000)}},
    )
    words = "\U0001f600" * 10**5
    failures = [RegistryUnavailable(words, remedy=words, detail=words)] * 9
    place = ImagePlace("mirror", "m", "https://m", "r", failure=words)
    explanation = explain(
        replace(
            FACTS,
            image=replace(IMAGE, layers=layers),
            layer_sizes=(1,) * 500,
            records=(record,),
            tag_record=replace(record, id="b" * 64),
            failures=failures,
            places=(place,) * 100,
            user="u" * 10**5,
            directory="d" * 10**5,
        )
    )
    assert (len(explanation.layers), explanation.layer_count) == (MOST_LAYERS, 500)
    assert (explanation.size, explanation.missing_size) == (1000, 500)
    document = json.dumps(explanation.to_document(), ensure_ascii=False)
    assert len(document.encode()) < EXPLANATION_BYTES
