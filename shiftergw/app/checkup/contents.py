"""What `shiftergw check --database` tells: what is in the database, and what becomes of it here.

For who points the gateway at a database that another program has filled. Nothing is written, not
even an index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from shiftergw.app.checkup.database import expiry, failed
from shiftergw.app.checkup.finding import Finding, Level, failure
from shiftergw.app.compose import delivery_to
from shiftergw.config import Config, System
from shiftergw.errors import GatewayError, TimedOut, amount
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within
from shiftergw.ports import InstalledFile
from shiftergw.store.mongo import inspection as mongo_inspection
from shiftergw.store.sqlite import inspection as sqlite_inspection
from shiftergw.store.survey import EXAMPLES, Lot, Oddity, Survey, Tally

LIST_SECONDS = 60.0
"""How long an image directory may take to list what lies there."""

MOST = 20
"""Systems that are not configured, and names of members, that are told one by one."""

FRESH_SECONDS = 3600.0
"""Age of a file that may still be on its way to its record."""

_UNNAMED = (
    "No user of this gateway can find them: deliveries left them that failed at their end, or"
    " another program. Remove them by hand once no job uses them."
)

_QUIET = frozenset({Lot.LISTED, Lot.UNTAGGED, Lot.IN_FLIGHT, Lot.FAILURES, Lot.EXPIRED})
"""Lots that need nobody's attention."""

_HARMLESS = frozenset({Oddity.TEXT_TAG, Oddity.NO_DATE, Oddity.DUE})

_REMEDIES: Mapping[Lot | Oddity, str] = {
    Lot.KEYLESS: "Give the record a new key, an ObjectId.",
    Oddity.CLAIM: "Take the member from them, unless a gateway of this program wrote it.",
    Oddity.OPEN: "Name readers: pull them again with --user and --group.",
    Oddity.NO_READER: "Pull them again with --user and --group, or correct the members.",
}


async def contents(reactor: Any, config: Config) -> list[Finding]:
    """Return what there is to say of the records, and of the files that belong to them."""
    counted = Survey(config.systems.keys(), reactor.seconds())
    try:
        findings = await _database(reactor, config, counted)
    except GatewayError as error:
        mongodb = config.mongodb_uri is not None
        return [failed("database", error) if mongodb else failure("database", error)]
    findings += _systems(counted)
    findings += _records(counted)
    findings += await _files(reactor, config, counted)
    return findings


async def _database(reactor: Any, config: Config, counted: Survey) -> list[Finding]:
    """Count what is in the database; return what there is to say of it as a whole."""
    if config.mongodb_uri is not None and config.mongodb is not None:
        uri, name = config.mongodb_uri, config.mongodb
        look = await mongo_inspection.survey(reactor, uri, name, counted)
        text = f"MongoDB, database {name}: {_size(counted, look.lookups)}"
        indexes = look.missing_indexes
        missing = f"{len(indexes)} to be made at the start: {', '.join(indexes)}"
        return [
            Finding("database", Level.OK, text),
            Finding("indexes", Level.OK, missing if look.missing_indexes else "all are there"),
            expiry(config, taken_over=look.is_taken_over),
        ]
    path = config.state_directory / "shiftergw.sqlite"
    if not path.exists():
        return [Finding("database", Level.OK, f"{path} will be made"), _own_expiry(config)]
    threads = Threads(reactor, 1, "check")
    threads.startService()
    try:
        rows = await threads.run(sqlite_inspection.survey, path, counted)
    finally:
        await threads.stopService()
    return [
        Finding("database", Level.OK, f"{path}: {_size(counted, rows)}"),
        _own_expiry(config),
    ]


def _own_expiry(config: Config) -> Finding:
    return expiry(config, taken_over=False)


def _size(counted: Survey, rows: int) -> str:
    others = (
        f", {counted.foreign_records} of them by another program" if counted.foreign_records else ""
    )
    return f"{counted.records} records{others}; {rows} rows of look-ups"


def _systems(counted: Survey) -> Iterator[Finding]:
    """Yield how many records there are by state, for each system."""
    by_system: dict[str, Counter[str]] = {}
    for (system, state), count in counted.states.items():
        by_system.setdefault(system, Counter())[state] += count
    for system in counted.systems:
        states = by_system.pop(system, Counter())
        yield Finding(f"records of {system}", Level.OK, _numbers(states) or "none")
    if by_system:
        sums = Counter({system: sum(states.values()) for system, states in by_system.items()})
        yield Finding("records of others", Level.OK, _numbers(sums))


def _numbers(counter: Mapping[str, int]) -> str:
    """Return names with their numbers, the most frequent first, and how many more there are."""
    ordered = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    texts = [f"{name} {count}" for name, count in ordered[:MOST]]
    more = len(ordered) - MOST
    return ", ".join([*texts, f"and {more} more"] if more > 0 else texts)


def _records(counted: Survey) -> Iterator[Finding]:
    """Yield each lot, then what is odd in any of them."""
    for lot in Lot:
        if lot in counted.lots:
            tally = counted.lots[lot]
            level = Level.OK if lot in _QUIET else Level.WARNING
            examples = "" if lot is Lot.LISTED else _examples(tally)
            text = f"{tally.count} {lot}{examples}"
            yield Finding("records", level, text, _REMEDIES.get(lot, ""))
    for oddity in Oddity:
        if oddity in counted.oddities:
            tally = counted.oddities[oddity]
            level = Level.OK if oddity in _HARMLESS else Level.WARNING
            if oddity is Oddity.CLAIM:
                level = Level.FAILURE
            members = f"; {_numbers(counted.unreadable_members)}" if oddity is Oddity.FORM else ""
            text = f"{tally.count}: {oddity}{members}{_examples(tally)}"
            yield Finding("odd", level, text, _REMEDIES.get(oddity, ""))
    if counted.unknown_members:
        yield Finding("unknown members", Level.OK, f"kept: {_numbers(counted.unknown_members)}")


def _examples(tally: Tally) -> str:
    more = "…" if tally.count > len(tally.examples) else ""
    return f" ({', '.join(tally.examples)}{more})"


async def _files(reactor: Any, config: Config, counted: Survey) -> list[Finding]:
    """Return what is missing in each image directory, and what nobody knows there."""
    directories: dict[str, System] = {}
    wanted: dict[str, dict[str, int | None]] = {}
    named: dict[str, set[str]] = {}
    for name, system in config.systems.items():
        directory = system.directory_name
        directories.setdefault(directory, system)
        wanted.setdefault(directory, {}).update(counted.files.get(name, {}))
        named.setdefault(directory, set()).update(counted.image_ids.get(name, ()))
    found = await gather_or_cancel(
        _directory(reactor, system, wanted[name], named[name])
        for name, system in directories.items()
    )
    return [finding for findings in found for finding in findings]


async def _directory(
    reactor: Any, system: System, wanted: Mapping[str, int | None], named: AbstractSet[str]
) -> list[Finding]:
    name = f"files in {system.directory_name}"
    try:
        there = {one.name: one for one in await _listed(reactor, system)}
    except GatewayError as error:
        found = failure(name, error)
        remedy = "The files were not looked at. Run `shiftergw check` to see what is wrong."
        return [replace(found, level=Level.WARNING, remedy=remedy)] if wanted else []
    sizes = {name: one.size for name, one in there.items()}
    findings = [Finding(name, *_compared(wanted, sizes))] if wanted else []
    # What is being delivered has no record yet that names it.
    before = reactor.seconds() - FRESH_SECONDS
    old = [one for one in there.values() if one.modified is None or one.modified < before]
    images = {one.name.removesuffix(".squashfs"): one.size for one in old if _is_image(one)}
    unnamed = {one: size for one, size in images.items() if one not in named}
    if unnamed:
        size = amount(sum(unnamed.values()))
        text = f"{len(unnamed)} images that no record names, {size} ({_ids(unnamed)})"
        findings.append(Finding(f"more {name}", Level.WARNING, text, _UNNAMED))
    return findings


def _is_image(file: InstalledFile) -> bool:
    return file.name.endswith(".squashfs")


def _compared(wanted: Mapping[str, int | None], there: Mapping[str, int]) -> tuple[Level, str, str]:
    lost = [one for one in wanted if f"{one}.squashfs" not in there]
    other = [
        one
        for one, size in wanted.items()
        if size is not None and there.get(f"{one}.squashfs", size) != size
    ]
    empty = [
        image_id
        for image_id, size in wanted.items()
        if size is None and there.get(f"{image_id}.squashfs") == 0
    ]
    bare = [one for one in wanted if f"{one}.squashfs" in there and f"{one}.meta" not in there]
    if not (lost or empty or other or bare):
        return Level.OK, f"all {len(wanted)} images are there", ""
    texts = [f"of {len(wanted)} images"]
    for ids, what in (
        (lost, "have no file"),
        (empty, "have an empty file"),
        (other, "have a file of another size than recorded"),
        (bare, "have no metadata"),
    ):
        if ids:
            texts.append(f"{len(ids)} {what} ({_ids(ids)})")
    if len(lost) == len(wanted):
        return Level.WARNING, ", ".join(texts), "Is it the right directory, and mounted?"
    remedy = "They cannot be run until they are pulled again, which delivers them anew."
    return Level.WARNING, ", ".join(texts), remedy


def _ids(ids: Collection[str]) -> str:
    more = "…" if len(ids) > EXAMPLES else ""
    return ", ".join(sorted(ids)[:EXAMPLES]) + more


async def _listed(reactor: Any, system: System) -> Iterable[InstalledFile]:
    threads = Threads(reactor, 2, "check")
    threads.startService()
    directory = delivery_to(system, reactor, threads).directory

    def late() -> TimedOut:
        return TimedOut(f"The directory was not listed within {LIST_SECONDS:.0f} s.")

    try:
        return await within(LIST_SECONDS, reactor, directory.list(), late)
    finally:
        await directory.close()
        await threads.stopService()
