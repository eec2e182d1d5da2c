"""Reduce an image's configuration to what its record stores, within the site's limit.

Every list of images contains the configurations of all records. Values that do not fit into a line
of the `.meta` file never reach a runtime, so the record omits them; all others must fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from shiftergw.errors import ImageTooLarge, amount, printable
from shiftergw.image import ImageConfig
from shiftergw.oci.meta import runtime_settings

NAMES = 20
"""Omitted settings, and omitted labels, that are named one by one."""

NAME_LIMIT = 60
"""Characters of the name of an omitted label."""


def recordable(config: ImageConfig, limit: int) -> tuple[ImageConfig, tuple[str, ...]]:
    """Return the configuration that a record stores, and the names of omitted settings.

    `limit` is in bytes of JSON, for environment, commands, working directory and labels together.
    Of the labels as many as fit are stored, the shortest first. Raises `ImageTooLarge` if all but
    the labels do not fit.
    """
    settings = runtime_settings(
        env=config.env, entry=config.entrypoint, cmd=config.cmd, workdir=config.workdir
    )
    size = _size([settings.env, settings.entry, settings.cmd, settings.workdir])
    if size > limit:
        raise ImageTooLarge.beyond(
            f"The environment and the commands of the image take {amount(size)} in its record,"
            f" which may have {amount(limit)}.",
            "MaxRecordSize",
        )
    labels, too_long = _fitting_labels(config.labels, limit - size)
    omitted = (*_first(settings.dropped, "settings"), *_first(too_long, "labels"))
    stored = replace(
        config,
        env=settings.env,
        entrypoint=settings.entry,
        cmd=settings.cmd,
        workdir=settings.workdir,
        labels=labels,
    )
    return stored, omitted


def _fitting_labels(labels: Mapping[str, str], room: int) -> tuple[dict[str, str], list[str]]:
    """Return the labels that fit into `room` bytes, and names for the others, in their order."""
    sizes = {name: _size({name: value}) for name, value in labels.items()}
    ends = accumulate(sorted(sizes.values()))
    count = sum(1 for end in ends if end <= room)
    fitting = set(sorted(sizes, key=sizes.__getitem__)[:count])
    stored = {name: value for name, value in labels.items() if name in fitting}
    omitted = [f"LABEL {printable(name, NAME_LIMIT)}" for name in labels if name not in fitting]
    return stored, omitted


def _first(names: Sequence[str], noun: str) -> list[str]:
    """Return the first `NAMES` names, and how many more there are."""
    more = [f"{len(names) - NAMES} more {noun}"] if len(names) > NAMES else []
    return [*names[:NAMES], *more]


def _size(value: object) -> int:
    return len(json.dumps(value))
