"""Tests of the documents: the README is short, and every link leads somewhere."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftergw import __version__
from tests import api_table

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "shiftergw"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "conf/*.md", "docs/**/*.md", ".github/**/*.md")
    for path in ROOT.glob(pattern)
)

MOST_WORDS = 1200
"""Words of the README, as wc(1) counts them."""

_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(r"`((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|md|json|service|yml))`")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def anchors_of(text: str) -> set[str]:
    """Return the fragments that lead to the headings of a document, as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in _HEADING.findall(_BLOCK.sub("", text))
    }


def dead_links(path: Path, text: str) -> Iterator[str]:
    """Yield the relative links of a document that lead to no file, or to no heading."""
    for link in _LINK.findall(_BLOCK.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        target = path.parent / name if name else path
        content = text if target == path else target.read_text() if target.is_file() else ""
        if not target.exists() or (fragment and fragment not in anchors_of(content)):
            yield link


def test_readme_is_short() -> None:
    """A newcomer reads the README in a few minutes."""
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link in a document leads to an existing file and heading."""
    assert list(dead_links(path, path.read_text())) == []


def test_dead_links_are_noticed() -> None:
    """Links to absent files and headings fail the test; links in blocks of code do not count."""
    text = (
        "# A `b` heading!\n[a](#a-b-heading) [b](README.md) [c](docs/) [d](https://example.com/x)\n"
        "[e](absent.md) [f](#absent) [g](README.md#absent)\n```\n[h](absent.md)\n```\n"
    )
    dead = list(dead_links(ROOT / "README.md", text))
    assert dead == ["absent.md", "#absent", "README.md#absent"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_named_files_exist(path: Path) -> None:
    """Every file of the program, the tests or the samples that a document names exists."""
    names = {name.removeprefix("shiftergw/") for name in _FILE.findall(path.read_text())}
    assert [n for n in names if not (ROOT / n).exists() and not (PROGRAM / n).exists()] == []


def test_every_route_is_described() -> None:
    """The page about the HTTP interface has the table of all routes.

    `web/route_descriptions.py` has its words, and `python -m tests.api_table` writes it anew.
    """
    assert api_table.table() in api_table.PAGE.read_text()
    old_page = "# A page\n\n" + api_table.HEAD + "| x | y |\n\nMore.\n"
    page = f"# A page\n\n{api_table.table()}\nMore.\n"
    assert api_table.in_document(old_page) == api_table.in_document(page) == page


def test_every_refusal_is_described() -> None:
    """Each status of the page about the HTTP interface has the recorded words."""
    text = (ROOT / "docs" / "http-api.md").read_text()
    errors = json.loads((ROOT / "tests" / "golden" / "data" / "errors.json").read_text())
    rows = re.findall(r"^\| (\d{3}) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) > 5
    for status, words in rows:
        codes = re.findall(r"`([a-z-]+)`", words)
        assert {errors[code]["status"] for code in codes} == {int(status)}


def test_one_version() -> None:
    """The package, the program and the newest part of the changelog have the same version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert (__version__, newest[1]) == (version, version)


def test_every_page_is_reachable() -> None:
    """Links from the README lead to every page of the manual, directly or over other pages."""
    visited_pages: set[Path] = set()
    pages = [ROOT / "README.md"]
    while pages:
        page = pages.pop()
        if page in visited_pages or page.suffix != ".md":
            continue
        visited_pages.add(page)
        pages += [
            (page.parent / link.partition("#")[0]).resolve()
            for link in _LINK.findall(_BLOCK.sub("", page.read_text()))
            if not re.match(r"[a-z]+:|#", link)
        ]
    assert set(ROOT.glob("docs/**/*.md")) <= visited_pages
