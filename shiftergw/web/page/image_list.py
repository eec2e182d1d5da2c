"""The document with the images that a user may use: search, sizes, and who may read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from typing import NamedTuple

from twisted.web.template import Element, Tag, renderer, tags

from shiftergw.errors import amount
from shiftergw.model.names import is_count
from shiftergw.model.records import ImageRecord
from shiftergw.web.page.documents import template
from shiftergw.web.page.elements import UNKNOWN, time_tag

MOST_IMAGES = 100
"""Images in one document, the first ones by name; a search finds the others."""

MOST_READERS = 4
"""Users and groups of an image that are named; the others are counted."""

SHORT_ID = 12
"""Digits of an id in the table, as other tools show them."""

NO_IMAGE = "There is no image that you may use."

LEAST_ID = 6
"""Digits of an id that a search needs: fewer are part of many ids by chance."""


class ImageLine(NamedTuple):
    """What the table shows of an image; rows are ordered by name."""

    names: tuple[str, ...]
    image_id: str
    size: int | None
    readers: str
    pulled_at: float | None
    expiration: float | None
    system: str


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The first rows that fit a `text`, the number of all that fit, and of all images."""

    text: str
    rows: list[ImageLine]
    count: int
    total: int


async def search(
    uid: int | None, pages: AsyncIterator[Iterable[ImageRecord]], text: str
) -> SearchResult:
    """Return the images with `text` in a name, or at the beginning of their id.

    The user `uid` reads the result; operators have none.
    """
    wanted_text = text.strip().lower()
    rows: list[ImageLine] = []
    count = total = 0
    async for page in pages:
        for record in page:
            total += 1
            if _fits(record, wanted_text):
                count += 1
                rows.append(_row_of(uid, record))
        rows = nsmallest(MOST_IMAGES, rows, key=lambda row: (row.names, row.image_id))
    return SearchResult(text, rows, count, total)


def _fits(record: ImageRecord, text: str) -> bool:
    if not text or (len(text) >= LEAST_ID and (record.id or "").startswith(text)):
        return True
    return any(text in name.lower() for name in _names(record))


def _names(record: ImageRecord) -> tuple[str, ...]:
    if record.itype == "docker":
        return record.tags
    return tuple(f"{record.itype}:{tag}" for tag in record.tags)


def _row_of(uid: int | None, record: ImageRecord) -> ImageLine:
    return ImageLine(
        tuple(sorted(_names(record))),
        record.id or "",
        record.size if is_count(record.size) else None,
        readers_text(uid, record),
        record.last_pull,
        record.expiration,
        record.system,
    )


def readers_text(own_uid: int | None, record: ImageRecord) -> str:
    """Return who may read an image, in words; ids are those of the system."""
    if not record.is_private or not (record.user_acl or record.group_acl):
        return "everybody"
    users = list(record.user_acl or ())
    readers = ["you"] if own_uid in users else []
    readers += [f"user {uid}" for uid in users if uid != own_uid]
    readers += [f"group {gid}" for gid in record.group_acl or ()]
    rest = len(readers) - MOST_READERS
    return ", ".join(readers[:MOST_READERS]) + (f" and {rest} more" if rest > 0 else "")


class ImageTable(Element):
    """Renders the form of the search, and what it has found."""

    loader = template("images")

    def __init__(self, title: str, uid: int | None, result: SearchResult) -> None:
        """Show the result of a search for the user `uid`; for operators with the systems."""
        super().__init__()
        self._title = title
        self._shows_systems = uid is None
        self._result = result

    @renderer
    def images(self, _: object, tag: Tag) -> Tag:
        """Fill the text of the search in, and a summary."""
        return tag.fillSlots(title=self._title, text=self._result.text, summary=self._summary())

    def _summary(self) -> str:
        result = self._result
        if not result.total:
            return "There is no image." if self._shows_systems else NO_IMAGE
        found_text = (
            f"{result.count:,} of {result.total:,} images"
            if result.text.strip()
            else f"{result.total:,} image{'' if result.total == 1 else 's'}"
        )
        if result.count > len(result.rows):
            found_text += (
                f", of which the first {len(result.rows)} are shown: search for the others"
            )
        return f"{found_text}."

    @renderer
    def table(self, _: object, tag: Tag) -> Tag | str:
        """Return the table, unless it would be empty."""
        return tag if self._result.rows else ""

    @renderer
    def system(self, _: object, tag: Tag) -> Tag | str:
        """Return the title of the column of systems, if there is one."""
        return tag if self._shows_systems else ""

    @renderer
    def image(self, _: object, tag: Tag) -> Iterator[Tag]:
        """Yield a row for each image."""
        for row in self._result.rows:
            yield tag.clone().fillSlots(
                system=tags.td(row.system) if self._shows_systems else "",
                names=[tags.span(name) for name in row.names] or UNKNOWN,
                size=UNKNOWN if row.size is None else amount(row.size),
                readers=row.readers,
                pulled=time_tag(row.pulled_at, day_only=True),
                expires=time_tag(row.expiration, day_only=True),
                id=tags.code(row.image_id[:SHORT_ID], title=row.image_id),
            )
