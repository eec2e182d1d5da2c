"""`conf/man_pages.py` writes a page for each command."""

from __future__ import annotations

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from shiftergw.cli.main import main
from tests.parts import need

SCRIPT = Path(__file__).parents[2] / "conf" / "man_pages.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """Return the functions of the script."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def pages(script: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with all pages."""
    directory = tmp_path_factory.mktemp("pages") / "man1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1000000000")
        script["write_pages"](directory)
    return directory


def text_of_pages(*pages: Path) -> str:
    """Return pages as a terminal shows them; fail for any warning."""
    # Not as TTY escapes (grotty(1)), and with lines that are never broken.
    command = ["groff", "-man", "-Tascii", "-P-cbou", "-ww", "-rLL=2000m", *map(str, pages)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_every_command_has_a_page(pages: Path) -> None:
    """Each page is valid, and that of the program names all others."""
    need("groff")
    names = {f"shiftergw-{name}" for name in main.list_commands(click.Context(main))}
    pyxis = {"shiftergw-pyxis", "shiftergw-pyxis-get", "shiftergw-pyxis-release"}
    assert {path.stem for path in pages.iterdir()} == names | pyxis | {"shiftergw"}
    text_of_pages(*sorted(pages.iterdir()))
    text = text_of_pages(pages / "shiftergw.1")
    assert [name for name in names if f"{name}(1)" not in text] == []
    assert "SHIFTERGW_GATEWAY" in text


def test_a_page(pages: Path) -> None:
    """A page has the words of `--help`, a fixed date, and options that can be copied."""
    need("groff")
    text = text_of_pages(pages / "shiftergw-rm.1")
    assert "shiftergw-rm - Remove an image with all its tags and files\n" in text
    assert "shiftergw rm [OPTIONS] [IMAGE]...\n" in text
    assert "--now ID" in text
    assert "2001-09-09" in text
    assert "shiftergw(1)" in text


def test_characters(script: dict[str, Any], tmp_path: Path) -> None:
    """No character of a text is taken for a request, and none is replaced."""
    need("groff")
    roff: Callable[[str], str] = script["roff"]
    lines = [".x is no request", "'x", r"a\fBb\n", "--json ^~", "a ` b"]
    page = tmp_path / "page.1"
    page.write_text("\n.PP\n".join([".TH X 1", *map(roff, lines)]))
    text = text_of_pages(page)
    for line in lines:
        assert line in text
    assert roff("a `-x` b") == r"a \fB\-x\fP b"
