"""The queue with its bars, and the failures with their reasons, as parts of documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from twisted.web.template import Element, Tag, renderer, tags

from shiftergw.model.layer_progress import parse_layers
from shiftergw.model.names import is_count
from shiftergw.model.progress_text import has_bytes, progress_text
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.ports import QueueTrouble
from shiftergw.states import State
from shiftergw.web.page.documents import template
from shiftergw.web.page.elements import bar, mark, time_tag

MOST_WORK = 100
"""Entries of the queue in one document; the whole queue is in `shiftergw queue`."""

MOST_FAILURES = 25
"""Failures in one document, the last ones."""

WORDS = {
    State.INIT: "Waiting",
    State.PENDING: "Waiting",
    State.PULLING: "Downloading",
    State.EXAMINATION: "Checking",
    State.CONVERSION: "Converting",
    State.TRANSFER: "Delivering",
    State.EXPIRING: "Removing",
}
"""The states of work in words; the script takes them from the document."""

WAITING = frozenset({State.INIT, State.PENDING, State.EXPIRING})
"""States without a bar; removals wait, or take a moment."""

MarkOf = Callable[[ImageRecord], str]
"""Returns the word beside the name of an image, or ""."""


def work_in(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Return the records that wait or work, oldest first as they are in the queue."""
    return [record for record in records if record.status in WORDS]


def failures_in(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Return the failures, the last first."""
    failures = [record for record in records if record.status is State.FAILURE]
    return sorted(failures, key=_failure_time, reverse=True)


def _failure_time(record: ImageRecord) -> float:
    return record.last_pull if isinstance(record.last_pull, int | float) else 0.0


def name_of(record: ImageRecord) -> str:
    """Return the name of an image as its user writes it."""
    name = ", ".join(record.tags or (record.pulltag or "",))
    return name if record.itype == "docker" else f"{record.itype}:{name}"


class Health(Element):
    """The health of a system, and how much it has to do."""

    loader = template("health")

    def __init__(
        self, session: Session, records: Sequence[ImageRecord], trouble: QueueTrouble | None
    ) -> None:
        """Count the `records` of the session's queue."""
        super().__init__()
        self._system = session.system
        self._records = records
        self._trouble = trouble

    @renderer
    def health(self, _: object, tag: Tag) -> Tag:
        """Fill the facts in."""
        work = work_in(self._records)
        waiting = sum(record.status in WAITING for record in work)
        return tag.fillSlots(
            system=self._system,
            mood=mood_of(self._trouble),
            text="Pulls are working." if self._trouble is None else self._trouble.what,
            working=str(len(work) - waiting),
            waiting=str(waiting),
            failed=str(len(failures_in(self._records))),
        )


def mood_of(trouble: QueueTrouble | None) -> str:
    """Return the class of the sign beside the health, whose text says the same."""
    if trouble is None:
        return "good"
    return "bad" if trouble.grave else "slow"


class _BoundedList(Element):
    """The first records of a list, a sentence if there are none, and the number of the rest."""

    def __init__(self, records: Sequence[ImageRecord], limit: int, mark_of: MarkOf) -> None:
        super().__init__()
        self.shown_records = records[:limit]
        self.rest_count = len(records) - len(self.shown_records)
        self._mark_of = mark_of

    def mark(self, record: ImageRecord) -> Tag | str:
        """Return the mark beside the name of an image."""
        return mark(self._mark_of(record))

    @renderer
    def empty(self, _: object, tag: Tag) -> Tag | str:
        """Return the sentence for an empty list."""
        return "" if self.shown_records else tag

    @renderer
    def list(self, _: object, tag: Tag) -> Tag | str:
        """Return the list, unless it is empty."""
        return tag if self.shown_records else ""

    @renderer
    def rest(self, _: object, tag: Tag) -> Tag | str:
        """Return how many records are not shown, if any."""
        return tag.fillSlots(count=f"{self.rest_count:,}") if self.rest_count else ""


class QueueList(_BoundedList):
    """Work that waits or is under way, each with its bar."""

    loader = template("queue")

    def __init__(
        self, records: Sequence[ImageRecord], mark_of: MarkOf, *, events: str = ""
    ) -> None:
        """Show the work among `records`; the script follows the stream at `events`."""
        super().__init__(work_in(records), MOST_WORK, mark_of)
        self._events = events

    @renderer
    def queue(self, _: object, tag: Tag) -> Tag:
        """Fill in what the script needs."""
        return tag.fillSlots(
            events=self._events,
            words=json.dumps({state.value: word for state, word in WORDS.items()}),
            complete="no" if self.rest_count else "yes",
        )

    @renderer
    def row(self, _: object, tag: Tag) -> Iterator[Tag]:
        """Yield a row for each piece of work."""
        for record in self.shown_records:
            name = name_of(record)
            yield tag.clone().fillSlots(
                key=record.key,
                status=record.status.value,
                image=name,
                mark=self.mark(record),
                word=WORDS[record.status],
                bar=bar(f"Progress of {name}", *_bytes(record), is_hidden=record.status in WAITING),
                message=progress_text(record),
                layers=_layer_list(record),
            )


def _layer_list(record: ImageRecord) -> Tag:
    """Return the layers that are being downloaded, each with its bar, as the script makes them."""
    layers = parse_layers(record.layers_in_flight) if has_bytes(record) else []
    rows = [
        tags.li(
            tags.code(layer.digest),
            bar(f"Layer {layer.digest}", layer.done, layer.total),
            **{"data-digest": layer.digest},
        )
        for layer in layers
    ]
    return tags.ul(rows, class_="layers")


def _bytes(record: ImageRecord) -> tuple[int, int]:
    """Return the bytes done of a stage and its total; 0 where another program wrote no number."""
    done, total = record.done, record.total
    return (done, total) if is_count(done) and is_count(total) else (0, 0)


class FailureList(_BoundedList):
    """The last failures: cause, remedy, and whether trying again helps."""

    loader = template("failures")

    def __init__(self, records: Sequence[ImageRecord], mark_of: MarkOf) -> None:
        """Show the failures among `records`."""
        super().__init__(failures_in(records), MOST_FAILURES, mark_of)

    @renderer
    def row(self, _: object, tag: Tag) -> Iterator[Tag]:
        """Yield a row for each failure."""
        for record in self.shown_records:
            yield tag.clone().fillSlots(
                image=name_of(record),
                mark=self.mark(record),
                time=time_tag(record.last_pull),
                cause=record.cause or record.status_message or "The cause is not known.",
                remedy=record.remedy or "",
                note=" ".join(_notes(record)),
            )


def _notes(record: ImageRecord) -> Iterator[str]:
    """Yield whether a retry helps, and the request id, by which support finds the pull."""
    if record.retryable is not None:
        yield "Trying again may help." if record.retryable else "Trying again does not help."
    if record.request_id:
        yield f"Request {record.request_id}."
