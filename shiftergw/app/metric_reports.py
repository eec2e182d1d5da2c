"""Send the measurements of a worker to the process that has started it."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from shiftergw.app.metric_counts import MetricCounts, batches
from shiftergw.model.metrics import WORKER_MEMORY

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

REPORT_SECONDS = 15.0
"""Seconds between two reports during a job; a worker that is killed loses what came after."""

LINE_BYTES = 3000
"""About the size of a report; a line of the protocol has at most 4096 bytes."""


class MetricReports:
    """A context for the time of a job, during which measurements are sent at intervals."""

    def __init__(
        self,
        counts: MetricCounts,
        send: Callable[[dict[str, Any]], object],
        clock: IReactorTime,
    ) -> None:
        """Report `counts` by `send`."""
        self._counts = counts
        self._send = send
        self._clock = clock
        self._call: Any = None
        self._last: Mapping[str, Any] = {}

    def __enter__(self) -> Self:
        """Begin to report."""
        self._call = self._clock.callLater(REPORT_SECONDS, self._report)
        return self

    def __exit__(self, *_: object) -> None:
        """Report once more, with the memory that the process has needed."""
        self._call.cancel()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        self._counts.observe(WORKER_MEMORY, peak)
        self._send_changes()

    def _report(self) -> None:
        self._send_changes()
        self._call = self._clock.callLater(REPORT_SECONDS, self._report)

    def _send_changes(self) -> None:
        """Send the series that have changed since the last report, as sums since the start."""
        entries = {str(entry[:2]): entry for entry in self._counts.entries()}
        changes = [entry for name, entry in entries.items() if self._last.get(name) != entry]
        self._last = entries
        for batch in batches(changes, LINE_BYTES):
            self._send({"metrics": batch})
