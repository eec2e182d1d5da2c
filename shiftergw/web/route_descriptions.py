"""What each route and page is for, who may use it, and the forms of its requests and answers.

`web.openapi` makes the description of the interface of these, and `docs/http-api.md` its table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shiftergw.model.names import SHORTEST_PREFIX
from shiftergw.model.uploads import CHUNK_LIMIT, UPLOAD_ID
from shiftergw.web import answer_models as answers
from shiftergw.web import request_bodies as bodies
from shiftergw.web.detail_models import ImageDetails
from shiftergw.web.parameters import DEFAULT_ROWS, MOST_ROWS

JSON = "application/json"
TEXT = "text/plain"
BYTES = "application/octet-stream"
EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of a path, or a member of a query, with its JSON schema."""

    name: str
    description: str
    schema: Mapping[str, Any]
    is_required: bool = True


@dataclass(frozen=True, slots=True)
class Description:
    """What a route is for.

    `summary` is imperative; `callers` says who may use the route. `answer` is the type of the
    answer, and `body` that of the request; both are JSON, unless the answer has another
    `media_type`, or the body is `bytes`. A body that may be absent may also be None. `id` is the
    last part of a path that ends with an id. The form of an `is_original` route is that of the
    original gateway, which existing clients rely on.
    """

    summary: str
    callers: str = "users"
    answer: Any = str
    media_type: str = JSON
    body: Any = None
    query: tuple[Parameter, ...] = ()
    id: Parameter | None = None
    is_original: bool = False


SYSTEM = Parameter("system", "The name of a system.", {"type": "string", "minLength": 1})
IMAGE_TYPE = Parameter(
    "type",
    "The type of the image: docker for images of registries, custom for those of users' files; or"
    " id, where an image has to be there: then its name is the first digits of its id.",
    {"enum": ["docker", "custom", "id"]},
)
IMAGE = Parameter(
    "image",
    "The name of the image, percent-encoded: [registry/]repository[:tag][@digest].",
    {"type": "string", "minLength": 1},
)
IMAGE_ID = Parameter(
    "id",
    "The id of an image, or the first digits of it.",
    {"type": "string", "pattern": f"^[0-9a-f]{{{SHORTEST_PREFIX},64}}$"},
)
UPLOAD = Parameter(
    "id", "The id of an upload.", {"type": "string", "pattern": f"^{UPLOAD_ID.pattern}$"}
)
EXPLANATION = Parameter(
    "id", "The id of an explanation.", {"type": "string", "pattern": "^[0-9a-f]{32}$"}
)
LIMIT = Parameter(
    "limit",
    f"The number of rows, {DEFAULT_ROWS} by default and {MOST_ROWS} at most.",
    {"type": "integer", "minimum": -999_999_999, "maximum": 999_999_999, "default": DEFAULT_ROWS},
    is_required=False,
)
_BYTES_SCHEMA = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
OFFSET = Parameter("offset", "The byte of the file with which the piece begins.", _BYTES_SCHEMA)
SIZE = Parameter("size", "Bytes of the piece, at most.", _BYTES_SCHEMA)

WITH_CREDENTIAL = "users with a credential"
ADMINS = "admins"
ITS_USER = "its user"
WORKERS = "workers of the site"

DESCRIPTIONS: Mapping[str, Description] = {
    "GET /api/list/{system}/": Description(
        "List the READY images that the caller may use", answer=answers.ImageList, is_original=True
    ),
    "GET /api/names/{system}/": Description(
        "List what the images that the caller may use can be called", answer=answers.NameList
    ),
    "GET /api/systems/{system}/": Description(
        "List the systems of the gateway", answer=answers.SystemList
    ),
    "GET /api/lookup/{system}/{type}/{image}/": Description(
        "Look up a READY image, and renew its expiration", answer=answers.Record, is_original=True
    ),
    "GET /api/inspect/{system}/{type}/{image}/": Description(
        "Show all that is known of a READY image; its expiration stays",
        answer=ImageDetails,
    ),
    "POST /api/pull/{system}/{type}/{image}/": Description(
        "Pull an image, or poll its pull",
        answer=answers.PullAnswer,
        body=bodies.PullBody | None,
        is_original=True,
    ),
    "POST /api/explain/{system}/{type}/{image}/": Description(
        "Begin to explain what a pull of an image of a registry would do",
        WITH_CREDENTIAL,
        answers.ExplanationState,
    ),
    "GET /api/explain/{system}/{id}/": Description(
        "Show an explanation", "the user who asked", answers.ExplanationState, id=EXPLANATION
    ),
    "POST /api/page/{system}/": Description(
        "Make an address that opens the page for browsers, once",
        WITH_CREDENTIAL,
        answers.PageEntry,
    ),
    "GET /api/queue/{system}/": Description(
        "List work in flight and failures that the caller may see",
        answer=answers.Queue,
        is_original=True,
    ),
    "GET /api/events/{system}/": Description(
        "Send the queue, and what changes in it, as server-sent events", media_type=EVENTS
    ),
    "GET /api/events/{system}/{type}/{image}/": Description(
        "Send the events of one image", media_type=EVENTS
    ),
    "GET /api/expire/{system}/{type}/{image}/": Description(
        "Expire an image now; this GET is a change",
        "admins, the only reader of the image, and the owner of the name of an uploaded image",
        answers.Success,
        is_original=True,
    ),
    "POST /api/remove/{system}/{type}/{image}/": Description(
        "Remove an image with all its names",
        "admins, and users with an image that nobody else has used, or may use",
        answers.RemovalAnswer,
    ),
    "POST /api/pin/{system}/{type}/{image}/": Description(
        "Keep an image from expiring",
        "admins, and within `PinLimit` the owner of the image",
        answers.PinAnswer,
    ),
    "POST /api/unpin/{system}/{type}/{image}/": Description(
        "Let an image expire again",
        "admins, and the user who has pinned it",
        answers.PinAnswer,
    ),
    "GET /api/autoexpire/{system}/": Description(
        "Expire all images whose time has come; this GET is a change",
        ADMINS,
        answers.ExpiredImages,
        is_original=True,
    ),
    "GET /api/metrics/{system}/": Description(
        "List the last look-ups, oldest first",
        ADMINS,
        tuple[answers.Lookup, ...],
        query=(LIMIT,),
        is_original=True,
    ),
    "GET /api/workers/{system}/": Description(
        "List the machines with workers", ADMINS, answers.MachineList
    ),
    "GET /api/registries/{system}/": Description(
        "List the configured registries", WITH_CREDENTIAL, answers.RegistryList
    ),
    "POST /api/login/{system}/": Description(
        "Try the login in the credential at its registry; ten times in ten minutes",
        WITH_CREDENTIAL,
        answers.LoginVerdictAnswer,
        body=bodies.LoginBody,
    ),
    "POST /api/takedown/{system}/{id}/": Description(
        "Remove an image with all its names, and block its id",
        ADMINS,
        answers.RemovalAnswer,
        id=IMAGE_ID,
    ),
    "POST /api/allow/{system}/{id}/": Description(
        "Remove the block of an image id", ADMINS, answers.ImageChange, id=IMAGE_ID
    ),
    "POST /api/upload/{system}/": Description(
        "Declare a file to be uploaded, or ask whether an image may have a name",
        WITH_CREDENTIAL,
        answers.UploadAnswer | answers.PullAnswer | answers.NameIsFree,
        body=bodies.DeclarationBody | bodies.NameBody,
    ),
    "GET /api/upload/{system}/": Description(
        "List the caller's uploads", WITH_CREDENTIAL, answers.UploadList
    ),
    "GET /api/upload/{system}/{id}/": Description(
        "Show an upload", ITS_USER, answers.UploadAnswer, id=UPLOAD
    ),
    "PUT /api/upload/{system}/{id}/": Description(
        f"Send the next bytes of a file, {CHUNK_LIMIT >> 20} MiB at most; they are on disk before"
        " the answer",
        ITS_USER,
        answers.UploadAnswer,
        body=bytes,
        query=(OFFSET,),
        id=UPLOAD,
    ),
    "DELETE /api/upload/{system}/{id}/": Description(
        "Remove an upload", ITS_USER, answers.Success, id=UPLOAD
    ),
    "GET /api/spool/{system}/{id}/": Description(
        "Read a piece of an upload", WORKERS, media_type=BYTES, query=(OFFSET, SIZE), id=UPLOAD
    ),
    "DELETE /api/spool/{system}/{id}/": Description(
        "Remove a damaged upload", WORKERS, answers.Success, id=UPLOAD
    ),
    "POST /api/doimport/{system}/{type}/{image}/": Description(
        "Make a custom image of a file that the gateway's machines can read, or poll this work",
        "users in `ImportUsers`",
        answers.PullAnswer,
        body=bodies.ImportBody,
        is_original=True,
    ),
}
"""The descriptions of the routes by method and path; every path may lack its last slash."""

PUBLIC = "anybody"

PAGE_DESCRIPTIONS: Mapping[str, Description] = {
    "/": Description(
        "Answer `{lookup,pull,expire,list}`", PUBLIC, media_type=TEXT, is_original=True
    ),
    "/livez": Description("Say that the gateway lives", PUBLIC, media_type=TEXT),
    "/readyz": Description(
        "Say whether the gateway can work: if not, the answer is a 503 with the reason",
        PUBLIC,
        media_type=TEXT,
    ),
    "/api/openapi.json": Description(
        "Describe this interface, in OpenAPI 3.1", PUBLIC, dict[str, Any]
    ),
}
"""The descriptions of the pages, which need no credential, by path."""
