"""The state of a piece of work as users see it: read from a gateway's answer, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shiftergw.errors import amount, printable, short_duration
from shiftergw.model.layer_progress import parse_layers
from shiftergw.model.names import MISSING, is_count, is_time

_TEXTS = {
    MISSING: "Requesting the image",
    "INIT": "Requesting the image",
    "PENDING": "Waiting for a worker",
    "PULLING": "Downloading the image",
    "EXAMINATION": "Examining the layers",
    "CONVERSION": "Converting the image",
    "TRANSFER": "Transferring the image",
    "EXPIRING": "Removing the image",
}
"""What a pull does in each state, where the gateway does not say it in words."""

_INDENTATION = "  "
"""What stands before a layer, below the pull that it belongs to."""


@dataclass(frozen=True, slots=True)
class WorkState:
    """The state of a piece of work at one time, as it is shown.

    `done` and `total` are the bytes of what `text` names; `total` 0 means unknown. `rate` is in
    bytes a second, `time_left` in seconds. `is_complete` means that the work has ended well.
    `seconds` is the age of the work.
    """

    text: str = ""
    done: int = 0
    total: int = 0
    rate: int | None = None
    time_left: float | None = None
    is_complete: bool = False
    seconds: float = 0.0

    @property
    def percent(self) -> int:
        """Return how much is done; 0 if the total is unknown."""
        if self.is_complete:
            return 100
        return min(100, 100 * self.done // self.total) if self.total else 0

    @property
    def has_bar(self) -> bool:
        """Return whether there is a bar to draw."""
        return self.is_complete or self.total > 0


def state_of(record: Mapping[str, Any]) -> WorkState:
    """Return the state that the answer to a pull, or a row of the queue, describes."""
    status = str(record.get("status"))
    # With numbers the message changes at each poll, and they are shown anyway.
    message = str(record.get("activity", record.get("status_message", "")))
    text = _TEXTS.get(status, status) if message in {"", MISSING, status} else message
    place, length = record.get("queue_place"), record.get("queue_length")
    if is_count(place) and is_count(length):
        text = f"{text} (place {place:,} of {length:,})"
    done, total = record.get("done"), record.get("total")
    if not (is_count(done) and is_count(total)):
        done = total = 0
    rate, time_left = record.get("rate"), record.get("time_left")
    return WorkState(
        printable(text),
        done,
        total,
        rate if is_count(rate) and rate else None,
        time_left if is_time(time_left) else None,
    )


def layers_of(record: Mapping[str, Any]) -> list[WorkState]:
    """Return the state of each layer that is being downloaded, as an answer describes it."""
    return [
        WorkState(f"{_INDENTATION}{printable(layer.digest)}", layer.done, layer.total)
        for layer in parse_layers(record.get("layers_in_flight"))
    ]


def plain_line(state: WorkState) -> str:
    """Return a line for a file or a log: the text, and the numbers as far as they are known."""
    numbers = []
    if state.total:
        numbers += [f"{state.percent} %", f"{amount(state.done)} of {amount(state.total)}"]
    elif state.done:
        numbers.append(amount(state.done))
    if state.rate is not None:
        numbers.append(f"{amount(state.rate)}/s")
    if state.time_left is not None:
        numbers.append(f"{short_duration(state.time_left)} left")
    if not numbers and state.seconds >= 1:
        numbers.append(f"for {short_duration(state.seconds)}")
    return ": ".join(filter(None, [state.text, ", ".join(numbers)]))
