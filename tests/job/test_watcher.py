"""What users see of a build: its stages, its waits, and how far it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import shiftergw.build
from shiftergw.job.watcher import BuildWatcher, ForwardWatcher
from shiftergw.model.records import Progress
from shiftergw.states import State
from tests.job.pipeline_bench import RecordingWatcher

CONVERTING = (State.CONVERSION, "Converting layers")
WAIT = "Waiting for another pull that converts the same layers"


@pytest.fixture
def watcher() -> RecordingWatcher:
    """Return a watcher of a pull that fetches its layers."""
    watcher = RecordingWatcher()
    watcher.enter_stage(State.PULLING, "Pulling layers")
    return watcher


def test_a_build_is_shown_once_the_layers_have_arrived(watcher: RecordingWatcher) -> None:
    """Until then the progress is that of the download; then that of the build shows at once."""
    build = BuildWatcher(watcher)
    build.enter_stage("PACKING")
    build.report(Progress("pack", 5, 10))
    build.enter_stage("PACKING ELSEWHERE")
    assert (len(watcher.stages), watcher.progress, watcher.notices) == (2, [], [])
    assert watcher.reading == [Progress("pack", 5, 10)]  # for the estimate of the time left
    build.end_fetch()
    assert watcher.stages[2:] == [CONVERTING]
    assert (watcher.progress, watcher.notices) == ([Progress("pack", 5, 10)], [WAIT])
    build.enter_stage("COMPOSITION")
    assert watcher.messages[-1] == "Putting the image together"


def test_a_wait_within_a_stage(watcher: RecordingWatcher) -> None:
    """The message says what the stage waits for, and then what it does; its progress stays."""
    build = BuildWatcher(watcher)
    build.end_fetch()
    for stage in ("PACKING", "PACKING ELSEWHERE", "PACKING"):
        build.enter_stage(stage)
    assert watcher.stages[2:] == [CONVERTING]
    assert watcher.notices == [WAIT, CONVERTING[1]]


def test_each_stage_of_the_builder_has_words(watcher: RecordingWatcher) -> None:
    """All stages that the builder enters, in whatever order, are shown."""
    sources = Path(shiftergw.build.__file__).parent.glob("*.py")
    texts = "".join(path.read_text(encoding="utf-8") for path in sources)
    stages = set(re.findall(r'(?:READING|WRITING): ClassVar\[str\] = "(.+)"', texts))
    stages |= set(re.findall(r'on_stage\(\s*"([A-Z ]+)"', texts))
    stages |= {"WAITING", "PACKING ELSEWHERE"}
    assert len(stages) == 11  # and "Pulling layers" is another one
    build = BuildWatcher(ForwardWatcher(watcher))
    build.end_fetch()
    for stage in sorted(stages):
        build.enter_stage(stage)
        words = [*watcher.messages, *watcher.notices]
        assert all(re.fullmatch(r"[A-Z][a-z ]+", message) for message in words)
    assert len({*watcher.messages, *watcher.notices}) == 12
