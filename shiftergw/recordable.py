"""Reduce an image's configuration to what its record stores, within the site's limit.

Every list of images contains the configurations of all records. Values that do not fit into a line
of the `.meta` file never reach a runtime, so the record omits them; all others must fit.
"""

from __future__ import annotations

import json
from dataclasses import replace

from shiftergw.errors import ImageTooLarge, amount
from shiftergw.image import ImageConfig
from shiftergw.oci.meta import runtime_settings

NAMES = 20
"""Omitted settings that are named one by one."""


def recordable(config: ImageConfig, limit: int) -> tuple[ImageConfig, tuple[str, ...]]:
    """Return the configuration that a record stores, and the names of omitted settings.

    `limit` is in bytes of JSON, for environment, commands, working directory and labels together.
    Raises `ImageTooLarge` if all but the labels do not fit.
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
    labels = {}
    for name, value in config.labels.items():
        size += _size({name: value})
        if size > limit:
            break
        labels[name] = value
    omitted = list(settings.dropped[:NAMES])
    if len(settings.dropped) > NAMES:
        omitted.append(f"{len(settings.dropped) - NAMES} more settings")
    if len(labels) < len(config.labels):
        omitted.append(f"{len(config.labels) - len(labels)} labels, which are too long")
    stored = replace(
        config,
        env=settings.env,
        entrypoint=settings.entry,
        cmd=settings.cmd,
        workdir=settings.workdir,
        labels=labels,
    )
    return stored, tuple(omitted)


def _size(value: object) -> int:
    return len(json.dumps(value))
