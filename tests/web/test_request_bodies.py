"""The bodies of requests as values, and what their descriptions say of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from shiftergw.errors import BadRequest
from shiftergw.model.names import HIGHEST_ID
from shiftergw.model.uploads import SELECTOR_LIMIT, UPLOAD_KINDS, UploadChoice
from shiftergw.web import openapi
from shiftergw.web.request_bodies import (
    DeclarationBody,
    ImportBody,
    NameBody,
    PullBody,
    RequestBody,
    parse_ids,
)

UPLOAD = "ab" * 16
FILE = {"size": 5, "sha256": "cd" * 32}
IMPORT = {"filepath": "/data/x", "format": "squashfs"}


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        ("2001,2002", (2001, 2002)),
        (" 2001 ,\t2002 ", (2001, 2002)),
        ("5,5,4,5", (5, 4)),
        ([1, 2], (1, 2)),
        (["1", 2], (1, 2)),
        ([], ()),
        ("0,4294967294", (0, 4294967294)),
    ],
)
def test_ids_as_text_or_numbers(value: object, ids: tuple[int, ...]) -> None:
    """Both forms, with blanks and repetitions, result in each id once, in order."""
    assert PullBody.parse({"allowed_uids": value}).allowed_uids == ids
    assert PullBody.parse({}).allowed_uids == ()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "1,",
        "a",
        "1;2",
        "-1",
        "4294967295",
        "1.0",
        "\u0661",
        5,
        None,
        True,
        {},
        [True],
        [1.0],
        [None],
    ],
)
def test_ids_that_are_invalid(value: object) -> None:
    """Only ids from 0 to 2**32 - 2 are accepted, so that no image is open by mistake."""
    with pytest.raises(BadRequest, match="allowed_gids"):
        PullBody.parse({"allowed_gids": value})


def test_the_runtime_reads_1000_ids() -> None:
    """A list with more ids than the runtime reads is refused; repetitions do not count."""
    ids = ",".join(map(str, range(1000)))
    assert len(parse_ids(f"{ids},7", "a")) == 1000
    with pytest.raises(BadRequest, match="1001"):
        parse_ids(f"{ids},1000", "a")


GOOD_BODIES: list[tuple[type[RequestBody], dict[str, Any]]] = [
    (PullBody, {}),
    (PullBody, {"unknown": 1}),
    (PullBody, {"allowed_uids": "1, 2", "allowed_gids": [1, "2", HIGHEST_ID]}),
    (PullBody, {"upload": UPLOAD, "selector": "a:1", "public": True}),
    (PullBody, {"upload": None, "public": False}),
    (ImportBody, {**IMPORT, "public": False, "allowed_gids": "5"}),
    (NameBody, {"name": "mine:1"}),
    (NameBody, {"name": "mine:1", "size": 1}),
    *((DeclarationBody, {**FILE, "kind": kind}) for kind in sorted(UPLOAD_KINDS)),
    (DeclarationBody, {**FILE, "filename": "x.tar", "name": "a", "selector": "", "public": True}),
]

BAD_BODIES: list[tuple[type[RequestBody], dict[str, Any], str]] = [
    (PullBody, {"upload": UPLOAD.upper()}, "upload"),
    (PullBody, {"upload": f"{UPLOAD}0"}, "upload"),
    (PullBody, {"upload": 5}, "upload"),
    (PullBody, {"upload": UPLOAD, "selector": "a" * (SELECTOR_LIMIT + 1)}, "selector"),
    (PullBody, {"upload": UPLOAD, "public": 1}, "public"),
    (PullBody, {"allowed_uids": 5}, "allowed_uids"),
    (ImportBody, {"filepath": "/x"}, "format"),
    (ImportBody, {**IMPORT, "filepath": ""}, "filepath"),
    (NameBody, {"name": 5}, "name"),
    (NameBody, {}, "name"),
    (NameBody, {"name": "a", "size": 0}, "size"),
    (DeclarationBody, {"size": 5}, "sha256"),
    (DeclarationBody, {**FILE, "size": True}, "size"),
    (DeclarationBody, {**FILE, "size": 1 << 61}, "size"),
    (DeclarationBody, {**FILE, "sha256": "CD" * 32}, "sha256"),
    (DeclarationBody, {**FILE, "kind": "exe"}, "kind"),
    (DeclarationBody, {**FILE, "filename": None}, "filename"),
]


def is_described(model: type[RequestBody], members: dict[str, Any]) -> bool:
    """Return whether the description of the interface allows a body."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return bool(Draft202012Validator({**openapi.document(), **reference}).is_valid(members))


@pytest.mark.parametrize(("model", "members"), GOOD_BODIES)
def test_bodies_that_are_parsed(model: type[RequestBody], members: dict[str, Any]) -> None:
    """A body that the description allows is parsed."""
    model.parse(json.loads(json.dumps(members)))
    assert is_described(model, members)


@pytest.mark.parametrize(("model", "members", "name"), BAD_BODIES)
def test_bodies_that_are_refused(
    model: type[RequestBody], members: dict[str, Any], name: str
) -> None:
    """A body that the description forbids is refused, by a sentence about the wrong member."""
    with pytest.raises(BadRequest) as caught:
        model.parse(members)
    assert name in caught.value.what
    assert caught.value.remedy
    assert not is_described(model, members)


@pytest.mark.parametrize("selector", ["a\nb", "\u202e", "\x7f"])
def test_a_selector_is_one_line(selector: str) -> None:
    """A selector that would break a line of the log is refused."""
    with pytest.raises(BadRequest, match="selector"):
        PullBody.parse({"upload": UPLOAD, "selector": selector})


def test_selector_and_public_belong_to_an_upload() -> None:
    """Without an upload they would have no effect, so they are refused."""
    assert PullBody.parse({"public": False, "selector": ""}).choice() is None
    for members in ({"public": True}, {"selector": "a"}):
        with pytest.raises(BadRequest, match="upload"):
            PullBody.parse(members).choice()
    body = PullBody.parse({"upload": UPLOAD, "selector": "a", "public": True})
    assert body.choice() == UploadChoice(UPLOAD, "a", public=True)
