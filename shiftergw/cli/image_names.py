"""Names of images on the command line: a name, an id, or its first digits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from shiftergw.cli.exits import InvalidRequest, Misuse, Stop, UnknownName
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import check_text
from shiftergw.errors import printable
from shiftergw.model.names import ID_TYPE, SHORTEST_PREFIX, is_id_prefix, registry_name

MOST_NEAR = 3
"""Names that the error about an unknown one has."""

_NAME_LIMIT = 200
"""Characters of a name that is compared with others."""

T = TypeVar("T")


def image_of(text: str, default: str = "docker") -> tuple[str, str]:
    """Split `[TYPE:]NAME` into type and name; the default type is `default`.

    Removes prefixes that stand for a registry, such as `docker://`, from the name. Raises `Misuse`
    for a text that cannot be the name of an image.
    """
    check_text(text, "The name of the image")
    word, colon, rest = text.partition(":")
    if not colon or word not in {"docker", "custom", ID_TYPE, "local"}:
        word, rest = default, text
    rest = registry_name(rest)
    if not rest.strip():
        raise Misuse("An image has a name, such as `ubuntu:24.04`: there is none.")
    if rest.endswith("/"):
        raise Misuse(
            f"{printable(text, 200)!r} is not the name of an image: nothing follows its last '/'."
        )
    if word in {ID_TYPE, "local"}:
        raise Misuse(f"{text}: images of the type {word} are not the gateway's.")
    return word, rest


def id_of(text: str) -> str:
    """Return an image id, or the first digits of one, without `id:`; raise `Misuse`."""
    prefix = text.removeprefix(f"{ID_TYPE}:")
    if not is_id_prefix(prefix):
        raise Misuse(
            f"{printable(text, 120)!r} is not an image id, or the beginning of one:"
            f" {SHORTEST_PREFIX} to 64 hexadecimal digits in lower case."
        )
    return prefix


def meanings_of(text: str, default: str) -> Sequence[tuple[str, str]]:
    """Return what a text may mean, as type and name, in the order in which to ask for it.

    `id:DIGITS` is an id, and plain digits are one if no image has this name.
    """
    if text.startswith(f"{ID_TYPE}:"):
        return [(ID_TYPE, id_of(text))]
    meanings = [image_of(text, default)]
    return [*meanings, (ID_TYPE, text)] if is_id_prefix(text) else meanings


async def ask_for_image(
    remote: Remote, text: str, default: str, ask: Callable[[str, str], Awaitable[T]]
) -> T:
    """Return the answer of `ask(type, name)` about the image that a text names.

    Raises `UnknownName` with the names of images that are similar.
    """
    meanings = meanings_of(text, default)
    refusal: UnknownName | None = None
    for itype, name in meanings:
        try:
            return await ask(itype, name)
        except UnknownName as error:
            refusal = refusal or error
        except InvalidRequest:
            if refusal is None:
                raise
            # The gateway is of a version that knows no ids.
    assert refusal is not None
    itype, name = meanings[0]
    names = [] if itype == ID_TYPE else near_names(itype, name, await names_of_images(remote))
    question = f" Do you mean {' or '.join(names)}?" if names else ""
    raise UnknownName(f"{refusal.message}{question}")


async def names_of_images(remote: Remote) -> Sequence[tuple[str, str]]:
    """Return type and tag of the images that the user may use; none if no gateway says them."""
    try:
        return named_images(await remote.names())
    except Stop:
        return []


def named_images(rows: Iterable[Mapping[str, Any]]) -> Sequence[tuple[str, str]]:
    """Return type and tag of the images in a list of names."""
    return [
        (str(row.get("itype", "docker")), tag)
        for row in rows
        for tag in (row["tag"] if isinstance(row.get("tag"), list) else [])
    ]


def near_names(itype: str, name: str, images: Iterable[tuple[str, str]]) -> list[str]:
    """Return the names that are most similar to one, with the type where it has to be written."""
    from difflib import get_close_matches  # noqa: PLC0415 - loads when it is needed

    spellings: dict[str, str] = {}
    for other_type, tag in images:
        label = printable(tag if other_type == "docker" else f"{other_type}:{tag}", _NAME_LIMIT)
        for spelling in (tag, repository_of(tag)):
            spellings.setdefault(spelling, label)
        if other_type != itype and tag == name:
            return [label]
    matches = get_close_matches(name[:_NAME_LIMIT], spellings, 2 * MOST_NEAR)
    return list(dict.fromkeys(spellings[match] for match in matches))[:MOST_NEAR]


def repository_of(name: str) -> str:
    """Return a name without its tag and digest; the port of a registry is no tag."""
    start, slash, last = name.partition("@")[0].rpartition("/")
    return start + slash + (last.rpartition(":")[0] or last)
