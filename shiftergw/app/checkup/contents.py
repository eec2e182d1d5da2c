"""Check the content of a database, behind `shiftergw check --database`.

For admins who point the gateway at a database that another program has filled. Nothing is written,
not even an index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shiftergw.app.checkup.database import expiry, mongodb_failure
from shiftergw.app.checkup.finding import Finding, Level, failure
from shiftergw.app.checkup.locations import GONE_LOCATIONS, LocatedRecords
from shiftergw.app.checkup.policies import PolicyRecords
from shiftergw.app.compose import delivery_to
from shiftergw.config import Config, System
from shiftergw.errors import GatewayError, TimedOut, amount
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.services import ClosedAtStop, run_services
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within
from shiftergw.ports import InstalledFile
from shiftergw.store.mongo import inspection as mongo_inspection
from shiftergw.store.sqlite import inspection as sqlite_inspection
from shiftergw.store.survey import EXAMPLES, Category, Oddity, Survey, Tally

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

LIST_SECONDS = 60.0
"""The time limit for the list of an image directory."""

MOST_NAMES = 20
"""The most unconfigured systems, and the most members of records, that are named."""

FRESH_SECONDS = 3600.0
"""Seconds for which a new file may have no record yet, because its delivery has not ended."""

_UNNAMED_REMEDY = (
    "No user of this gateway can find them: deliveries left them that failed at their end, or"
    " another program. Remove them by hand once no job uses them."
)

_POLICY_REMEDY = (
    "They stay, and jobs can run them. Pull them again to have them judged, or remove them:"
    " `shiftergw expire IMAGE`."
)
_LOCATION_REMEDY = (
    "They stay, and jobs can run them. The next pull of them is refused, or asks another registry:"
    " add theirs to `Locations`, or remove them: `shiftergw expire IMAGE`."
)

_QUIET = frozenset(
    {Category.LISTED, Category.UNTAGGED, Category.IN_FLIGHT, Category.FAILURES, Category.EXPIRED}
)
"""Categories that need no attention."""

_HARMLESS = frozenset({Oddity.TEXT_TAG, Oddity.NO_DATE, Oddity.DUE})

_REMEDIES: Mapping[Category | Oddity, str] = {
    Category.KEYLESS: "Give the record a new key, an ObjectId.",
    Oddity.CLAIM: "Take the member from them, unless a gateway of this program wrote it.",
    Oddity.OPEN: "Name readers: pull them again with --user and --group.",
    Oddity.NO_READER: "Pull them again with --user and --group, or correct the members.",
}


async def contents(reactor: Reactor, config: Config) -> list[Finding]:
    """Return the findings about the records, and about the files that belong to them."""
    judges = (PolicyRecords(config).judge, LocatedRecords(config).judge)

    def classify(document: Mapping[str, Any]) -> Iterable[str]:
        return filter(None, (judge(document) for judge in judges))

    survey = Survey(config.systems.keys(), reactor.seconds(), classify)
    try:
        findings = await _database(reactor, config, survey)
    except GatewayError as error:
        mongodb = config.mongodb_uri is not None
        return [mongodb_failure("database", error) if mongodb else failure("database", error)]
    findings += _systems(survey)
    findings += _records(survey)
    findings += _classes(survey)
    findings += await _files(reactor, config, survey)
    return findings


async def _database(reactor: Reactor, config: Config, survey: Survey) -> list[Finding]:
    """Count the records in the database; return the findings about the database as a whole."""
    if config.mongodb_uri is not None and config.mongodb is not None:
        uri, name = config.mongodb_uri, config.mongodb
        look = await mongo_inspection.survey(reactor, uri, name, survey)
        text = f"MongoDB, database {name}: {_size(survey, look.lookups)}"
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
        rows = await threads.run(sqlite_inspection.survey, path, survey)
    finally:
        await threads.stopService()
    return [
        Finding("database", Level.OK, f"{path}: {_size(survey, rows)}"),
        _own_expiry(config),
    ]


def _own_expiry(config: Config) -> Finding:
    return expiry(config, taken_over=False)


def _size(survey: Survey, rows: int) -> str:
    foreign = (
        f", {survey.foreign_records} of them by another program" if survey.foreign_records else ""
    )
    return f"{survey.records} records{foreign}; {rows} rows of look-ups"


def _systems(survey: Survey) -> Iterator[Finding]:
    """Yield how many records there are by state, for each system."""
    by_system: dict[str, Counter[str]] = {}
    for (system, state), count in survey.states.items():
        by_system.setdefault(system, Counter())[state] += count
    for system in survey.systems:
        states = by_system.pop(system, Counter())
        yield Finding(f"records of {system}", Level.OK, _numbers(states) or "none")
    if by_system:
        sums = Counter({system: sum(states.values()) for system, states in by_system.items()})
        yield Finding("records of others", Level.OK, _numbers(sums))


def _numbers(counter: Mapping[str, int]) -> str:
    """Return names with their numbers, the most frequent first, and how many more there are."""
    items = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    texts = [f"{name} {count}" for name, count in items[:MOST_NAMES]]
    rest = len(items) - MOST_NAMES
    return ", ".join([*texts, f"and {rest} more"] if rest > 0 else texts)


def _records(survey: Survey) -> Iterator[Finding]:
    """Yield each category, then what is odd in any of them."""
    for category in Category:
        if category in survey.categories:
            tally = survey.categories[category]
            level = Level.OK if category in _QUIET else Level.WARNING
            examples = "" if category is Category.LISTED else _examples(tally)
            text = f"{tally.count} {category}{examples}"
            yield Finding("records", level, text, _REMEDIES.get(category, ""))
    for oddity in Oddity:
        if oddity in survey.oddities:
            tally = survey.oddities[oddity]
            level = Level.OK if oddity in _HARMLESS else Level.WARNING
            if oddity is Oddity.CLAIM:
                level = Level.FAILURE
            members = f"; {_numbers(survey.unreadable_members)}" if oddity is Oddity.FORM else ""
            text = f"{tally.count}: {oddity}{members}{_examples(tally)}"
            yield Finding("odd", level, text, _REMEDIES.get(oddity, ""))
    if survey.unknown_members:
        yield Finding("unknown members", Level.OK, f"kept: {_numbers(survey.unknown_members)}")


def _classes(survey: Survey) -> Iterator[Finding]:
    """Yield the images that policies do not accept, and those that cannot be pulled again.

    Nothing is done to them.
    """
    for name, tally in sorted(survey.classes.items()):
        kind, remedy = "policy", _POLICY_REMEDY
        if name == GONE_LOCATIONS:
            kind, remedy = "locations", _LOCATION_REMEDY
        yield Finding(kind, Level.WARNING, f"{tally.count} {name}{_examples(tally)}", remedy)


def _examples(tally: Tally) -> str:
    ellipsis = "…" if tally.count > len(tally.examples) else ""
    return f" ({', '.join(tally.examples)}{ellipsis})"


async def _files(reactor: Reactor, config: Config, survey: Survey) -> list[Finding]:
    """Return the findings about missing and unknown files in each image directory."""
    directories: dict[str, System] = {}
    sizes: dict[str, dict[str, int | None]] = {}
    image_ids: dict[str, set[str]] = {}
    for name, system in config.systems.items():
        directory = system.directory_name
        directories.setdefault(directory, system)
        sizes.setdefault(directory, {}).update(survey.files.get(name, {}))
        image_ids.setdefault(directory, set()).update(survey.image_ids.get(name, ()))
    results = await gather_or_cancel(
        _directory(reactor, system, sizes[name], image_ids[name])
        for name, system in directories.items()
    )
    return [finding for findings in results for finding in findings]


async def _directory(
    reactor: Reactor,
    system: System,
    expected: Mapping[str, int | None],
    image_ids: AbstractSet[str],
) -> list[Finding]:
    """Return the findings about one image directory.

    `expected` are the images that READY records name, with their sizes in bytes if known;
    `image_ids` are those of all records.
    """
    name = f"files in {system.directory_name}"
    try:
        files = list(await _list_directory(reactor, system))
    except GatewayError as error:
        remedy = "The files were not looked at. Run `shiftergw check` to see what is wrong."
        finding = replace(failure(name, error), level=Level.WARNING, remedy=remedy)
        return [finding] if expected else []
    sizes = {file.name: file.size for file in files}
    findings = [Finding(name, *_compare(expected, sizes))] if expected else []
    # A new file may belong to a delivery that has no record yet.
    newest = reactor.seconds() - FRESH_SECONDS
    unknown = {
        file.name.removesuffix(".squashfs"): file.size
        for file in files
        if file.name.endswith(".squashfs")
        and file.name.removesuffix(".squashfs") not in image_ids
        and (file.modified is None or file.modified < newest)
    }
    if unknown:
        size = amount(sum(unknown.values()))
        text = f"{len(unknown)} images that no record names, {size} ({_ids(unknown)})"
        findings.append(Finding(f"more {name}", Level.WARNING, text, _UNNAMED_REMEDY))
    return findings


def _compare(
    expected: Mapping[str, int | None], sizes: Mapping[str, int]
) -> tuple[Level, str, str]:
    """Return level, text and remedy of a finding: which images lack files, or have wrong ones.

    `sizes` are those of the files in the directory, by their names.
    """
    missing, empty, wrong_size, without_metadata = [], [], [], []
    for image_id, size in expected.items():
        file_size = sizes.get(f"{image_id}.squashfs")
        if file_size is None:
            missing.append(image_id)
            continue
        if size is None and file_size == 0:
            empty.append(image_id)
        if size not in {None, file_size}:
            wrong_size.append(image_id)
        if f"{image_id}.meta" not in sizes:
            without_metadata.append(image_id)
    problems = {
        "have no file": missing,
        "have an empty file": empty,
        "have a file of another size than recorded": wrong_size,
        "have no metadata": without_metadata,
    }
    texts = [f"of {len(expected)} images"]
    texts += [f"{len(ids)} {problem} ({_ids(ids)})" for problem, ids in problems.items() if ids]
    if len(texts) == 1:
        return Level.OK, f"all {len(expected)} images are there", ""
    if len(missing) == len(expected):
        return Level.WARNING, ", ".join(texts), "Is it the right directory, and mounted?"
    remedy = "They cannot be run until they are pulled again, which delivers them anew."
    return Level.WARNING, ", ".join(texts), remedy


def _ids(ids: Collection[str]) -> str:
    ellipsis = "…" if len(ids) > EXAMPLES else ""
    return ", ".join(sorted(ids)[:EXAMPLES]) + ellipsis


async def _list_directory(reactor: Reactor, system: System) -> Iterable[InstalledFile]:
    threads = Threads(reactor, 2, "check")
    directory = delivery_to(system, reactor, threads).directory

    def late() -> TimedOut:
        return TimedOut(f"The directory was not listed within {LIST_SECONDS:.0f} s.")

    async with run_services([threads, ClosedAtStop(directory.close)]):
        return await within(LIST_SECONDS, reactor, directory.list(), late)
