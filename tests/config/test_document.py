"""Tests of the document: duplicate keys, unknown keys, errors of syntax."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.config import Config
from shiftergw.config.document import duplicate_keys, parse, place
from shiftergw.errors import ConfigurationError
from tests.configurations import BASE, SMALLEST, change_document, load_config


def test_a_misspelt_key_that_is_required() -> None:
    """The error about a missing key also names an unknown key with a similar name."""
    document = {**SMALLEST, "CacheDirectry": SMALLEST["CacheDirectory"]}
    del document["CacheDirectory"]
    with pytest.raises(ConfigurationError) as caught:
        Config.from_document(document, base=BASE, environ={})
    assert "CacheDirectory: is required" in caught.value.what
    assert 'did you mean "CacheDirectory"?' in caught.value.what


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("Platfroms", {}, 'Platfroms: unknown key, not used; did you mean "Platforms"?'),
        ("metrics", True, 'metrics: unknown key, not used; did you mean "Metrics"?'),
        ("zzz", 1, "zzz: unknown key, not used"),
        (
            "Platforms/mycluster/admin",
            ["root"],
            'Platforms.mycluster.admin: unknown key, not used; did you mean "admins"?',
        ),
        (
            "Platforms/mycluster/local/imagedir",
            "/i",
            'Platforms.mycluster.local.imagedir: unknown key, not used; did you mean "imageDir"?',
        ),
        (
            "Platforms/mycluster/squashfs/blocksize",
            "1M",
            (
                "Platforms.mycluster.squashfs.blocksize: unknown key, not used; did you mean"
                ' "blockSize"?'
            ),
        ),
        (
            "Locations/registry.example.com/sslCACert",
            "ca.pem",
            (
                "Locations.registry.example.com.sslCACert: unknown key, not used; did you mean"
                ' "sslcacert"?'
            ),
        ),
        ("UserLimits/total", 1, "UserLimits.total: unknown key, not used"),
        ("Platforms/mycluster/name", "n", "Platforms.mycluster.name: unknown key, not used"),
        ("zz\nzz", 1, r"zz\x0azz: unknown key, not used"),
    ],
)
def test_unknown_keys(path: str, value: Any, message: str) -> None:
    """An unknown key at any level causes a warning, which suggests the most similar key."""
    assert message in load_config({path: value}).warnings


def test_a_section_that_is_null_is_absent() -> None:
    """A null instead of a section has the same effect as no section, without a warning."""
    result = load_config({"Platforms/mycluster/ssh": None})
    assert result.warnings == ()
    assert result.config.systems["mycluster"].ssh is None


def test_name_is_not_taken_from_the_document() -> None:
    """The name of a system is its key, not a member of its section."""
    config = load_config({"Platforms/mycluster/name": "other"}).config
    assert config.systems["mycluster"].name == "mycluster"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, "b": {"a": 1}}', []),
        ('{"a": 1, "a": 1}', ["a: appears more than once"]),
        ('{"x": {"a": 1, "b": 2, "a": 3, "a": 4}}', ["x.a: appears more than once"]),
        ('{"x": [1, {"b": 1, "b": 2}]}', ["x.1.b: appears more than once"]),
        ('{"b": 1, "a": 1, "a": {"c": 1, "c": 2}, "b": 2}', [
            "a: appears more than once",
            "b: appears more than once",
            "a.c: appears more than once",
        ]),
    ],
)  # fmt: skip
def test_duplicate_keys(text: str, expected: list[str]) -> None:
    """Each duplicate key is a problem, at every depth."""
    assert sorted(duplicate_keys(parse(text))) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b": 2 ,\n}', "line 2, column 9: .*remove the comma before the }"),
        ('{"a": [1, 2,], "b": 2}', "line 1, column 12: .*remove the comma before the ]"),
        ('{"a": 1,,}', "line 1, column 9: .*comma before the }|line 1, column 9: .*a key"),
        ('{"a": 1} x', "line 1, column 10: .*after the end of the document"),
        ("{\"a\": 'b'}", "line 1, column 7: .*double quotes"),
        ("{'a': 1}", "line 1, column 2: .*double quotes"),
        ("{a: 1}", "line 1, column 2: .*double quotes"),
        ("# comment", "line 1, column 1: .*no comments"),
        ('{"a": 1, // comment\n "b": 2}', "line 1, column 10: .*no comments"),
        ('{"a": 1 # comment\n}', "line 1, column 9: .*no comments"),
        ('{"a": 1\n "b": 2}', "line 1, column 7: .*a comma, .*, is missing after this"),
        ('{"a": True}', "line 1, column 7: .*write true"),
        ('{"a": None}', "line 1, column 7: .*write null"),
        ('{"a": mycluster}', "line 1, column 7: .*double quotes"),
        ('{"a": }', "line 1, column 7: .*a value is missing"),
        ('{"a" 1}', "line 1, column 6: .*a colon"),
        ('{"a": {"b": 1}\n', "line 1, column 14: .*a closing } or ] is missing"),
        ('{"a": "b}\n', r"line 1, column 10: .*a closing quote"),
        (r'{"a": "C:\x"}', r"line 1, column 10: .*\\\\"),
        ("", "line 1, column 1: .*it is empty"),
        ('{"a":\n' + "1" * 5000 + "}", "line 2, column 1: .*more than 4300 digits"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_errors_of_syntax(text: str, message: str) -> None:
    """An error of syntax has line, column and an explanation."""
    with pytest.raises(ConfigurationError, match=message):
        parse(text)


def test_no_secret_in_an_error_of_syntax() -> None:
    """An error of syntax does not quote the text, which may contain a password."""
    with pytest.raises(ConfigurationError) as caught:
        parse('{"MongoDBURI": "mongodb://me:hunter2@db/", }')
    assert "hunter2" not in str(caught.value)
    assert "line 1, column 42" in str(caught.value)


def test_place() -> None:
    """A path joins the keys with dots, and escapes what cannot be printed."""
    assert place("Platforms", "my\x1b[31m", 0) == r"Platforms.my\x1b[31m.0"
    assert place() == "the document"


def values() -> st.SearchStrategy[Any]:
    """Return a strategy for arbitrary JSON values."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )


def paths(document: dict[str, Any], above: str = "") -> list[str]:
    """Return the paths of all values of a document."""
    result = []
    for key, value in document.items():
        result.append(f"{above}{key}")
        if isinstance(value, dict):
            result += paths(value, f"{above}{key}/")
    return result


@given(path=st.sampled_from([*paths(SMALLEST), "Listen", "UserLimits", "ConverterOptions",
                             "ImportUsers", "StateDirectory", "MaxImageSize",
                             "Platforms/mycluster/squashfs"]), value=values())  # fmt: skip
def test_any_value_anywhere(path: str, value: Any) -> None:
    """Any value in any place is accepted, or refused with printable lines and no traceback."""
    refusal = ""
    try:
        Config.from_document(change_document({path: value}), base=BASE, environ={})
    except ConfigurationError as error:
        refusal = str(error)
    assert all(line.isprintable() for line in refusal.splitlines())
