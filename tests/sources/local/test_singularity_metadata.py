"""Variables and labels of images of Singularity: only constants are kept."""

from __future__ import annotations

import pytest

from shiftergw.sources.local.singularity_metadata import ENVIRONMENT_LIMIT, environment, labels
from tests.tracing import without_tracing


@pytest.mark.parametrize(
    ("line", "variables"),
    [
        ("A=1", ["A=1"]),
        ("  export\tA=1 ; ", ["A=1"]),
        ("export A=", ["A="]),
        ("A='a b $c'", ["A=a b $c"]),
        (r'A="a \"b\" \$c \\ \d"', [r'A=a "b" $c \ \d']),
        ('A="${A:-"x y"}"', ["A=x y"]),
        ('A="${A:-x}"', ["A=x"]),
        ('A="${B:-x}"', []),
        ("A=$B", []),
        ('A="`date`"', []),
        ("A=a b", []),
        ("A=1; B=2", []),
        ("exported A=1", []),
        ("if A=1", []),
        ("# A=1", []),
        ("1A=1", []),
        ("A", []),
        ("", []),
        (f"A={' ' * 500_000}x", []),
        (f"A={chr(34) * 500_000}x", []),
        (f"{'export ' * 100_000}A=1", []),
    ],
)
def test_variables(line: str, variables: list[str]) -> None:
    """A line is read only if a shell would do nothing but assign a constant."""
    assert environment([line.encode()]) == variables


def test_the_end_of_a_long_script_is_not_read() -> None:
    """The time to read a script is bounded; a line that is cut off sets no variable."""
    long_line = b"B=" + b"x" * ENVIRONMENT_LIMIT + b"\n"
    assert environment([b"A=1\n" + long_line + b"C=2\n", b"D=3\n"]) == ["A=1", "D=3"]


@without_tracing
def test_a_script_of_many_lines() -> None:
    """The number of variables is bounded by the bytes of a script that are read."""
    assert len(environment([b"".join(b"A%d=1\n" % n for n in range(200_000))])) < 20_000


def test_several_scripts() -> None:
    """Later assignments replace earlier ones; bytes that are not UTF-8 do no harm."""
    assert environment([b"A=1\nB=2\n", b"A=3\nC='\xff'\n"]) == ["A=3", "B=2", "C=\ufffd"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (b'{"a": "b", "c": 1, "d": {"e": "f"}, "g": null}', {"a": "b"}),
        (b"[]", {}),
        (b"[" * 100_000, {}),
        (b"\xff", {}),
        (b"", {}),
    ],
)
def test_labels(document: bytes, expected: dict[str, str]) -> None:
    """Labels are texts; a document of another form has none."""
    assert labels(document) == expected
