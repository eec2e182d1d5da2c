"""The images that a search finds, and the words for their readers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
import pytest_twisted
from twisted.web.template import flattenString

from shiftergw.model.records import ImageRecord
from shiftergw.web.page import image_list
from shiftergw.web.page.elements import UNKNOWN
from shiftergw.web.page.image_list import ImageTable, SearchResult, readers_text, search
from tests.service.gateway_bench import ALICE
from tests.web.fakes import READY


async def pages(*images: ImageRecord) -> AsyncIterator[Sequence[ImageRecord]]:
    """Yield each image on a page of its own."""
    for image in images:
        yield [image]


async def names(text: str, *images: ImageRecord) -> list[str]:
    """Return the first names of the images that a search finds."""
    result = await search(ALICE.uid, pages(*images), text)
    return [row.names[0] for row in result.rows]


UBUNTU = replace(READY, tags=("ubuntu:24.04", "noble:1"), id="ab" * 32)
ALPINE = replace(READY, tags=("Alpine:3",), id="cd" * 32)
TOOL = replace(READY, itype="custom", tags=("tool:1",), id="ababab" + "0" * 58)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["Alpine:3", "custom:tool:1", "noble:1"]),
        (" ALP ", ["Alpine:3"]),
        ("24", ["noble:1"]),
        ("ababab", ["custom:tool:1", "noble:1"]),
        ("abab", []),
        ("custom:", ["custom:tool:1"]),
        ("bab", []),
        ("x", []),
    ],
)
@pytest_twisted.ensureDeferred
async def test_search(text: str, expected: list[str]) -> None:
    """Any part of a name, in any case, or six digits of an id and more; ordered by name."""
    assert await names(text, UBUNTU, ALPINE, TOOL) == expected


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "everybody"),
        ({"private": True}, "everybody"),
        ({"private": True, "user_acl": (2001,)}, "you"),
        ({"private": True, "user_acl": (7, 2001), "group_acl": (9,)}, "you, user 7, group 9"),
        (
            {"private": True, "user_acl": (1, 2, 3), "group_acl": (4, 5, 6)},
            "user 1, user 2, user 3, group 4 and 2 more",
        ),
    ],
)
def test_readers(changes: dict[str, object], text: str) -> None:
    """Public images are for everybody, as are old private ones without any list."""
    assert readers_text(ALICE.uid, replace(READY, **changes)) == text  # type: ignore[arg-type]


async def text_of(result: SearchResult, uid: int | None = ALICE.uid) -> str:
    """Return the document of a search by a user, or by an operator."""
    return (await flattenString(None, ImageTable("Images", uid, result))).decode()


@pytest_twisted.ensureDeferred
async def test_the_document_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first images by name are shown, and the others are counted."""
    monkeypatch.setattr(image_list, "MOST_IMAGES", 1)
    result = await search(ALICE.uid, pages(UBUNTU, ALPINE, TOOL), "o")
    text = await text_of(result)
    assert "2 of 3 images, of which the first 1 are shown" in text
    assert ("custom:tool:1" in text, "ubuntu" in text) == (True, False)


@pytest_twisted.ensureDeferred
async def test_unknown_values() -> None:
    """A record of another program has a row as well, and no images have a sentence."""
    odd = replace(READY, tags=(), id=None, size=-1, last_pull=None, expiration=float("nan"))
    text = await text_of(await search(ALICE.uid, pages(odd), ""))
    assert "1 image." in text
    assert text.count(f">{UNKNOWN}<") == 4
    assert "There is no image that you may use." in await text_of(
        await search(ALICE.uid, pages(), "")
    )
    large_image = replace(UBUNTU, size=28_100_000, expiration=1_700_000_000.0)
    text = await text_of(await search(ALICE.uid, pages(large_image), ""))
    assert "28.1 MB" in text
    assert "2023-11-14" in text
    assert f'title="{"ab" * 32}">abababababab<' in text


@pytest_twisted.ensureDeferred
async def test_operators_see_the_systems() -> None:
    """They read the images of all systems, and nobody is `you`."""
    image = replace(READY, private=True, user_acl=(2001,), system="alpha")
    text = await text_of(await search(None, pages(image), ""), None)
    assert "<td>alpha</td>" in text
    assert ">System<" in text
    assert "user 2001" in text
    assert "There is no image." in await text_of(await search(None, pages(), ""), None)
    assert ">System<" not in await text_of(await search(ALICE.uid, pages(image), ""))
