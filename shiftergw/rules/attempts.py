"""How many attempts a record gets, and how the log names a record and its attempt."""

from __future__ import annotations

from shiftergw.errors import printable
from shiftergw.model import ImageRecord

MAX_ATTEMPTS = 5
"""Workers that may die on one record before it is given up."""

STOPPED = "The worker was stopped; the pull starts again when a worker is free."


def name_of(record: ImageRecord) -> str:
    """Return what is worked on, for the log."""
    if record.kind == "expire":
        what = f"removal of {', '.join(record.tags) or record.id}"
    else:
        readers = "readers of " if record.kind == "acl" else ""
        what = f"{readers}{record.itype}:{record.pulltag}"
    return f"{printable(what)} on {record.system}"


def trace_of(record: ImageRecord) -> str:
    """Return by what a record's lines in the log are found: its request, and its attempt."""
    request = f"request {printable(record.request_id, 40)}, " if record.request_id else ""
    return f"{request}attempt {record.attempt}"
