"""What an image of Singularity or Apptainer says about itself, as an image configuration.

Environment and labels are kept where they are simple: an assignment of a constant, a label with a
text. What would need a shell to be understood is dropped, and so is the runscript.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EXPORT = re.compile(r"export[ \t]+")
_BARE = re.compile(r"[A-Za-z0-9_./:+,@%=-]*")
_SINGLE = re.compile(r"'([^']*)'")
_DOUBLE = re.compile(r'"((?:[^"\\$`]|\\.)*)"')
_ESCAPE = re.compile(r'\\(["\\$`])')

ENVIRONMENT_FILES = (
    ".singularity.d/env/10-docker2singularity.sh",
    ".singularity.d/env/90-environment.sh",
)
"""The variables of the image that the file was built from, and those of `%environment`."""

LABELS_FILE = ".singularity.d/labels.json"

FILE_LIMIT = 1 << 20
"""Bytes of one of these files that are read."""


ENVIRONMENT_LIMIT = 128 << 10
"""Bytes of a script in which variables are looked for: 2 MB take 1.7 s of a processor."""


def environment(scripts: list[bytes]) -> list[str]:
    """Return the variables that these shell scripts set to constants, as `NAME=value`.

    Of each script only the whole lines within `ENVIRONMENT_LIMIT` are read.
    """
    variables: dict[str, str] = {}
    for script in scripts:
        lines = script[:ENVIRONMENT_LIMIT]
        if len(script) > ENVIRONMENT_LIMIT:
            lines = lines[: lines.rfind(b"\n") + 1]
        for line in lines.decode("utf-8", "replace").splitlines():
            # Split by hand: a pattern for the whole line takes minutes for a long row of blanks.
            name, equals, text = _EXPORT.sub("", line.strip(), count=1).partition("=")
            if not equals or not _NAME.fullmatch(name):
                continue
            value = _constant(name, text.removesuffix(";").rstrip())
            if value is not None:
                variables[name] = value
    return [f"{name}={value}" for name, value in variables.items()]


def _constant(name: str, text: str) -> str | None:
    """Return the value of a shell word that is a constant, or None."""
    # Apptainer writes `export NAME="${NAME:-"value"}"`, so that the caller can set it.
    default = re.fullmatch(rf'"\$\{{{name}:-(.*)\}}"', text)
    if default is not None:
        text = default[1]
    if _BARE.fullmatch(text):
        return text
    if match := _SINGLE.fullmatch(text):
        return match[1]
    if match := _DOUBLE.fullmatch(text):
        return _ESCAPE.sub(r"\1", match[1])
    return None


def labels(document: bytes) -> Mapping[str, str]:
    """Return the labels of a JSON object whose values are texts; none if it is something else."""
    try:
        content = json.loads(document.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if isinstance(value, str)}
