"""Find lines of the log, and messages to users, that the documents quote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

_QUOTE = re.compile(r'`([^`\n]+)`|"([^"\n]+)"')

_LINE = re.compile(
    r"(?:READY|FAILURE|PENDING|PULLING|EXPIRED|begins|requeued|not requeued|stopped)(?::| by) .+"
    r"|(?:pull|removal|change of readers) (?:finished|postponed|superseded) .+"
    r"|Waits until .+|worker \S+ .+"
)
"""The form of a line of the log, or of a message."""

_PARTS = (
    # The values of fields that differ from pull to pull.
    (r"(?<= )(?!outcome)(\w+)=\S+?(?=\\ |$)", r"\1=\\S+"),
    (r"\d+(?:\\\.\d+)?\\ (?:bytes|[kMG]B)", r"[\\d.]+ (?:bytes|[kMG]B)"),
    (r"\d+(?:\\\.\d+)?\\ s\b", r"[\\d.]+ s"),
    (r"docker:\S+?\\ ", r"docker:\\S+ "),
    (r"(on)\\ \w+\\ (for)\\ \w+\\\(\d+\\\)", r"\1 \\w+ \2 \\w+\\(\\d+\\)"),
    (r"(request)\\ [0-9a-f]{8}", r"\1 [0-9a-f]{8}"),
    (r"(attempt)\\ \d+", r"\1 \\d+"),
)
"""Patterns of the variable parts of a quoted line, after `re.escape`, and their replacements."""


_NOT_COLLECTIONS = {"shiftergw.service", "shiftergw.sqlite"}


def documents() -> list[Path]:
    """Return the documents of the project."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("conf/*.md"), *ROOT.glob("docs/**/*.md")]
    return sorted(paths)


def quoted_lines() -> list[str]:
    """Return the lines that the documents quote."""
    return sorted({text for path in documents() for text in _quotes(path)})


def quoted_collections() -> set[str]:
    """Return the names of MongoDB's collections that the documents mention."""
    spans = {span for path in documents() for span, _ in _QUOTE.findall(path.read_text("utf-8"))}
    return {span for span in spans if re.fullmatch(r"shiftergw\.[a-z]+", span)} - _NOT_COLLECTIONS


def _quotes(path: Path) -> Iterator[str]:
    for code, quote in _QUOTE.findall(path.read_text(encoding="utf-8")):
        text = code or quote
        if _LINE.fullmatch(text):
            yield text


def wait_of(line: str) -> str:
    """Return the reason in a quoted message about a wait, such as `rate limit`, or ""."""
    match = re.fullmatch(r"Waits until [\d:]+ for .+ \((.+)\)", line)
    return match[1] if match else ""


def is_in_source(text: str) -> bool:
    """Return whether a text is a literal of the program."""
    sources = (ROOT / "shiftergw").rglob("*.py")
    return any(f'"{text}"' in path.read_text(encoding="utf-8") for path in sources)


def shape_of(line: str) -> re.Pattern[str]:
    """Return a pattern for the lines that differ from a quoted one in names and numbers only."""
    shape = re.escape(line)
    for part, pattern in _PARTS:
        shape = re.sub(part, pattern, shape)
    return re.compile(shape)
