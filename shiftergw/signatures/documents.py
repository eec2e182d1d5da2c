"""Read the JSON, base64, PEM and DER of signatures: all of it is hostile until it is verified.

Every violation is a `SignatureDefect`. JSON is read strictly, because two readers of one document
must not see different values: no repeated members, no NaN, no numbers of thousands of digits.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any, NoReturn, TypeVar

from shiftergw.errors import printable
from shiftergw.model.signatures import SIGNATURE_SIZE_LIMIT

T = TypeVar("T")

_PEM = re.compile(rb"-----BEGIN ([A-Z ]{1,40})-----\s([A-Za-z0-9+/=\s]*?)-----END \1-----\s*")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,15}")
_LARGEST_INTEGER = 2**53 - 1
"""The largest integer that RFC 8785 (canonical JSON) can write exactly."""


class SignatureDefect(Exception):
    """A signature does not hold; the text is a clause, such as `its payload is not JSON`."""


def read_object(content: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object of at most `SIGNATURE_SIZE_LIMIT` bytes; errors call it `name`."""
    if len(content) > SIGNATURE_SIZE_LIMIT:
        raise SignatureDefect(f"its {name} is larger than {SIGNATURE_SIZE_LIMIT >> 20} MiB")
    try:
        document = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique_members,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise SignatureDefect(f"its {name} is not JSON") from error
    if not isinstance(document, dict):
        raise SignatureDefect(f"its {name} is not a JSON object")
    return document


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is repeated")
    return members


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def member(holder: dict[str, Any], name: str, kind: type[T]) -> T:
    """Return a required member of exactly this JSON type."""
    value = holder.get(name)
    if type(value) is not kind:  # True is not an integer
        problem = "has the wrong type" if name in holder else "is absent"
        raise SignatureDefect(f"its `{name}` {problem}")
    return value


def optional_object(holder: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return a member that is an object; None if it is absent or null."""
    return None if holder.get(name) is None else member(holder, name, dict)


def objects(holder: dict[str, Any], name: str, limit: int) -> list[dict[str, Any]]:
    """Return a member that is a list of at most `limit` objects; an absent one is empty."""
    if holder.get(name) is None:
        return []
    values = member(holder, name, list)
    if len(values) > limit:
        raise SignatureDefect(f"its `{name}` has more than {limit} elements")
    if not all(isinstance(value, dict) for value in values):
        raise SignatureDefect(f"its `{name}` has an element of the wrong type")
    return values


def integer(holder: dict[str, Any], name: str) -> int:
    """Return a member that is a natural number, or a string of one as protobuf writes it."""
    value = holder.get(name)
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        value = int(value)
    if type(value) is not int or not 0 <= value <= _LARGEST_INTEGER:
        raise SignatureDefect(f"its `{name}` is not a natural number")
    return value


def decode_base64(text: str | bytes, name: str) -> bytes:
    """Decode base64 (RFC 4648, section 4) of the one form that an encoder writes."""
    try:
        encoding = text.encode("ascii") if isinstance(text, str) else text
        content = base64.b64decode(encoding, validate=True)
    except ValueError as error:
        raise SignatureDefect(f"its {name} is not base64") from error
    if base64.b64encode(content) != encoding:  # Python ignores the unused bits at the end
        raise SignatureDefect(f"its {name} is not base64")
    return content


def base64_member(holder: dict[str, Any], name: str) -> bytes:
    """Return the bytes of a member that is base64."""
    return decode_base64(member(holder, name, str), f"`{name}`")


def decode_pem(content: bytes, label: str, limit: int, name: str) -> tuple[bytes, ...]:
    """Return the DER of one to `limit` PEM blocks with this label, and nothing between them."""
    blocks: list[bytes] = []
    position = 0
    content = content.strip()
    while position < len(content):
        match = _PEM.match(content, position)
        if match is None or match[1].decode("ascii") != label:
            raise SignatureDefect(f"its {name} is not PEM of the kind {label}")
        if len(blocks) == limit:
            raise SignatureDefect(f"its {name} has more than {limit} PEM blocks")
        blocks.append(decode_base64(b"".join(match[2].split()), name))
        position = match.end()
    if not blocks:
        raise SignatureDefect(f"its {name} is empty")
    return tuple(blocks)


def quote(text: str) -> str:
    """Return foreign text as a short printable word for a reason."""
    return f"`{printable(text, 120)}`"
