"""Names of images that are in no registry: files, directories, and standard input.

The grammar is that of containers-transports(5), with `sif:` and `squashfs:` beside it. A colon ends
the path of `oci:`, `oci-archive:` and `docker-archive:`, as for skopeo and podman; a path with a
colon in it needs another name, or no prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from shiftergw.errors import BadRequest, printable

SourceKind = Literal[
    "oci", "oci-archive", "docker-archive", "dir", "sif", "squashfs", "path", "stdin"
]
"""The form of a source.

* `oci`: a directory with an OCI image layout; `oci-archive`: a tar of one.
* `docker-archive`: what `docker save` and `podman save` write.
* `dir`: a directory of skopeo's.
* `sif`, `squashfs`: files of Singularity and Apptainer, and file systems.
* `path`: a file or a directory whose content tells its form; `stdin`: the same from a pipe.
"""

_PREFIX = re.compile(
    # `oci:5000/x` has a host and its port, and `oci://` stands for a registry.
    r"(oci-archive|docker-archive|oci|dir|sif|squashfs):(?!//)(?![0-9]{1,5}/)(.*)",
    re.DOTALL,
)
_FILE_URL = re.compile(r"file:(?://(?:localhost)?)?(/.*)", re.DOTALL)
_PATH = re.compile(r"(?:/(?!/)|\.\.?(?:/|\Z)|~)")
_ARCHIVE = re.compile(
    r"[^:@]+\.(?:sif|simg|squashfs|sqsh|sqfs|tar|tgz|tzst|tar\.gz|tar\.zst)", re.IGNORECASE
)
_KINDS: Mapping[str, SourceKind] = {kind: kind for kind in get_args(SourceKind)}
_WITH_SELECTOR = frozenset({"oci", "oci-archive", "docker-archive"})
_CONTROL = re.compile(r"[\0-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class LocalSourceName:
    """A file, a directory or standard input that has an image, and which of its images is meant.

    `path` is relative to the current directory unless it is absolute. `selector` is a tag, a name,
    `@INDEX` or, in layouts, `@DIGEST`; an empty one means the only image.
    """

    kind: SourceKind
    path: Path
    selector: str = ""

    def __str__(self) -> str:
        """Return the text that `parse_source` reads."""
        if self.kind == "stdin":
            return "-"
        if self.kind == "path":
            text = str(self.path)
            return text if _PATH.match(text) else f"./{text}"
        return f"{self.kind}:{self.path}" + (f":{self.selector}" if self.selector else "")


def parse_source(text: str) -> LocalSourceName | None:
    """Parse the name of a source that is not a registry; return None for all other names.

    `-` is standard input. A path begins with `/`, `./`, `../` or `~`, or is the name of a file with
    a usual suffix (`image.tar.gz`, `image.sif`) that has no registry in front. `~` is replaced by
    the home directory. Raises `BadRequest` for a name of a file that cannot be a path.
    """
    if text == "-":
        return LocalSourceName("stdin", Path("-"))
    prefix = _PREFIX.fullmatch(text)
    if prefix is not None:
        kind, rest = _KINDS[prefix[1]], prefix[2]
        path, colon, selector = rest.partition(":") if kind in _WITH_SELECTOR else (rest, "", "")
        if colon and not selector:
            raise BadRequest(
                f"{printable(text, 120)!r}: nothing follows the last colon.",
                remedy="Write the tag or the name of the image behind it, or leave it out.",
            )
        return LocalSourceName(kind, _path(path, text), selector)
    url = _FILE_URL.fullmatch(text)
    if url is not None:
        return LocalSourceName("path", _path(url[1], text))
    return LocalSourceName("path", _path(text, text)) if _is_path(text) else None


def _is_path(text: str) -> bool:
    if _PATH.match(text):
        return True
    first, slash, _ = text.partition("/")
    has_host = bool(slash) and ("." in first or first == "localhost")
    return not has_host and _ARCHIVE.fullmatch(text) is not None


def _path(path: str, text: str) -> Path:
    """Return a path of the user's; raise `BadRequest` for one that no file has."""
    if not path or _CONTROL.search(path):
        raise BadRequest(
            f"{printable(text, 120)!r} does not name a file or directory.",
            remedy="Write its path behind the prefix, such as `docker-archive:image.tar`, without"
            " control characters.",
        )
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BadRequest(
            f"{printable(path, 120)!r}: the home directory is not known.",
            remedy="Write the whole path.",
        ) from error
