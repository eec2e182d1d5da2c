"""What a record keeps of an image's configuration, within the site's limit.

Every list of images holds what all records hold. What no runtime can be told, since a line of the
`.meta` file cannot hold it, need not stand there; what a runtime is told must fit.
"""

from __future__ import annotations

import json
from dataclasses import replace

from shiftergw.errors import ImageTooLarge, amount
from shiftergw.image import ImageConfig
from shiftergw.oci.meta import speakable

NAMES = 20
"""Settings that are named one by one when they are left out."""


def recordable(config: ImageConfig, limit: int) -> tuple[ImageConfig, tuple[str, ...]]:
    """Return a configuration as a record keeps it, and the names of what is left out.

    `limit` is in bytes of JSON, for environment, commands, working directory and labels together.
    Raises `ImageTooLarge` if all but the labels do not fit.
    """
    said = speakable(
        env=config.env, entry=config.entrypoint, cmd=config.cmd, workdir=config.workdir
    )
    size = _size([said.env, said.entry, said.cmd, said.workdir])
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
    omitted = list(said.dropped[:NAMES])
    if len(said.dropped) > NAMES:
        omitted.append(f"{len(said.dropped) - NAMES} more settings")
    if len(labels) < len(config.labels):
        omitted.append(f"{len(config.labels) - len(labels)} labels, which are too long")
    kept = replace(
        config,
        env=said.env,
        entrypoint=said.entry,
        cmd=said.cmd,
        workdir=said.workdir,
        labels=labels,
    )
    return kept, tuple(omitted)


def _size(value: object) -> int:
    return len(json.dumps(value))
