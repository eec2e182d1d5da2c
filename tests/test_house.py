"""Limits on the structure, the names and the sentences of the program and its tests."""

from __future__ import annotations

import re
from graphlib import CycleError

import pytest

from tests import house
from tests.fixed_limits import fixed_limits
from tests.sentences import riddles
from tests.tracing import without_tracing


@pytest.fixture(scope="module")
def program() -> dict[str, str]:
    """Return the files of the program by their places."""
    return house.files("shiftergw")


@without_tracing
def test_rooms_and_arrows(program: dict[str, str]) -> None:
    """The program has few rooms, few imports between them, few floors, and no circles."""
    arrows = house.arrows_of(program)
    floors = house.floors_of(arrows)
    assert len(arrows) <= house.MOST_ROOMS
    assert sum(map(len, arrows.values())) <= house.MOST_ARROWS
    assert max(floors.values()) <= house.MOST_FLOORS


def test_a_circle_is_detected() -> None:
    """Two rooms that import each other raise an error."""
    sources = {
        "shiftergw/cache/x.py": "from shiftergw.build.y import b",
        "shiftergw/build/y.py": "import shiftergw.cache.x",
    }
    assert house.arrows_of(sources) == {"cache": {"build"}, "build": {"cache"}}
    with pytest.raises(CycleError):
        house.floors_of(house.arrows_of(sources))


def test_floors() -> None:
    """The floor of a room is the longest chain of imports below it."""
    arrows = {"app": {"web", "errors"}, "web": {"errors"}, "errors": set[str]()}
    assert house.floors_of(arrows) == {"errors": 1, "web": 2, "app": 3}


@without_tracing
def test_functions_are_short(program: dict[str, str]) -> None:
    """No function of the program is longer than the limit."""
    assert house.long_functions(program, house.LONGEST_FUNCTION) == []
    text = "def f():\n" + "    x = 1\n" * 60
    assert house.long_functions({"a.py": text}, 60) == [(61, "a.py:1 f")]


@without_tracing
def test_files_of_tests_are_short() -> None:
    """No file of the tests is longer than the limit; a longer one has several promises."""
    assert house.long_files(house.files("tests"), house.LONGEST_TEST_FILE) == []
    assert house.long_files({"a.py": "x = 1\n" * 501, "b.py": ""}, 500) == [(501, "a.py")]


@pytest.mark.slow
@without_tracing
def test_no_identifier_is_vague() -> None:
    """No identifier is a pronoun, an adverb or a bare participle, apart from the allowed names.

    Each allowed name is in use.
    """
    sources = house.files()
    assert house.vague_definitions(sources) == []
    text = "\n".join(source for place, source in sources.items() if place != "tests/house.py")
    assert [name for name in house.ALLOWED_NAMES if re.search(rf"\b_?{name}\b", text) is None] == []


@without_tracing
def test_sentences_are_plain() -> None:
    """No docstring and no comment of the program or its tests has a riddle."""
    assert riddles(house.files()) == []


def test_the_allowed_identifiers_are_few() -> None:
    """At most fifty identifiers are allowed although they look vague, each for a reason."""
    assert len(house.ALLOWED_NAMES) <= 50
    assert all(len(reason) > 10 for reason in house.ALLOWED_NAMES.values())


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("one = 1", "one"),
        ("_told = 1", "_told"),
        ("def held(): ...", "held"),
        ("def f(wanted): ...", "wanted"),
        ("for other in x: ...", "other"),
        ("[there for there in x]", "there"),
        ("with x as opened: ...", "opened"),
        ("class Refused: ...", "Refused"),
        ("self.kept = 1", "kept"),
        ("import x as again", "again"),
        ("try: ...\nexcept OSError as gone: ...", "gone"),
        ("match x:\n case str(other): ...", "other"),
        ("match x:\n case [_, *others]: ...", "others"),
        ("match x:\n case {**more}: ...", "more"),
        ("async def read_it(): ...", "read_it"),
        ("READY_ONE = 1", "READY_ONE"),
    ],
)
def test_a_vague_identifier_is_detected(source: str, name: str) -> None:
    """A vague identifier is detected wherever it is defined."""
    vague = house.vague_definitions({"shiftergw/cache/x.py": source})
    assert [(definition.room, definition.name) for definition in vague] == [("cache", name)]


@pytest.mark.parametrize(
    "name",
    [
        *["layer", "is_closed", "feed", "done", "first", "told_at", "read", "dataReceived"],
        *["one_session", "test_a_user_keeps_it"],
    ],
)
def test_a_clear_identifier_is_not_detected(name: str) -> None:
    """A noun, a verb, a predicate and an allowed word are clear identifiers."""
    assert house.vague_definitions({"shiftergw/cache/x.py": f"{name} = 1"}) == []


@without_tracing
def test_no_limit_of_time_is_fixed() -> None:
    """The tests measure and wait by limits that grow with the load of the machine."""
    sources = house.files("tests").items()
    tests = {place: text for place, text in sources if not place.startswith("tests/bench/")}
    assert fixed_limits(tests) == []


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(command, timeout=60)",
        "urlopen(url, timeout=10.5)",
        "process.wait(10)",
        "future.result(5)",
        "assert time.monotonic() - start < 30",
        "assert 1 <= reactor.seconds() - start <= 2",
    ],
)
def test_a_fixed_limit_is_detected(source: str) -> None:
    """A wait, and a measured time, with a number as its limit is detected."""
    assert fixed_limits({"a.py": source}) == [f"a.py:1 {source.removeprefix('assert ')}"]


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(command, timeout=patient(60))",
        "process.wait(0)",
        "event.wait(0.2)",
        "', '.join(names)",
        "signal.wait(True)",
        "assert time.monotonic() - start < patient(30)",
        "assert time.monotonic() - start > 1",
        "assert time.process_time() - start < 3",
        "assert clock.seconds() - start < 3",
    ],
)
def test_a_limit_that_grows_or_expires_is_not_detected(source: str) -> None:
    """Limits by `patient`, limits that expire, processor time and own clocks are allowed."""
    assert fixed_limits({"a.py": source}) == []


@without_tracing
def test_class_names_are_unique(program: dict[str, str]) -> None:
    """No public class of the program has the name of another one."""
    assert house.repeated_classes(program) == {}
    assert house.repeated_classes(
        {"shiftergw/a.py": "class Login: ...", "shiftergw/b.py": "class Login: ...\nclass _X: ..."}
    ) == {"Login": ["shiftergw/a.py", "shiftergw/b.py"]}
