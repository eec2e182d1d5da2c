"""Complete names of images and systems in a shell, from the gateway's lists.

A shell waits for the answer, so a gateway has less than a second for it, and its lists are kept for
some seconds in the user's cache directory. Whatever fails, nothing is offered or printed.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
from click import shell_completion
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ZshComplete

from shiftergw.cli.blocking import ThreadCall, value_of
from shiftergw.cli.exchange_blocking import BlockingExchange
from shiftergw.cli.image_names import named_images
from shiftergw.cli.options import SYSTEMS_OF_COMMAND
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import UDIROOT, Settings, sockets_of, systems_of
from shiftergw.model.names import is_id_prefix, is_image_id
from shiftergw.plumbing.files import private_directory, read_whole, write_private

QUERY_SECONDS = 0.8
"""Seconds for the answer of a gateway."""

TOTAL_SECONDS = 2.0
"""Seconds for everything, with the home directory, which may be on a file system that hangs."""

FRESH_SECONDS = 10.0
"""Seconds for which a list is not asked for again, also after a failure."""

MOST_NAMES = 20_000
"""Names of a list that are offered."""

CACHE_BYTES = 16 << 20
"""Bytes of the largest file in the cache directory that is read."""

_ID_DIGITS = 12
"""Digits of an id that is offered, as in the table of images."""

_NAME = re.compile("[A-Za-z0-9_.:/@+-]{1,600}")
"""The form of names that a shell gets: without blanks, and without characters that it expands."""

_PATH = re.compile(r"\.{0,2}/|\.{1,2}$|~")
"""The beginning of a path, as of a file to upload."""

Query = Callable[[Remote], Coroutine[Any, Any, Iterable[str]]]


def images_like(context: click.Context, word: str) -> list[str]:
    """Return the names of images that begin with a word; for hexadecimal digits ids, too."""
    names = _names(settings_of(context), "images", _image_names)
    images = [name for name in names if name.startswith(word) and not is_image_id(name)]
    if not is_id_prefix(word):
        return images
    digits = _ID_DIGITS if len(word) <= _ID_DIGITS else None
    return images + [name[:digits] for name in names if name.startswith(word) and is_image_id(name)]


def sources_like(context: click.Context, word: str) -> list[CompletionItem[str]]:
    """Return the names of images that begin with a word; for the beginning of a path, files."""
    if _PATH.match(word):
        return [CompletionItem(word, type="file")]
    return [CompletionItem(name) for name in images_like(context, word)]


def systems_like(context: click.Context, word: str) -> list[str]:
    """Return the names of systems that complete a word, the last one of a list with commas."""
    settings = settings_of(context)
    start, comma, word = word.rpartition(",")
    names = {*settings.systems, *filter(None, settings.munge_sockets)}
    with suppress(click.ClickException):
        names |= {*settings.system_names()}
    # A gateway says the systems to a user of any of them.
    settings = replace(settings, systems=settings.systems[:1])
    names |= {*_names(settings, "systems", Remote.systems)}
    return [
        start + comma + name
        for name in sorted(names)
        if name.startswith(word) and _NAME.fullmatch(name)
    ]


def settings_of(context: click.Context) -> Settings:
    """Return the settings of a command line that is not complete yet."""
    values = context.find_root().params
    return Settings(
        tuple(values.get("gateways") or ()),
        context.meta.get(SYSTEMS_OF_COMMAND) or systems_of(values.get("systems") or ()),
        values.get("credential") or "",
        values.get("udiroot") or UDIROOT,
        sockets_of(values.get("munge_sockets") or ()),
    )


async def _image_names(remote: Remote) -> list[str]:
    """Return the names of images as a user writes them, and then the ids."""
    rows = await remote.names()
    names = {tag if itype == "docker" else f"{itype}:{tag}" for itype, tag in named_images(rows)}
    return sorted(names) + sorted({row["id"] for row in rows if is_image_id(row.get("id"))})


def _names(settings: Settings, kind: str, query: Query) -> Sequence[str]:
    """Return the names in a list, from the cache or from a gateway; () if anything fails."""
    end = time.monotonic() + TOTAL_SECONDS
    try:
        return ThreadCall(partial(_cached_names, settings, kind, query)).result(lambda: end)
    except Exception:  # noqa: BLE001 - a completion prints no errors
        return ()


def _cached_names(settings: Settings, kind: str, query: Query) -> Sequence[str]:
    """Return the names in a list; ask a gateway unless the cache has a fresh list.

    A file of the cache is private to the user, and only for the same gateways, system and identity.
    """
    system = settings.single_system()
    identity = [os.geteuid(), settings.credential, str(settings.munge_socket_of(system))]
    place = json.dumps([system, settings.gateway_urls(), identity])
    path = _cache_directory() / f"{kind}-{sha256(place.encode('ascii')).hexdigest()}"
    with suppress(OSError, ValueError, TypeError):
        content, status = read_whole(path, CACHE_BYTES)
        if 0 <= time.time() - status.st_mtime < FRESH_SECONDS:
            return _safe_names(json.loads(content))
    names = _safe_names(_answer(settings, query))
    with suppress(OSError):
        private_directory(path.parent)
        write_private(path, json.dumps(names).encode("ascii"))
    return names


def _safe_names(names: Iterable[str]) -> list[str]:
    """Return the names that a shell may get."""
    return [name for name in names if _NAME.fullmatch(name)][:MOST_NAMES]


def _answer(settings: Settings, query: Query) -> Iterable[str]:
    """Return the answer of a gateway; an empty list if there is none in time."""
    end = time.monotonic() + QUERY_SECONDS

    def call() -> Iterable[str]:
        remote = Remote(BlockingExchange(), settings, lambda _: None)
        remote.leave_logins_out()
        return value_of(query(remote))

    try:
        return ThreadCall(call).result(lambda: end)
    except Exception:  # noqa: BLE001 - a completion prints no errors
        return []


def _cache_directory() -> Path:
    """Return the user's cache directory (XDG Base Directory Specification)."""
    directory = os.environ.get("XDG_CACHE_HOME", "")
    # The specification: a relative path is invalid, and is ignored.
    home = Path(directory) if directory.startswith("/") else Path("~/.cache").expanduser()
    return home / "shiftergw"


class _Bash(BashComplete):
    """Completion for bash, which takes a colon, as in `ubuntu:24.04`, for the end of a word.

    So the script passes the line as it is, and bash gets only what follows the last colon.
    """

    source_template = BashComplete.source_template.replace(
        "COMP_CWORD=$COMP_CWORD",
        'COMP_CWORD=$COMP_CWORD COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT"'
        ' COMP_WORDBREAKS="$COMP_WORDBREAKS"',
    )
    _stem = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the cursor, and the beginning of a word there."""
        line = os.environ.get("COMP_LINE")
        if line is None:  # a script that an earlier version has written
            return super().get_completion_args()
        # COMP_POINT is a position in bytes.
        point = int(os.environ.get("COMP_POINT") or len(os.fsencode(line)))
        line = os.fsdecode(os.fsencode(line)[:point])
        words = shell_completion.split_arg_string(line)[1:]
        word = words.pop() if words and not line[-1:].isspace() else ""
        if ":" in os.environ.get("COMP_WORDBREAKS", ""):
            self._stem = word[: word.rfind(":") + 1]
        return words, word

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Return an item without the part that bash leaves as it is."""
        item.value = item.value.removeprefix(self._stem)
        return super().format_completion(item)

    def complete(self) -> str:
        """Return what bash offers; nothing after an error."""
        return _without_errors(super().complete)


class _Zsh(ZshComplete):
    """Completion for zsh."""

    def complete(self) -> str:
        """Return what zsh offers; nothing after an error."""
        return _without_errors(super().complete)


class _Fish(FishComplete):
    """Completion for fish, with commas in the completed words."""

    source_template = FishComplete.source_template.replace(
        'string split "," $completion', 'string split -m 1 "," $completion'
    )

    def complete(self) -> str:
        """Return what fish offers; nothing after an error."""
        return _without_errors(super().complete)


def _without_errors(complete: Callable[[], str]) -> str:
    try:
        return complete()
    except Exception:  # noqa: BLE001 - a traceback would be written into the user's command line
        return ""


def register() -> None:
    """Have click use these classes."""
    for shell in (_Bash, _Zsh, _Fish):
        shell_completion.add_completion_class(shell)
