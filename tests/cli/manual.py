"""The command lines of the README and the manual."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from unittest.mock import patch

import click

from shiftergw.app.tap import Options
from shiftergw.cli.importer import importer
from shiftergw.cli.main import COMMANDS, main
from shiftergw.cli.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/**/*.md"))]

_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_SHELLS = {"console", "sh", "bash", "shell"}
_PROGRAMS = {"shiftergw", "shiftergw-pyxis", "shifterimg", "twistd"}
_MODES = {"images", "lookup", "pull", "pullnb", "expire", "autoexpire", "login"}
"""The words for a request on the command line of `shifterimg`."""

_SIMPLE = re.compile(r"(?:\w+=\S* |sudo -H -u \w+ )*(?:\S*/)?(\S+)(.*)", re.DOTALL)
"""A simple command: the program, and its arguments."""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A line that a reader of a page is to type, and what the page shows as its output."""

    page: str
    text: str
    output: str = ""


def block_lines(path: Path) -> Iterator[CommandLine]:
    """Yield the command lines in the blocks of a page.

    In a block with a prompt (`$ `) the other lines are output; otherwise all lines are commands.
    """
    page = path.relative_to(ROOT).as_posix()
    for language, block in _BLOCK.findall(path.read_text()):
        if language not in _SHELLS:
            continue
        lines = block.replace("\\\n", " ")
        if not re.search(r"^\$ ", lines, re.MULTILINE):
            lines = re.sub("^", "$ ", lines.rstrip("\n"), flags=re.MULTILINE) + "\n"
        for text, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", lines, re.MULTILINE):
            command = re.sub(r" +# .*", "", text).strip()
            yield CommandLine(page, re.sub(" +", " ", command), output)


def inline_lines(path: Path) -> Iterator[CommandLine]:
    """Yield the commands of our programs that the text of a page names."""
    page = path.relative_to(ROOT).as_posix()
    for code in _CODE.findall(_BLOCK.sub("", path.read_text())):
        if re.match(r"(sudo \S+ \S+ \S+ )?(\S*/)?(shiftergw|shiftergw-pyxis|twistd) \S", code):
            yield CommandLine(page, code.replace(r"\|", "|"))


def calls_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each call of our programs in a line of shell: the program, and its arguments.

    Quoted arguments with a call in them, as those of ssh, count too.
    """
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set("();<>|&"):
            words.append(word)
            continue
        for argument in words:
            if re.search(rf"(^|[;\s])({'|'.join(_PROGRAMS)}) ", argument):
                yield from calls_in(argument)
        if words and words[0] == "sudo":
            words = words[words.index("-u") + 2 :]
        while words and re.fullmatch(r"\w+=.*", words[0]):
            del words[0]
        if words and PurePath(words[0]).name in _PROGRAMS:
            yield PurePath(words[0]).name, words[1:]
        words = []


def check_call(program: str, arguments: list[str]) -> None:
    """Parse a call without running it; raise for one that the program would refuse."""
    if "--help" in arguments or "--version" in arguments:
        return
    if program == "shiftergw" and len(arguments) == 1 and not arguments[0].startswith("-"):
        assert arguments[0] in COMMANDS  # a command that is named, without its arguments
        return
    if program == "shifterimg":
        assert next(word for word in arguments if not word.startswith("-")) in _MODES
    elif program == "twistd":
        number = arguments.index("shiftergw")
        with patch.object(Options, "postOptions"):  # which reads the file
            Options().parseOptions(arguments[number + 1 :])
    else:
        group = importer if program == "shiftergw-pyxis" else main
        with patch.object(click.Command, "invoke"):
            group.main(arguments, program, standalone_mode=False, obj=Settings())
