"""Render what is known of one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shiftergw.errors import printable
from shiftergw.model.images import REPORT_COUNTS
from shiftergw.model.layer_texts import parse_layers_text
from shiftergw.model.names import is_count, is_time
from shiftergw.model.records import ImageRecord, Origin
from shiftergw.web import render

_STAGES_LIMIT = 16
_OMISSIONS_LIMIT = 100


def inspected_image(
    image: ImageRecord, systems: Sequence[str], *, labels: bool = False
) -> dict[str, Any]:
    """Return the row of an image in a list, and all that only `inspect` tells of it.

    Records of other programs and of earlier versions say less; what they do not say is left out.
    """
    report = image.report or {}
    members = {
        "CMD": image.cmd,
        "architecture": image.arch,
        "os": image.os,
        "sha256": image.sha256,
        "origin": _origin(image.origin),
        "layers": _layers(report.get("layers")),
        "layer_count": _count(report.get("layer_count")),
        "layer_bytes": _count(report.get("layer_bytes")),
        "report": _counts(report),
        "omitted_settings": _texts(report.get("metadata")),
        "seconds": _seconds(report.get("seconds")),
        "copied_bytes": _count(report.get("copied_bytes")),
        "sent_bytes": _count(report.get("sent_bytes")),
    }
    known_members = {name: value for name, value in members.items() if value is not None}
    row = render.image_row(image, labels=labels)
    return {**row, **known_members, "systems": list(systems)}


def _origin(origin: Origin | None) -> dict[str, Any] | None:
    if origin is None:
        return None
    return {
        "location": origin.location,
        "repository": origin.repository,
        "digest": origin.source_digest,
    }


def _layers(text: object) -> list[dict[str, Any]] | None:
    layers = parse_layers_text(text)
    return [{"digest": str(digest), "size": size} for digest, size in layers] or None


def _counts(report: Mapping[str, Any]) -> dict[str, int] | None:
    """Return what the conversion has counted; None if the report has no such number."""
    counts = {name: report[name] for name in REPORT_COUNTS if is_count(report.get(name))}
    return counts or None


def _texts(value: object) -> list[str] | None:
    if not isinstance(value, list):
        return None
    return [printable(str(item)) for item in value[:_OMISSIONS_LIMIT]]


def _seconds(value: object) -> dict[str, float] | None:
    if not isinstance(value, dict):
        return None
    stages = [(str(name), seconds) for name, seconds in value.items() if is_time(seconds)]
    return {printable(name, 40): float(seconds) for name, seconds in stages[:_STAGES_LIMIT]}


def _count(value: object) -> int | None:
    return value if is_count(value) else None
