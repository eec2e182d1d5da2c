"""Tests of the errors: HTTP statuses, codes, texts, and printable foreign text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw import errors
from shiftergw.errors import (
    FOREIGN_TEXT_LIMIT,
    ChildFailed,
    GatewayError,
    PullError,
    TooMany,
    Unavailable,
    amount,
    duration,
    key_values,
    printable,
)


def tree(base: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    """Yield every class of the tree that `errors` defines."""
    yield base
    for child in base.__subclasses__():
        if child.__module__.startswith(f"{errors.__name__}."):
            yield from tree(child)


TREE = list(tree())


@given(st.text() | st.binary(), st.integers(1, 50))
def test_printable(text: str | bytes, limit: int) -> None:
    """Any foreign text becomes one printable line of limited length."""
    line = printable(text, limit)
    assert line.isprintable()
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1


@given(st.text(st.characters(exclude_categories=("C", "Z")), max_size=FOREIGN_TEXT_LIMIT))
def test_printable_keeps_plain_text(text: str) -> None:
    """Short printable text of any language stays unchanged."""
    assert printable(text) == text


@given(st.dictionaries(st.sampled_from("abcdef"), st.text()))
def test_key_values(fields: dict[str, str]) -> None:
    """Hostile values can neither end the line nor look like another field."""
    line = key_values(fields)
    assert line.isprintable()
    pairs = re.findall(r'([a-f])=("(?:[^"\\]|\\.)*"|[^\s"=\\]+)', line)
    assert " ".join(map("=".join, pairs)) == line
    values = {
        name: "" if text == "-" else json.loads(text) if text.startswith('"') else text
        for name, text in pairs
    }
    assert values == {name: printable(value) for name, value in fields.items()}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "-"), ("-", '"-"'), (0, "0"), ({"a": 1.5, "b": 2}, "a:1.5,b:2"), ("a=b", '"a=b"')],
)
def test_forms_of_values(value: object, expected: str) -> None:
    """A value that is absent is a dash, and a mapping is a list of pairs."""
    assert key_values({"k": value}) == f"k={expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb", r"a\x0ab"),
        (b"\xff\x1b", r"\xff\x1b"),
        ("\u202egnp", r"\x202egnp"),
        ("größer", "größer"),
        ("x" * 301, "x" * 299 + "…"),
        ("x" * 300, "x" * 300),
    ],
)
def test_printable_examples(text: str | bytes, expected: str) -> None:
    """Control characters become numbers, and truncation is visible."""
    assert printable(text) == expected


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_class_facts(kind: type[GatewayError]) -> None:
    """Every class has an error status, a code and a remedy of whole sentences."""
    assert 400 <= kind.http_status <= 599
    assert kind.code == kind.code.lower()
    assert kind.code.replace("-", "").isalpha()
    assert kind.default_remedy.endswith((".", "?"))
    assert kind.__doc__


def test_codes_are_distinct() -> None:
    """Clients can distinguish the errors by their codes."""
    words = [kind.code for kind in TREE]
    assert len(words) == len(set(words))


def test_errors_of_the_user_are_not_retryable() -> None:
    """A retry does not help if the user must change the request."""
    hopeless = {kind.code for kind in TREE if kind.http_status in {400, 401, 403, 413}}
    retryable_codes = {kind.code for kind in TREE if kind.retryable}
    assert hopeless.isdisjoint(retryable_codes)
    assert {TooMany.code, Unavailable.code} <= retryable_codes


def test_texts() -> None:
    """An error shows what happened and what to do; the detail is for admins only."""
    error = GatewayError("It broke.", remedy="Mend it.", detail="host1:/dev/sda", retry_after=5)
    assert str(error) == "It broke. Mend it."
    assert (error.what, error.remedy, error.detail, error.retry_after) == (
        "It broke.",
        "Mend it.",
        "host1:/dev/sda",
        5,
    )


def test_default_texts() -> None:
    """Without a remedy an error has that of its class; an empty remedy stays empty."""
    assert str(TooMany("Full.")) == "Full. Try again later."
    assert str(TooMany("Full.", remedy="")) == "Full."
    assert TooMany("Full.").detail == ""
    assert TooMany("Full.").retry_after is None


def test_child_failed() -> None:
    """The end of a child's stderr is in the detail, not in the text for users."""
    error = ChildFailed("mksquashfs failed.", exit_code=1, signal=None, stderr="/images: full")
    assert (error.exit_code, error.signal, error.detail) == (1, None, "/images: full")
    assert "/images" not in str(error)


def test_pull_errors_are_causes() -> None:
    """The errors of a pull form one family, and each has its own code."""
    family = list(tree(PullError))
    assert len(family) > 10
    assert all(kind.code != GatewayError.code for kind in family)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (157_301_078, "157.3 MB"),
        (999_949_999, "999.9 MB"),
        (999_950_000, "1 GB"),
        (200 * 10**9, "200 GB"),
        (1 << 62, "4.6 EB"),
        (10**22, "10000 EB"),
    ],
)
def test_amount(count: int, text: str) -> None:
    """Bytes have the units of the configuration, and at most one decimal."""
    assert amount(count) == text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 seconds"), (1, "1 second"), (45.2, "45.2 seconds"), (60, "1 minute"),
     (900, "15 minutes"), (3599, "1 hour"), (5400, "1.5 hours"),
     (21600, "6 hours"), (86400, "1 day"), (172800, "2 days")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    """A duration has the largest unit of which it contains at least one."""
    assert duration(seconds) == words
