"""The bodies of requests as models, which parse them and describe them.

The docstring of a member says what its value is: in the description of the interface, and in the
error for any other value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)

from shiftergw.errors import BadRequest
from shiftergw.model.names import ACL_LIMIT, HIGHEST_ID
from shiftergw.model.uploads import SELECTOR_LIMIT, SHA256, UPLOAD_ID, UploadChoice, UploadKind
from shiftergw.service.imports import ImportChoice

LARGEST_SIZE = 1 << 60
"""Bytes that a declaration may name; the limits of the site are lower."""

LOCATION_LIMIT = 300
"""Characters of the name of a registry: a host has 253 at most, and then comes the port."""

_NUMBER = re.compile(r"\s*([0-9]{1,10})\s*", re.ASCII)

_WRONG = {
    "bool_type": "is neither true nor false",
    "int_type": "is not a whole number",
    "missing": "is missing",
    "string_type": "is not text",
}
"""The words for pydantic's types of errors."""


class RequestBody(BaseModel):
    """A JSON object; members that the model does not have are ignored."""

    model_config = ConfigDict(
        frozen=True, strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    @classmethod
    def parse(cls, members: Mapping[str, Any]) -> Self:
        """Return the body that has these members; raise `BadRequest` for the first wrong one."""
        try:
            return cls.model_validate(dict(members))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
        name = str(problem["loc"][0])  # members have plain values, so this is a name of a field
        wrong = _WRONG.get(problem["type"], "has an invalid value")
        description = cls.model_fields[name].description or ""
        raise BadRequest(f"`{name}` {wrong}.", remedy=" ".join(description.split()))


def parse_ids(value: object, name: str) -> tuple[int, ...]:
    """Return the ids of a member such as `allowed_uids`: text `"1,2"` or an array of integers."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list):
        raise _bad_ids(name)
    ids = tuple(dict.fromkeys(_parse_id(item, name) for item in items))
    if len(ids) > ACL_LIMIT:
        raise BadRequest(
            f"{name} has {len(ids)} ids; {ACL_LIMIT} is the limit.",
            remedy="Name a group instead of its members.",
        )
    return ids


def _parse_id(item: object, name: str) -> int:
    if isinstance(item, str):
        match = _NUMBER.fullmatch(item)
        item = int(match[1]) if match else None
    if type(item) is not int or not 0 <= item <= HIGHEST_ID:
        raise _bad_ids(name)
    return item


def _bad_ids(name: str) -> BadRequest:
    return BadRequest(
        f"{name} is not a list of ids.",
        remedy=f'Write numbers from 0 to {HIGHEST_ID} as text, "1000,1001", or as an array.',
    )


def _parse_id_member(value: object, info: ValidationInfo) -> tuple[int, ...]:
    return parse_ids(value, info.field_name or "")


def _check_selector(selector: str) -> str:
    if not selector.isprintable():
        raise ValueError
    return selector


_BLANKS = r"[ \t\n\r\f\v]*"  # `\s` of JSON Schema has more of Unicode
_ID_PATTERN = f"{_BLANKS}[0-9]{{1,10}}{_BLANKS}"
_ID_TEXT = {"type": "string", "pattern": f"^{_ID_PATTERN}$"}
_ID_NUMBER = {"type": "integer", "minimum": 0, "maximum": HIGHEST_ID}
_ID_LIST = {
    "anyOf": [
        {"type": "string", "pattern": f"^{_ID_PATTERN}(,{_ID_PATTERN})*$"},
        {"type": "array", "items": {"anyOf": [_ID_NUMBER, _ID_TEXT]}, "maxItems": ACL_LIMIT},
    ]
}

Ids = Annotated[tuple[int, ...], PlainValidator(_parse_id_member), WithJsonSchema(_ID_LIST)]
UploadId = Annotated[str, Field(pattern=f"^{UPLOAD_ID.pattern}$")]
Sha256 = Annotated[str, Field(pattern=f"^{SHA256.pattern}$")]
Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
Selector = Annotated[
    str,
    Field(max_length=SELECTOR_LIMIT),
    AfterValidator(_check_selector),
    # Names of images are ASCII, and patterns cannot say what is printable beyond it.
    WithJsonSchema({"type": "string", "maxLength": SELECTOR_LIMIT, "pattern": "^[ -~]*$"}),
]


class AccessLists(RequestBody):
    """The users and groups that may use a private image, besides its owner."""

    allowed_uids: Ids = ()
    """The uids of users, at most 1,000: text such as "2001,2002", or an array of numbers."""

    allowed_gids: Ids = ()
    """The gids of groups, in the same form."""


class PullBody(AccessLists):
    """What a pull may say; an empty body says nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"upload": {"type": "string"}}, "required": ["upload"]},
                {"properties": {"selector": {"const": ""}, "public": {"const": False}}},
            ]
        }
    )

    upload: UploadId | None = None
    """The id of the upload that the image is made of: 32 hexadecimal digits in lower case."""

    selector: Selector = ""
    """Which of several images in an archive is meant: one line of at most 512 characters, a tag or
    `@INDEX`. It needs an `upload`."""

    public: bool = False
    """Whether everybody may use the image: true, or false, which is the default. It needs an
    `upload`."""

    def choice(self) -> UploadChoice | None:
        """Return the upload that the image is made of, or None; raise `BadRequest`."""
        if self.upload is not None:
            return UploadChoice(self.upload, self.selector, self.public)
        if self.public or self.selector:
            raise BadRequest("`selector` and `public` need an `upload`.")
        return None


class ImportBody(AccessLists):
    """The file that an image is made of."""

    filepath: Annotated[str, Field(min_length=1)]
    """The absolute path of the file on the machines of the gateway."""

    format: Annotated[str, Field(min_length=1)]
    """The format of the file: `squashfs`."""

    public: bool = False
    """Whether everybody may use the image: true, or false, which is the default."""

    def choice(self) -> ImportChoice:
        """Return what is to be imported."""
        return ImportChoice(self.filepath, self.format, self.public)


class LoginBody(RequestBody):
    """The registry at which the login in the credential is to be tried."""

    location: Annotated[str, Field(min_length=1, max_length=LOCATION_LIMIT)]
    """The name of a registry as in names of images, or `default` for the default registry."""


class NameBody(RequestBody):
    """A question before an upload: whether an image may have a name, and a file this size."""

    name: str
    """The name of the image to be made: NAME or NAME:TAG."""

    size: Size | None = None
    """The size of the file in bytes, at least 1, if it is known."""


class DeclarationBody(AccessLists):
    """The declaration of a file that the user will send.

    With `name` and `selector` the answer is the image of this name, if it is made of the same file
    and has the same readers.
    """

    size: Size
    """The size of the file in bytes, at least 1."""

    sha256: Sha256
    """The SHA-256 digest of the whole file: 64 hexadecimal digits in lower case."""

    kind: UploadKind = ""
    """The kind of the file: oci-archive, docker-archive, dir-archive, sif, squashfs, or "", which
    is the default, if the content of the file shall show it."""

    filename: str = ""
    """The name of the file as text; it appears in messages only."""

    name: str = ""
    """The name of the image to be made, as text: NAME or NAME:TAG."""

    selector: Selector = ""
    """Which of several images in an archive is meant: one line of at most 512 characters, a tag or
    `@INDEX`; "" for none."""

    public: bool = False
    """Whether everybody may use the image: true, or false, which is the default."""
