"""The page about the HTTP interface has the numbers and the words of the program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from shiftergw.model import explanations as explanation_models
from shiftergw.model import layer_progress, layer_texts, names, uploads
from shiftergw.service import explanations, login_checks
from shiftergw.service.uploads import CHUNKS_PER_USER, PULLS_PER_UPLOAD
from shiftergw.web import channel, event_connection, event_stream, feed
from shiftergw.web.site import BODY_LIMIT

PAGE = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()

SENTENCES = {
    "digits of an id": f"the first {names.SHORTEST_PREFIX} to 64 digits of an image id",
    "chunk in the table": f"{uploads.CHUNK_LIMIT >> 20} MiB at most",
    "chunk": f"up to `chunk` bytes ({uploads.CHUNK_LIMIT >> 20} MiB)",
    "readers": f"at most {names.ACL_LIMIT:,} ids each",
    "body": f"A body has at most {BODY_LIMIT >> 10} KiB",
    "queue place": f"within about {feed.PLACE_SECONDS + feed.ROUND_SECONDS:.0f} seconds",
    "comment": f"After {event_connection.HEARTBEAT_SECONDS:.0f} seconds without an event",
    "stream": f"A stream ends after {event_connection.STREAM_SECONDS / 60:.0f} minutes",
    "streams": f"A user may have {event_stream.MOST_OF_USER} streams",
    "explanation": f"each in at most {explanation_models.EXPLANATION_SECONDS:.0f} seconds",
    "explanations": f"all users together {explanation_models.MOST_EXPLANATIONS};",
    "kept explanation": f"is kept for {explanations.KEEP_SECONDS / 60:.0f} minutes after its end",
    "size of one": f"an object of at most {explanation_models.EXPLANATION_BYTES >> 10} KiB",
    "pulls of an upload": f"(at most {PULLS_PER_UPLOAD} may be)",
    "connections": f"the user's share of connections ({CHUNKS_PER_USER})",
    "rate": f"at {channel.LEAST_RATE >> 10} KiB/s, and a minute",
    "layers in flight": f"an array of at most {layer_progress.MOST_LAYERS} objects",
    "layers of an image": f"the first {layer_texts.MOST_LAYERS} layers (`digest`, `size`), the",
    "layers of a pull": f"the first {layer_texts.MOST_LAYERS} layers (`digest`, `size`, `cached",
}
"""What the page says, with the numbers of the program."""

WORDS = {
    "ten logins in ten minutes": (login_checks.MOST_OF_USER, login_checks.PERIOD) == (10, 600),
    "two explanations": explanations.MOST_OF_USER == 2,
    "a minute without a byte": event_connection.STALL_SECONDS == 60,
    "about a second": feed.ROUND_SECONDS == 1,
}
"""Numbers that the page has in words."""


@pytest.mark.parametrize("name", SENTENCES)
def test_numbers(name: str) -> None:
    """A limit that changes is changed on the page, too."""
    assert SENTENCES[name] in PAGE


def test_numbers_in_words() -> None:
    """These sentences of the page have to change with the numbers."""
    assert all(WORDS.values()), WORDS
    for words in ("ten logins in ten minutes", "may have two in progress", "for a minute is"):
        assert words in PAGE


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("| `action` |", get_args(explanation_models.PullAction)),
        ("| `places` |", get_args(explanation_models.PlaceKind)),
        ("1. **Declare** the file:", [word for word in get_args(uploads.UploadKind) if word]),
    ],
)
def test_enumerations(start: str, words: tuple[str, ...]) -> None:
    """A description of a member has all words that it can be."""
    (line,) = (line for line in PAGE.splitlines() if line.startswith(start))
    assert {*words} <= {*re.findall("`([a-z-]+)`", line)}
