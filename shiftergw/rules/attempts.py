"""The limit on attempts at one record, and how the log names a record and its attempt."""

from __future__ import annotations

from typing import Any

from shiftergw.errors import printable
from shiftergw.model.records import ImageRecord

MAX_ATTEMPTS = 5
"""Workers that may die on one record before the gateway gives it up."""

STOPPED_MESSAGE = "The worker was stopped; the pull starts again when a worker is free."


def describe_work(record: ImageRecord) -> str:
    """Return the image and the system of a record's work, for the log."""
    if record.kind == "expire":
        work = f"removal of {', '.join(record.tags) or record.id}"
    else:
        readers = "readers of " if record.kind == "acl" else ""
        work = f"{readers}{record.itype}:{record.pulltag}"
    return f"{printable(work)} on {record.system}"


def describe_attempt(record: ImageRecord) -> str:
    """Return the request and the attempt number that identify a record's log lines."""
    request = f"request {printable(record.request_id, 40)}, " if record.request_id else ""
    return f"{request}attempt {record.attempt}"


def trace_of(record: ImageRecord) -> dict[str, str | int | None]:
    """Return the log fields that identify a job in all processes and on all machines.

    `job` is the key of the record: all attempts at a pull have it, and so have its later polls.
    """
    return {"request": record.request_id, "job": record.key, "attempt": record.attempt}


def log_values(record: ImageRecord) -> dict[str, Any]:
    """Return the values of `what` and `trace` in a line about a job, and its fields in JSON."""
    return {
        "what": describe_work(record),
        "trace": describe_attempt(record),
        "fields": trace_of(record),
    }
