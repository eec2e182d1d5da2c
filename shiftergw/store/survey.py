"""A survey of a database: it assigns each record to one category, and counts oddities.

For an operator who wants to use the gateway on a database that another program has filled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from shiftergw.errors import printable
from shiftergw.model.records import MEMBERS
from shiftergw.model.requests import IMAGE_TYPES
from shiftergw.states import State
from shiftergw.store.documents import INTERNAL_MEMBERS
from shiftergw.store.legacy_documents import (
    INVALID_UID,
    is_ready,
    is_text,
    read_document,
    unreadable_members,
)

EXAMPLES = 3
"""How many records of each category, and of each oddity, are named as examples."""

NAMES = 200
"""How many different systems, states or members are counted by name."""

REST_NAME = "others"
"""The name under which all further systems, states or members are counted together."""


class Category(StrEnum):
    """A category of records by what the gateway does with them; each record is in exactly one."""

    LISTED = "images that are listed, looked up and run"
    UNTAGGED = "images without a tag: they run by their id until they expire"
    NO_ID = "READY without an image id: nobody sees them; removed when they expire"
    KEYLESS = "images under a key that is no ObjectId: looked up, but neither listed nor expired"
    IN_FLIGHT = "work of this program in flight: continues"
    ABANDONED = "abandoned work: removed when the same image is pulled again"
    UNNAMED = "abandoned work that names no image: stays as it is"
    REMOVALS = "abandoned removals: not shown; cancelled when the same image is pulled again"
    FAILURES = "failures: shown in the queue until they are pulled again, or expiry is on"
    EXPIRED = "expired images: not shown; forgotten once expiry is on"
    FOREIGN_SYSTEM = "records of systems that are not configured: stay as they are"
    NOT_A_RECORD = "documents that are not records: stay as they are"


_RUNNABLE = frozenset({Category.LISTED, Category.UNTAGGED, Category.KEYLESS})
"""Categories of images that users run."""


class Oddity(StrEnum):
    """What may be odd in a record; a record may have several oddities."""

    TEXT_TAG = "`tag` is text, not a list"
    OPEN = "private without any reader: open to all, as before, until pulled again"
    NO_READER = "access lists that cannot be read: nobody may read the image"
    TYPE = "types that this gateway does not serve: listed only"
    FORM = "members in an invalid form: what cannot be read counts as absent"
    SEVERAL_IDS = "one image in several records"
    SEVERAL_TAGS = "one tag on several records: the record pulled last counts"
    CLAIM = "one `claim` in several records: the gateway accepts no pulls"
    NO_DATE = "no expiration: the images stay until they are looked up or pulled again"
    DUE = "expirations that have passed"


@dataclass(slots=True)
class Tally:
    """A count of records, and the names of the first few of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more record of this name."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(name)


@dataclass(slots=True)
class Survey:
    """Count documents as they come; `systems` are the configured ones, `now` is the time.

    `classify` returns the further classes of an image that users run.
    """

    systems: Collection[str]
    now: float
    classify: Callable[[Mapping[str, Any]], Iterable[str]] = lambda _: ()
    records: int = 0
    foreign_records: int = 0
    """How many of the records another program wrote."""
    categories: dict[Category, Tally] = field(default_factory=dict)
    oddities: dict[Oddity, Tally] = field(default_factory=dict)
    classes: dict[str, Tally] = field(default_factory=dict)
    """Images by the classes that `classify` returns."""
    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Records by the system and the state that they have in their documents."""
    unknown_members: Counter[str] = field(default_factory=Counter)
    """Names of members that this program does not know."""
    unreadable_members: Counter[str] = field(default_factory=Counter)
    """Names of members that cannot be read, or only in part."""
    files: dict[str, dict[str, int | None]] = field(default_factory=dict)
    """For each configured system, the images whose files must exist, with sizes if known."""
    image_ids: dict[str, set[str]] = field(default_factory=dict)
    """For each configured system, the images that any record names."""
    _claims: set[str] = field(default_factory=set)
    _ids: dict[tuple[str, str, str], bool] = field(default_factory=dict)
    _tags: dict[tuple[str, str, str], bool] = field(default_factory=dict)

    def add(self, document: Mapping[str, Any], *, has_object_id: bool = True) -> Category:
        """Count a document and return its category; `has_object_id` is about its key."""
        self.records += 1
        if document.get("attempt") is None:
            self.foreign_records += 1
        members = read_document(document)
        name = _record_name(members)
        category = (
            self._category_of(members) if is_text(document.get("status")) else Category.NOT_A_RECORD
        )
        if not has_object_id and category in _RUNNABLE:
            category = Category.KEYLESS
        self.categories.setdefault(category, Tally()).add(name)
        for further_class in self.classify(members) if category in _RUNNABLE else ():
            self.classes.setdefault(further_class, Tally()).add(name)
        state = _text_of(members.get("system")), _text_of(document.get("status"))
        _count(self.states, state, (REST_NAME, REST_NAME))
        if category not in {Category.NOT_A_RECORD, Category.FOREIGN_SYSTEM} and "id" in members:
            self.image_ids.setdefault(members["system"], set()).add(members["id"])
        self._count_members(document)
        for oddity in self._find_oddities(document, members, category):
            self._count_oddity(oddity, name)
        if "claim" in document:  # the unique index has an entry for null, too
            claim = repr(document["claim"])
            if claim in self._claims:
                self._count_oddity(Oddity.CLAIM, name)
            self._claims.add(claim)
        return category

    def _count_oddity(self, oddity: Oddity, name: str) -> None:
        self.oddities.setdefault(oddity, Tally()).add(name)

    def _category_of(self, members: Mapping[str, Any]) -> Category:
        status = members["status"]
        if members.get("system") not in self.systems:
            return Category.FOREIGN_SYSTEM if "system" in members else Category.NOT_A_RECORD
        if is_ready(members):
            if "id" not in members:
                return Category.NO_ID
            return Category.LISTED if members.get("tag") else Category.UNTAGGED
        if members.get("claim") is not None:
            return Category.IN_FLIGHT
        final_categories = {
            State.FAILURE: Category.FAILURES,
            State.EXPIRED: Category.EXPIRED,
            State.EXPIRING: Category.REMOVALS,
        }
        if status in final_categories:
            return final_categories[State(status)]
        return Category.UNNAMED if members.get("pulltag") is None else Category.ABANDONED

    def _count_members(self, document: Mapping[str, Any]) -> None:
        for name in document:
            if name not in MEMBERS and name not in INTERNAL_MEMBERS:
                _count(self.unknown_members, printable(str(name), 60), REST_NAME)
        self.unreadable_members.update(unreadable_members(document))

    def _find_oddities(
        self, document: Mapping[str, Any], members: Mapping[str, Any], category: Category
    ) -> Iterator[Oddity]:
        if category not in {Category.NOT_A_RECORD, Category.FOREIGN_SYSTEM} and unreadable_members(
            document
        ):
            yield Oddity.FORM
        if category not in _RUNNABLE:
            return
        if is_text(document.get("tag")):
            yield Oddity.TEXT_TAG
        readers = {*(members.get("userACL") or ()), *(members.get("groupACL") or ())}
        if members.get("private") and not readers:
            yield Oddity.OPEN
        if members.get("private") is not False and readers == {INVALID_UID}:
            yield Oddity.NO_READER
        itype = members.get("itype")
        if itype not in IMAGE_TYPES:
            yield Oddity.TYPE
        expiration = members.get("expiration")
        if expiration is None:
            yield Oddity.NO_DATE
        elif expiration <= self.now:
            yield Oddity.DUE
        yield from self._find_duplicates(members["system"], str(itype), members)

    def _find_duplicates(
        self, system: str, itype: str, members: Mapping[str, Any]
    ) -> Iterator[Oddity]:
        """Note the image and the tags of a record; yield an oddity when one is seen twice."""
        image_id = members["id"]
        self.files.setdefault(system, {})[image_id] = members.get("size")
        names = [(self._ids, image_id, Oddity.SEVERAL_IDS)]
        names += [(self._tags, tag, Oddity.SEVERAL_TAGS) for tag in {*members.get("tag", ())}]
        for duplicates, name, oddity in names:
            is_duplicate = duplicates.get((system, itype, name))
            duplicates[system, itype, name] = is_duplicate is not None
            if is_duplicate is False:
                yield oddity


def _count(counter: Counter[Any], name: Any, rest: Any) -> None:
    """Count a name, or `rest` if the counter has `NAMES` other names already."""
    counter[name if name in counter or len(counter) < NAMES else rest] += 1


def _text_of(value: object) -> str:
    return "none" if value is None else printable(str(value), 60)


def _record_name(members: Mapping[str, Any]) -> str:
    """Return the name of a record in a report."""
    tag = next(iter(members.get("tag") or ()), None) or members.get("pulltag") or members.get("id")
    name = f"{members.get('system', '?')}/{members.get('itype', '?')}:{tag or '?'}"
    return printable(f"{name} ({members.get('_id', '?')})", 160)
