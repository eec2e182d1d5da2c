"""The progress of work in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shiftergw.model.progress_text import progress_text
from shiftergw.model.records import ImageRecord
from shiftergw.states import State

PULLING = ImageRecord(
    status=State.PULLING,
    status_message="Pulling layers",
    stage="fetch",
    done=812_000_000,
    total=1_430_000_000,
    rate=42_000_000,
    time_left=15.2,
)


def test_bytes_rate_and_time_left() -> None:
    """A client that knows `status_message` alone shows how far the pull is."""
    assert progress_text(PULLING) == "Pulling 812 of 1,430 MB, 42 MB/s, 15 s left"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"time_left": None}, "Pulling 812 of 1,430 MB, 42 MB/s"),
        ({"rate": None}, "Pulling 812 of 1,430 MB"),
        ({"rate": 0}, "Pulling 812 of 1,430 MB"),
        ({"total": 0, "rate": None}, "Pulling 812 MB"),
        ({"done": 0, "total": 0}, "Pulling layers"),
        ({"stage": None}, "Pulling layers"),
        ({"status_message": None}, ""),
        ({"status": State.FAILURE}, "Pulling layers"),
        ({"done": -1}, "Pulling layers"),
        ({"total": "many"}, "Pulling layers"),
    ],
)
def test_what_is_not_known_is_left_out(changes: dict[str, Any], text: str) -> None:
    """A number that is missing, or that nobody could have written, is not shown."""
    assert progress_text(replace(PULLING, **changes)) == text


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("Converting layers", "Converting 12 of 8,000 bytes"),
        ("Transferring image", "Transferring 12 of 8,000 bytes"),
        ("Checking the converted image", "Checking the converted image (12 of 8,000 bytes)"),
        ("waiting 6 s: no answer", "waiting 6 s: no answer (12 of 8,000 bytes)"),
    ],
)
def test_the_message_stays_in_front(message: str, text: str) -> None:
    """Whatever the stage does or waits for, the message says it before the numbers."""
    record = replace(PULLING, status_message=message, done=12, total=8000, rate=None)
    assert progress_text(record) == text
    if "(" in text:
        assert progress_text(replace(record, total=0)) == message


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("", "Place 3 of 1,200 in the queue."),
        (None, "Place 3 of 1,200 in the queue."),
        ("No worker is there.", "No worker is there. Place 3 of 1,200 in the queue."),
    ],
)
def test_the_place_in_the_queue(message: str | None, text: str) -> None:
    """Waiting work shows its place, after what else there is to say."""
    record = ImageRecord(status_message=message, queue_place=3, queue_length=1200)
    assert progress_text(record) == text


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (9_999, 9_999, "9,999 of 9,999 bytes"),
        (5_000, 10_000, "5.0 of 10.0 kB"),
        (812_345, 9_999_499, "812 of 9,999 kB"),
        (8_140_000, 14_300_000, "8.1 of 14.3 MB"),
        (8_140_000_000, 14_300_000_000, "8.1 of 14.3 GB"),
        (81_400_000_000, 143_000_000_000, "81 of 143 GB"),
        (2**63 - 1, 2**63 - 1, "9,223 of 9,223 PB"),
        (9_500, 0, "9,500 bytes"),
    ],
)
def test_sizes_have_one_unit(done: int, total: int, text: str) -> None:
    """Both sizes have the unit of the total, and small numbers have decimals."""
    assert progress_text(replace(PULLING, done=done, total=total, rate=None)) == f"Pulling {text}"


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (999, "999 bytes/s"),
        (5_240, "5.2 kB/s"),
        (10_400_000, "10 MB/s"),
        (1_200_000_000, "1.2 GB/s"),
    ],
)
def test_rates(rate: int, text: str) -> None:
    """A rate has two or three digits."""
    record = replace(PULLING, rate=rate, time_left=None)
    assert progress_text(record) == f"Pulling 812 of 1,430 MB, {text}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (119.4, "119 s"), (120, "2 min"), (7100, "118 min"), (7200, "2 h"),
     (9000, "2 h 30 min")],
)  # fmt: skip
def test_times(seconds: float, text: str) -> None:
    """A time is as exact as an estimate can be."""
    assert progress_text(replace(PULLING, time_left=seconds)).endswith(f" {text} left")
