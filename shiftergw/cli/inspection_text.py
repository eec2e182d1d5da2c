"""The lines in which `inspect` shows an image to people."""

from __future__ import annotations

import grp
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from shiftergw.cli.image_table import user_name
from shiftergw.errors import amount, duration, printable
from shiftergw.model.names import MISSING, is_count, is_time

_WIDTH = 11
"""Characters of the first column."""

_TEXT_LIMIT = 1000
"""Characters of a line."""

_LOSSES = (
    ("devices", "devices, pipes and sockets"),
    ("under_dev", "entries below /dev"),
    ("setuid", "setuid and setgid bits"),
    ("xattrs", "extended attributes of entries"),
)
"""What the conversion has dropped, by the name of its number."""


def lines_of(record: Mapping[str, Any], now: float) -> Iterator[str]:
    """Yield the lines about an image, given the answer of a gateway, whose members may be wrong."""
    itype = str(record.get("itype", "docker"))
    for label, tag in _with_labels("image", _texts(record.get("tag"))):
        yield _line(label, f"{itype}:{tag}")
    yield _line("id", str(record.get("id")))
    for label, system in _with_labels("systems", _texts(record.get("systems"))):
        yield _line(label, system)
    yield from _origin_lines(record)
    yield from _file_lines(record)
    yield from _layer_lines(record)
    yield from _report_lines(record)
    yield from _setting_lines(record)
    yield from _access_lines(record, now)
    yield from _policy_lines(record)
    yield from _delivery_lines(record)


def _line(label: str, text: str) -> str:
    return f"{label:{_WIDTH}}{printable(text, _TEXT_LIMIT)}".rstrip()


def _with_labels(label: str, texts: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each text with its label, which only the first line has."""
    for text in texts:
        yield label, text
        label = ""


def _origin_lines(record: Mapping[str, Any]) -> Iterator[str]:
    origin = _object(record.get("origin"))
    location, repository = origin.get("location"), origin.get("repository")
    if location or repository:
        yield _line("origin", f"{repository} at {location}")
    digest = origin.get("digest")
    if digest and digest != f"sha256:{record.get('id')}":
        yield _line("", f"{digest} is what the name meant: an index")


def _file_lines(record: Mapping[str, Any]) -> Iterator[str]:
    platform = "/".join(str(record[name]) for name in ("os", "architecture") if name in record)
    if platform:
        yield _line("platform", platform)
    size, sha256 = record.get("size"), record.get("sha256")
    texts = [amount(size)] if is_count(size) else []
    if sha256:
        texts.append(f"sha256:{sha256}")
    if texts:
        yield _line("file", ", ".join(texts))


def _layer_lines(record: Mapping[str, Any]) -> Iterator[str]:
    count, size = record.get("layer_count"), record.get("layer_bytes")
    layers = [_object(layer) for layer in _list(record.get("layers"))]
    if not is_count(count):
        count = None
    texts = [] if count is None else [str(count)]
    if is_count(size):
        texts.append(amount(size))
    if texts:
        yield _line("layers", ", ".join(texts))
    for layer in layers:
        layer_size = layer.get("size")
        text = amount(layer_size) if is_count(layer_size) else ""
        yield _line("", f"{layer.get('digest')} {text:>9}")
    if count is not None and layers and count > len(layers):
        yield _line("", f"and {count - len(layers)} more")


def _report_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is in the image, and what the conversion and the `.meta` file left out."""
    report = _object(record.get("report"))
    counts = {name: count for name, count in report.items() if is_count(count)}
    if "entries" in counts:
        text = f"{counts['entries']:,} files and directories"
        yield _line("content", f"{text}, {amount(counts.get('size', 0))}")
        losses = [f"{counts[name]:,} {noun}" for name, noun in _LOSSES if counts.get(name)]
        yield _line("dropped", ", ".join(losses) or "nothing")
        if counts.get("modes"):
            yield _line("", f"{counts['modes']:,} entries were made readable for all users")
    omissions = _texts(record.get("omitted_settings"))
    if omissions:
        yield _line("not stored", f"{', '.join(omissions)}: jobs do without these settings")


def _setting_lines(record: Mapping[str, Any]) -> Iterator[str]:
    for label, member in (("entrypoint", "ENTRY"), ("command", "CMD")):
        words = _texts(record.get(member))
        if words:
            yield _line(label, json.dumps(words, ensure_ascii=False))
    workdir = record.get("WORKDIR", MISSING)
    if workdir != MISSING:
        yield _line("workdir", str(workdir))
    for label, variable in _with_labels("env", _texts(record.get("ENV"))):
        yield _line(label, variable)
    labels = [f"{name}={value}" for name, value in _object(record.get("LABELS")).items()]
    for label, text in _with_labels("labels", labels):
        yield _line(label, text)


def _access_lines(record: Mapping[str, Any], now: float) -> Iterator[str]:
    """Yield who may use the image, whose it is, and for how long it is there."""
    users = [uid for uid in _list(record.get("userACL")) if is_count(uid)]
    groups = [gid for gid in _list(record.get("groupACL")) if is_count(gid)]
    is_private = record.get("private", bool(users or groups)) is True
    readers = []
    if users:
        readers.append("users " + ", ".join(map(user_name, users)))
    if groups:
        readers.append("groups " + ", ".join(map(_group_name, groups)))
    is_public = not is_private or not readers
    yield _line("readers", "everybody" if is_public else "; ".join(readers))
    owner = record.get("owner")
    if is_count(owner):
        yield _line("owner", user_name(owner))
    pull_time, expiration = record.get("last_pull"), record.get("expiration")
    if is_time(pull_time):
        yield _line("pulled", f"{duration(max(1, now - pull_time))} ago, {_date(pull_time)}")
    if is_time(expiration):
        remaining = expiration - now
        text = f"in {duration(remaining)}" if remaining > 0 else "now"
        yield _line("expires", f"{text}, {_date(expiration)}")


def _policy_lines(record: Mapping[str, Any]) -> Iterator[str]:
    policy = _object(record.get("policy"))
    if policy:
        yield _line("policy", f"accepted by {policy.get('requirement')}: {policy.get('reason')}")
        if policy.get("identity"):
            yield _line("", f"signed by {policy['identity']}")


def _delivery_lines(record: Mapping[str, Any]) -> Iterator[str]:
    seconds = {
        stage: value for stage, value in _object(record.get("seconds")).items() if is_time(value)
    }
    if seconds:
        stages = ", ".join(f"{stage} {value:g} s" for stage, value in seconds.items())
        yield _line("delivery", f"took {sum(seconds.values()):.1f} s ({stages})")
    copied_size, sent_size = record.get("copied_bytes"), record.get("sent_bytes")
    if is_count(copied_size) and copied_size and is_count(sent_size):
        text = f"the system copied {amount(copied_size)} of the file, {amount(sent_size)} were sent"
        yield _line("", text)


def _group_name(gid: int) -> str:
    with suppress(KeyError, OverflowError):
        return printable(grp.getgrgid(gid).gr_name)
    return str(gid)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(value: object) -> list[str]:
    return [item for item in _list(value) if isinstance(item, str)]


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
