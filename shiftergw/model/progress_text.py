"""The progress of work in words, for clients that show `status_message`."""

from __future__ import annotations

from shiftergw.errors import short_duration
from shiftergw.model.names import is_count, is_time
from shiftergw.model.records import ImageRecord

_VERBS = {
    "Pulling layers": "Pulling",
    "Converting layers": "Converting",
    "Transferring image": "Transferring",
}
"""The short form of messages whose bytes are those of layers, or of the image."""

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")

_LARGEST_SIZE = 10_000
_LARGEST_RATE = 1000
"""A number from here on is shown in the next larger unit."""

_ROUND_NUMBER = 10
"""A number from here on is shown without decimals."""


def progress_text(record: ImageRecord) -> str:
    """Return the message for the user, with bytes, rate and time left while these are known.

    For example `Pulling 812 of 1,430 MB, 42 MB/s, 15 s left`, or the place in the queue. The result
    is "" if there is no message.
    """
    message = record.status_message or ""
    if record.queue_place is not None:
        place = f"Place {record.queue_place:,} of {record.queue_length:,} in the queue."
        return f"{message} {place}".strip()
    if not has_bytes(record):
        return message
    verb = _VERBS.get(message)
    parts = [_bytes_text(record.done, record.total)]
    if is_count(record.rate) and record.rate:
        unit = _unit_of(record.rate, _LARGEST_RATE)
        parts.append(f"{_number(record.rate, unit)} {_UNITS[unit]}/s")
        if is_time(record.time_left):
            parts.append(f"{short_duration(record.time_left)} left")
    numbers = ", ".join(parts)
    if verb is not None:
        return f"{verb} {numbers}"
    return f"{message} ({numbers})" if record.total else message


def has_bytes(record: ImageRecord) -> bool:
    """Return whether a record is in work, and the bytes of its stage are known."""
    are_counts = is_count(record.done) and is_count(record.total)
    is_counted = are_counts and (record.done > 0 or record.total > 0)
    return is_counted and record.is_polled and bool(record.stage and record.status_message)


def _bytes_text(done: int, total: int) -> str:
    """Return how many bytes are done, of how many if that is known, in one unit."""
    if not total:
        unit = _unit_of(done)
        return f"{_number(done, unit)} {_UNITS[unit]}"
    unit = _unit_of(total)
    # With decimals where the total has them, so that small numbers do not seem to stand still.
    decimals = 1 if unit and total < 100 * 1000**unit else 0
    return f"{done / 1000**unit:,.{decimals}f} of {total / 1000**unit:,.{decimals}f} {_UNITS[unit]}"


def _unit_of(size: int, limit: int = _LARGEST_SIZE) -> int:
    """Return the index in `_UNITS` of the first unit in which a size is below `limit`."""
    unit = 0
    while size >= limit * 1000**unit and unit < len(_UNITS) - 1:
        unit += 1
    return unit


def _number(size: int, unit: int) -> str:
    number = size / 1000**unit
    return f"{number:,.0f}" if number >= _ROUND_NUMBER or not unit else f"{number:.1f}"
