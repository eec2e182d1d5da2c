"""The interface through which the pipeline reports stages and progress, and two filters for it."""

from __future__ import annotations

from typing import Protocol

from shiftergw.model.records import Progress
from shiftergw.states import STEPS, State

_BUILD_STAGES = {
    "WAITING": (State.EXAMINATION, "Waiting for the same conversion for another pull"),
    "VERIFICATION": (State.EXAMINATION, "Checking the converted image that is there"),
    "EXAMINATION": (State.EXAMINATION, "Examining image"),
    "PACKING": (State.CONVERSION, "Converting layers"),
    "CONVERSION": (State.CONVERSION, "Converting image"),
    "COMPOSITION": (State.CONVERSION, "Putting the image together"),
    "REPAIR": (State.CONVERSION, "Repairing converted layers"),
    "CHECK": (State.CONVERSION, "Checking the converted image"),
}
"""The state and the message for the user in each stage of the builder."""

_BUILD_NOTICES = {
    "PACKING ELSEWHERE": "Waiting for another pull that converts the same layers",
    "QUEUED": "Waiting until the gateway has converted layers of other pulls",
    "SLOW DIRECTORY": "Converting a directory of very many entries takes long",
}
"""The message for the user while a stage of the builder waits, or takes long; it stays the same."""


class Watcher(Protocol):
    """Follows one image through the pipeline; its methods are cheap and never raise."""

    def enter_stage(self, state: State, message: str) -> None:
        """Take note that a stage begins; `message` is one line for the user."""
        ...

    def report(self, progress: Progress) -> None:
        """Take note of how far the stage is."""
        ...

    def report_reading(self, progress: Progress) -> None:
        """Take note of how far layers are read while the stage is their download."""
        ...

    def notify(self, message: str) -> None:
        """Take note of what the stage waits for; `message` is one line for the user."""
        ...


class ForwardWatcher:
    """Passes on the stages of work that may start again, but never a return to an earlier stage."""

    def __init__(self, watcher: Watcher) -> None:
        """Report to `watcher`."""
        self._watcher = watcher
        self._furthest = State.PENDING
        self.report = watcher.report
        self.report_reading = watcher.report_reading
        self.notify = watcher.notify

    def enter_stage(self, state: State, message: str) -> None:
        """Report a stage, or only its message if a later stage was reported before."""
        if self._furthest == state or state in STEPS[self._furthest]:
            self._furthest = state
            self._watcher.enter_stage(state, message)
        else:
            self.notify(message)


class BuildWatcher:
    """Passes on the stages and the progress of a build once all layers have arrived.

    The build begins earlier, but until then the watcher gets the reports of the download only.
    """

    def __init__(self, watcher: Watcher) -> None:
        """Report to `watcher`."""
        self._watcher = watcher
        self._stage: str | None = None
        self._message = ""
        """Why the stage waits or takes long, or that it goes on."""
        self._progress: Progress | None = None
        """The last progress of the stage."""
        self._is_fetched = False

    def end_fetch(self) -> None:
        """Report the stage of the build, from now on: all layers have arrived."""
        self._is_fetched = True
        if self._stage is not None:
            self._watcher.enter_stage(*_BUILD_STAGES[self._stage])
        if self._message:
            self._watcher.notify(self._message)
        if self._progress is not None:
            self._watcher.report(self._progress)

    def enter_stage(self, stage: str) -> None:
        """Take note that a stage of the build begins, waits, or goes on after a wait."""
        if stage in _BUILD_NOTICES:
            self._notify(_BUILD_NOTICES[stage])
        elif stage == self._stage:
            self._notify(_BUILD_STAGES[stage][1])
        else:
            self._stage, self._message, self._progress = stage, "", None
            if self._is_fetched:
                self._watcher.enter_stage(*_BUILD_STAGES[stage])

    def _notify(self, message: str) -> None:
        self._message = message
        if self._is_fetched:
            self._watcher.notify(message)

    def report(self, progress: Progress) -> None:
        """Report how far the build is."""
        self._progress = progress
        if self._is_fetched:
            self._watcher.report(progress)
        else:
            self._watcher.report_reading(progress)
