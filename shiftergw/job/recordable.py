"""Reduce an image's configuration to what its record stores, within the site's limit.

Every list of images contains the configurations of all records, so their size is limited. Values
that cannot stand in a line of the `.meta` file never reach a runtime, so the record omits them. All
other settings must fit into the limit, and labels get the rest of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice

from shiftergw.errors import ImageTooLarge, amount, printable
from shiftergw.model.images import ImageConfig
from shiftergw.oci.meta import runtime_settings

NAMES = 20
"""The most omitted settings, and the most omitted labels, that are named."""

NAME_LIMIT = 60
"""Characters of the name of an omitted label."""


def recordable(config: ImageConfig, limit: int) -> tuple[ImageConfig, tuple[str, ...]]:
    """Return the configuration that a record stores, and the names of omitted settings.

    `limit` is in bytes of JSON, for environment, commands, working directory and labels together.
    As many labels are stored as fit, the shortest first. Raises `ImageTooLarge` if the rest of the
    configuration does not fit.
    """
    settings = runtime_settings(
        env=config.env, entry=config.entrypoint, cmd=config.cmd, workdir=config.workdir
    )
    size = _size([settings.env, settings.entry, settings.cmd, settings.workdir])
    if size > limit:
        raise ImageTooLarge.for_limit(
            f"The environment and the commands of the image take {amount(size)} in its record,"
            f" which may have {amount(limit)}.",
            "MaxRecordSize",
        )
    labels = _fitting_labels(config.labels, limit - size)
    too_long = (
        f"LABEL {printable(name, NAME_LIMIT)}" for name in config.labels if name not in labels
    )
    omissions = (
        *_first(settings.omissions, len(settings.omissions), "settings"),
        *_first(too_long, len(config.labels) - len(labels), "labels"),
    )
    record_config = replace(
        config,
        env=settings.env,
        entrypoint=settings.entry,
        cmd=settings.cmd,
        workdir=settings.workdir,
        labels=labels,
    )
    return record_config, omissions


def _fitting_labels(labels: Mapping[str, str], room: int) -> dict[str, str]:
    """Return the shortest labels that fit into `room` bytes together, in the image's order."""
    fitting: set[str] = set()
    for name in sorted(labels, key=lambda name: len(name) + len(labels[name])):
        room -= _size({name: labels[name]})
        if room < 0:
            break
        fitting.add(name)
    return {name: value for name, value in labels.items() if name in fitting}


def _first(names: Iterable[str], count: int, noun: str) -> list[str]:
    """Return the first `NAMES` of `count` names, and how many more there are."""
    remainder = [f"{count - NAMES} more {noun}"] if count > NAMES else []
    return [*islice(names, NAMES), *remainder]


def _size(value: object) -> int:
    return len(json.dumps(value))
