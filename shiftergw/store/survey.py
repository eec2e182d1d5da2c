"""What is in a database: every record in one lot, by what becomes of it, and what is odd in any.

For an operator who points the gateway at a database that another program has filled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from shiftergw.errors import printable
from shiftergw.model import IMAGE_TYPES, MEMBERS
from shiftergw.states import State
from shiftergw.store import legacy_documents
from shiftergw.store.documents import INTERNAL_MEMBERS

READY = (str(State.READY), "SUCCESS")
"""The words for what is READY; the second is an old one of the original."""

EXAMPLES = 3
"""How many records of a kind are named."""

NAMES = 200
"""How many different systems, states or members are counted one by one."""

OTHERS = "others"


class Lot(StrEnum):
    """What becomes of a record; each is in exactly one lot."""

    LISTED = "images that are listed, looked up and run"
    UNTAGGED = "images without a tag: they run by their id until they expire"
    NO_ID = "READY without an image id: nobody sees them; removed when they expire"
    KEYLESS = "images under a key that is no ObjectId: looked up, but neither listed nor expired"
    FLYING = "work of this program in flight: goes on"
    LEFT = "work that was left behind: removed when the same image is pulled again"
    NAMELESS = "work that was left behind, and says not of which image: stays as it is"
    GOING = "removals that were left behind: not shown; back when the same image is pulled again"
    FAILED = "failures: shown in the queue until they are pulled again, or expiry is on"
    EXPIRED = "expired images: not shown; forgotten once expiry is on"
    ELSEWHERE = "records of systems that are not configured: stay as they are"
    NO_RECORD = "documents that are no record: stay as they are"


_RUN = frozenset({Lot.LISTED, Lot.UNTAGGED, Lot.KEYLESS})
"""Lots of images that users run."""


class Oddity(StrEnum):
    """What may be odd in a record; it may have several."""

    TEXT_TAG = "`tag` is text, not a list"
    OPEN = "private without any reader: open to all, as before, until pulled again"
    NOBODY = "readers that cannot be made out: nobody may read them"
    TYPE = "types that this gateway does not serve: listed only"
    FORM = "members of another form than theirs: what cannot be read counts as absent"
    SEVERAL_IDS = "one image in several records"
    SEVERAL_TAGS = "one tag on several records: the one pulled last is meant"
    CLAIM = "one `claim` in several records: no pull is taken in"
    NO_DATE = "no expiration: they stay until they are looked up or pulled again"
    DUE = "expirations that have passed"


@dataclass(slots=True)
class Tally:
    """How many there are, and the first few of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)


@dataclass(slots=True)
class Survey:
    """Counts documents as they come; `systems` are the configured ones, `now` is the time."""

    systems: Collection[str]
    now: float
    records: int = 0
    others: int = 0
    """Of all records, those that another program wrote."""
    lots: dict[Lot, Tally] = field(default_factory=dict)
    odd: dict[Oddity, Tally] = field(default_factory=dict)
    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Records by system and state, as they say."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Members that are not ours, by name."""
    misread: Counter[str] = field(default_factory=Counter)
    """Members of another form than theirs, by name."""
    files: dict[str, dict[str, int | None]] = field(default_factory=dict)
    """Of each configured system the images whose files must be there, and their sizes if known."""
    named: dict[str, set[str]] = field(default_factory=dict)
    """Of each configured system the images that any record names."""
    _claims: set[str] = field(default_factory=set)
    _ids: dict[tuple[str, str, str], bool] = field(default_factory=dict)
    _tags: dict[tuple[str, str, str], bool] = field(default_factory=dict)

    def add(self, document: Mapping[str, Any], *, keyed: bool = True) -> Lot:
        """Count a document; return its lot. `keyed`: its key is one that records have."""
        self.records += 1
        if document.get("attempt") is None:
            self.others += 1
        read = legacy_documents.read_document(document)
        name = _name(read)
        lot = self._lot(read) if legacy_documents.is_text(document.get("status")) else Lot.NO_RECORD
        if not keyed and lot in _RUN:
            lot = Lot.KEYLESS
        self.lots.setdefault(lot, Tally()).add(name)
        place = _shown(read.get("system")), _shown(document.get("status"))
        _count(self.states, place if place in self.states else _rest(self.states, place))
        if lot not in {Lot.NO_RECORD, Lot.ELSEWHERE} and "id" in read:
            self.named.setdefault(read["system"], set()).add(read["id"])
        self._members(document)
        for oddity in self._oddities(document, read, lot):
            self._note(oddity, name)
        if "claim" in document:  # an index has null, too
            claim = repr(document["claim"])
            if claim in self._claims:
                self._note(Oddity.CLAIM, name)
            self._claims.add(claim)
        return lot

    def _note(self, oddity: Oddity, name: str) -> None:
        self.odd.setdefault(oddity, Tally()).add(name)

    def _lot(self, read: Mapping[str, Any]) -> Lot:
        status = read["status"]
        if read.get("system") not in self.systems:
            return Lot.ELSEWHERE if "system" in read else Lot.NO_RECORD
        if status in READY:
            if "id" not in read:
                return Lot.NO_ID
            return Lot.LISTED if read.get("tag") else Lot.UNTAGGED
        if read.get("claim") is not None:
            return Lot.FLYING
        ended = {State.FAILURE: Lot.FAILED, State.EXPIRED: Lot.EXPIRED, State.EXPIRING: Lot.GOING}
        if status in ended:
            return ended[State(status)]
        return Lot.NAMELESS if read.get("pulltag") is None else Lot.LEFT

    def _members(self, document: Mapping[str, Any]) -> None:
        for name in document:
            if name not in MEMBERS and name not in INTERNAL_MEMBERS:
                shown = printable(str(name), 60)
                _count(self.unknown, shown if shown in self.unknown else _rest(self.unknown, shown))
        self.misread.update(legacy_documents.unreadable_members(document))

    def _oddities(
        self, document: Mapping[str, Any], read: Mapping[str, Any], lot: Lot
    ) -> Iterator[Oddity]:
        if lot not in {Lot.NO_RECORD, Lot.ELSEWHERE} and legacy_documents.unreadable_members(
            document
        ):
            yield Oddity.FORM
        if lot not in _RUN:
            return
        if legacy_documents.is_text(document.get("tag")):
            yield Oddity.TEXT_TAG
        readers = [*(read.get("userACL") or ()), *(read.get("groupACL") or ())]
        if read.get("private") and not readers:
            yield Oddity.OPEN
        if (
            read.get("private") is not False
            and readers
            and {*readers} == {legacy_documents.INVALID_UID}
        ):
            yield Oddity.NOBODY
        itype = read.get("itype")
        if itype not in IMAGE_TYPES:
            yield Oddity.TYPE
        expiration = read.get("expiration")
        if expiration is None:
            yield Oddity.NO_DATE
        elif expiration <= self.now:
            yield Oddity.DUE
        yield from self._several(read["system"], str(itype), read)

    def _several(self, system: str, itype: str, read: Mapping[str, Any]) -> Iterator[Oddity]:
        """Note an image, and tags, that are in several records; each of them once."""
        image_id = read["id"]
        self.files.setdefault(system, {})[image_id] = read.get("size")
        found = [(self._ids, image_id, Oddity.SEVERAL_IDS)]
        found += [(self._tags, tag, Oddity.SEVERAL_TAGS) for tag in {*read.get("tag", ())}]
        for known, name, oddity in found:
            several = known.get((system, itype, name))
            known[system, itype, name] = several is not None
            if several is False:
                yield oddity


def _count(counter: Counter[Any], name: Any) -> None:
    counter[name] += 1


def _rest(counter: Counter[Any], name: Any) -> Any:
    """Return the name, or what stands for all that are too many to be counted one by one."""
    if len(counter) < NAMES:
        return name
    return OTHERS if isinstance(name, str) else (OTHERS, OTHERS)


def _shown(value: object) -> str:
    return "none" if value is None else printable(str(value), 60)


def _name(read: Mapping[str, Any]) -> str:
    """Return how a record is called in a report."""
    tag = next(iter(read.get("tag") or ()), None) or read.get("pulltag") or read.get("id") or "?"
    name = f"{read.get('system', '?')}/{read.get('itype', '?')}:{tag}"
    return printable(f"{name} ({read.get('_id', '?')})", 160)
