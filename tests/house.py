"""Measure the house: rooms and the imports between them, sizes, names, and words of the language.

`python -m tests.house` prints the measures; `tests/test_house.py` holds their limits. A room is a
module or package directly below `shiftergw`; an arrow is an import from one room into another, also
one for the type checker alone; the floor of a room is the length of the longest chain of arrows
below it.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
TREES = ("shiftergw", "tests", "conf")

MOST_ROOMS = 26
MOST_ARROWS = 118
MOST_FLOORS = 9
LONGEST_FUNCTION = 60  # lines
LONGEST_TEST_FILE = 500  # lines


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PRONOUNS = _words(
    """
    all another any anybody anyone anything both each either everybody everyone everything he her
    hers him his it its itself many me mine more most much neither nobody none nothing one ones
    other others ours several she some somebody someone something such that theirs them these they
    this those us we what whatever which whichever who whoever whom whose
    """
)

ADVERBS = _words(
    """
    again ahead already also always away elsewhere ever far forth hence here instead later
    meanwhile nearly never nowhere often once only perhaps quite rather seldom since so somewhere
    soon still then there therefore thus together too twice yet
    """
)

IRREGULAR_PARTICIPLES = _words(
    """
    been begun born borne bought bound broken brought built caught chosen come dealt done drawn
    driven eaten fallen fed felt forbidden forgiven forgotten found frozen given gone got grown
    heard held hidden kept known laid lain led left lent lost made meant met paid risen rung said
    seen sent shaken shown shut sold sought spent spoken stood struck stuck sung sunk sworn taken
    taught thought told torn understood woken won worn written
    """
)

LAST_PRONOUNS = _words("it one")
"""Pronouns that may not end a longer identifier, such as `read_it`."""

NOUNS_LIKE_PARTICIPLES = _words(
    """
    bed embed exceed feed need proceed red seed shed speed
    """
)
"""Nouns and verbs that only look like a participle."""

ALLOWED_NAMES: Mapping[str, str] = {
    "ABANDONED": "a `Category` of records: work that no process continues",
    "AWAY": "a state of the pool of MongoDB connections: the server does not answer",
    "CHANGED": "a result for a host key (`ssh-trust`): another one is known",
    "CLOSED": "the last state of a pool",
    "CONNECTED": "a state of the pool of MongoDB connections",
    "DONE": "the exit code of a command that has succeeded",
    "EXPIRED": "the state of a record, and a category of records",
    "EXTENDED": "SSH_FXP_EXTENDED of the SFTP protocol",
    "Exhausted": "the error of a process without descriptors, memory or threads",
    "Expired": "the end of the work on an expired image, beside `Ready` and `Failed`",
    "Failed": "the end of work, beside `Ready` and `Expired`",
    "KNOWN": "a result for a host key (`ssh-trust`): it is known",
    "LISTED": "a `Category` of records: images that appear in lists",
    "NONE": "the compression method `none` of SSH",
    "REPLAYED": "EMUNGE_CRED_REPLAYED of munge.h",
    "REVOKED": "a result for a host key (`ssh-trust`): it is revoked",
    "STOPPED": "the last state of a list of users; the words of a worker's orderly stop",
    "Superseded": "the error of an attempt that a newer one has replaced",
    "UNAUTHORIZED": "EMUNGE_CRED_UNAUTHORIZED of munge.h",
    "UNNAMED": "a `Category` of records: work that names no image",
    "UNSUPPORTED": "SSH_FX_OP_UNSUPPORTED of the SFTP protocol",
    "UNTAGGED": "a `Category` of records: images without a tag",
    "all": "in flags and functions it means every element, as the builtin does",
    "caught": "the usual name of the context of `pytest.raises`",
    "closed": "the Deferred that fires when a channel or connection has closed",
    "connected": "whether a port listens: a member of Twisted's ports",
    "created": "the date of an image: the member `created` of its configuration (image-spec)",
    "died": "whether a worker died (a verb): a keyword of `ImageStore.requeue`",
    "done": "bytes done so far (`Progress.done`), and the end of a task, as asyncio names it",
    "enabled": "whether a function of the program is switched on",
    "expected": "the usual name of a test's expected value",
    "heard": "the time of a worker machine's last report: the member `heard` of the HTTP interface",
    "modified": "the time of the last write: the member `modified` of stored documents",
    "munged": "the daemon of munge(7)",
    "pinned": "whether an image is pinned: the member `pinned` of the HTTP interface",
    "sealed": "an encrypted login: the member `sealed` of stored documents",
    "since": "the time at which a trouble began (`QueueTrouble.since`)",
    "what": "what happened: the first of the three texts of an error (`GatewayError.what`)",
    "used": "bytes in use, beside `free` and `total`, as in `shutil.disk_usage`",
    "waited": "seconds of a pull's earlier waits: the member `waited` of stored documents",
}
"""Identifiers that look like pronouns, adverbs or bare participles and stay: word -> reason."""


@dataclass(frozen=True)
class Definition:
    """An identifier where it gets its meaning: a class, function, argument, variable, attribute."""

    place: str
    line: int
    name: str

    @property
    def room(self) -> str:
        """Return the room that the file is in, or its top-level folder outside the program."""
        parts = Path(self.place).with_suffix("").parts
        return parts[1] if parts[0] == "shiftergw" and len(parts) > 1 else parts[0]


@functools.cache
def is_vague(name: str) -> bool:
    """Return whether an identifier is nothing but a pronoun, an adverb, or a bare participle.

    An identifier of several words is vague if the last of them is one of `LAST_PRONOUNS`. Names of
    tests are sentences, so these may end so.
    """
    words = re.findall("[A-Z]?[a-z]+|[A-Z]+|[0-9]+", name)
    if len(words) > 1:
        return words[-1].lower() in LAST_PRONOUNS and words[0] != "test"
    if not words or words[0] in ALLOWED_NAMES:
        return False
    word = words[0].lower()
    if word in NOUNS_LIKE_PARTICIPLES:
        return False
    if word in PRONOUNS or word in ADVERBS or word in IRREGULAR_PARTICIPLES:
        return True
    return re.fullmatch("[a-z]{2,}ed", word) is not None


def definitions_of(place: str, source: str) -> Iterator[Definition]:
    """Yield every identifier that a file defines; overridden names of others are among them."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.ClassDef(name=name)
                | ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
            ):
                yield Definition(place, node.lineno, name)
            case ast.arg(arg=name):
                yield Definition(place, node.lineno, name)
            case ast.Name(id=name, ctx=ast.Store()):
                yield Definition(place, node.lineno, name)
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield Definition(place, node.lineno, name)
            case ast.alias(asname=str(name)):
                yield Definition(place, node.lineno, name)
            case ast.ExceptHandler(name=str(name)):
                yield Definition(place, node.lineno, name)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield Definition(place, node.lineno, name)
            case ast.MatchMapping(rest=str(name)):
                yield Definition(place, node.lineno, name)
            case _:
                pass


def files(*trees: str) -> dict[str, str]:
    """Return the text of each Python file below these folders, by its place in the repository."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for tree in trees or TREES
        for path in sorted((ROOT / tree).rglob("*.py"))
    }


def vague_definitions(sources: Mapping[str, str]) -> list[Definition]:
    """Return the definitions whose identifiers `is_vague`."""
    return [
        definition
        for place, source in sources.items()
        for definition in definitions_of(place, source)
        if is_vague(definition.name)
    ]


def arrows_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return for each room of the program the rooms that it imports."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for place, source in sources.items():
        room = Path(place).with_suffix("").parts[1]
        if room == "__init__":
            continue
        rooms[room] |= {
            name.split(".")[1] for name in _imports(ast.parse(source)) if name.count(".")
        } - {room, "__version__"}
    return dict(rooms)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names: Iterable[str] = (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            continue
        yield from (name for name in names if name.startswith("shiftergw."))


def floors_of(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """Return for each room the number of its floor; raise `CycleError` if arrows form a circle."""
    floors: dict[str, int] = {}
    for room in TopologicalSorter(arrows).static_order():
        floors[room] = 1 + max((floors[below] for below in arrows.get(room, ())), default=0)
    return floors


def long_functions(sources: Mapping[str, str], limit: int) -> list[tuple[int, str]]:
    """Return the lengths and places of functions of more than `limit` lines, longest first."""
    lengths = [
        (node.end_lineno - node.lineno + 1, f"{place}:{node.lineno} {node.name}")
        for place, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    return sorted((entry for entry in lengths if entry[0] > limit), reverse=True)


def long_files(sources: Mapping[str, str], limit: int) -> list[tuple[int, str]]:
    """Return the lengths and places of files of more than `limit` lines, longest first."""
    lengths = [(len(source.splitlines()), place) for place, source in sources.items()]
    return sorted((entry for entry in lengths if entry[0] > limit), reverse=True)


def repeated_classes(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the public classes of the program whose names exist more than once."""
    places: dict[str, list[str]] = defaultdict(list)
    for place, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(place)
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


def report(sources: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines that tell all measures."""
    program = {place: text for place, text in sources.items() if place.startswith("shiftergw/")}
    arrows = arrows_of(program)
    yield f"rooms  {len(arrows)} (at most {MOST_ROOMS})"
    yield f"arrows {sum(map(len, arrows.values()))} (at most {MOST_ARROWS})"
    try:
        floors = floors_of(arrows)
    except CycleError as error:
        yield f"a circle: {' -> '.join(error.args[1])}"
    else:
        yield f"floors {max(floors.values())} (at most {MOST_FLOORS}), no circles"
        for floor in range(max(floors.values()), 0, -1):
            yield f"  {floor}: {' '.join(sorted(room for room in floors if floors[room] == floor))}"
    tests = {place: text for place, text in sources.items() if place.startswith("tests/")}
    for length, place in (*long_files(program, 0)[:3], *long_files(tests, 0)[:3]):
        yield f"long file: {length} lines, {place}"
    for length, place in long_functions(program, 0)[:3]:
        yield f"long function: {length} lines, {place}"
    for name, places in repeated_classes(program).items():
        yield f"class {name} exists {len(places)} times: {' '.join(places)}"
    vague = vague_definitions(sources)
    yield f"vague identifiers: {len(vague)} definitions"
    for room, count in Counter(definition.room for definition in vague).most_common():
        yield f"  {room}: {count}"
    words = Counter(definition.name for definition in vague).most_common(40)
    yield "  " + ", ".join(f"{name} {count}" for name, count in words)


def main() -> None:
    """Print all measures; with an argument, the vague identifiers of that room or folder."""
    sources = files()
    lines = list(report(sources))
    if len(sys.argv) > 1:
        lines = [
            f"{definition.place}:{definition.line} {definition.name}"
            for definition in vague_definitions(sources)
            if definition.room == sys.argv[1] or definition.place.startswith(sys.argv[1])
        ]
    print("\n".join(lines))  # noqa: T201 - the output of the command


if __name__ == "__main__":
    main()
