"""A child process explains a pull, within limits of time and size."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs, formatEvent

from shiftergw.errors import TimedOut, Unavailable
from shiftergw.model.explanations import EXPLANATION_BYTES, ExplainRequest
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin, Session
from shiftergw.plumbing.timing import pause
from shiftergw.work.explainer import ExplainerProcess

READER = Session("a", "2001", 2001, "", -1, frozenset({100, 7}))
REQUEST = ExplainRequest(
    ImageReference.parse("app:1"), "a", RegistryLogin("alice", "s:ecret\u00e9"), READER
)
ECHO = "import json,sys; print(json.dumps({'request': json.load(sys.stdin), 'argv': sys.argv}))"


def explainer(code: str, seconds: float = 60) -> ExplainerProcess:
    """Return an explainer that runs a piece of Python."""
    return ExplainerProcess([sys.executable, "-c", code], dict(os.environ), reactor, seconds)


@pytest_twisted.ensureDeferred
async def test_the_request_and_the_answer() -> None:
    """The child gets the whole request on standard input, and no part of it as an argument."""
    answer = await explainer(ECHO).explain(REQUEST)
    assert ExplainRequest.from_document(answer["request"]) == REQUEST
    assert answer["argv"] == ["-c"]


def test_a_request_of_an_operator() -> None:
    """A request without a login and a reader arrives unchanged, too."""
    request = ExplainRequest(ImageReference.parse("app:1"), "a")
    document = json.loads(json.dumps(request.to_document()))
    assert ExplainRequest.from_document(document) == request


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("import sys; sys.exit('no database')", "exited with code 1"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("print('{')", "no explanation"),
        ("print('[]')", "no explanation"),
        ("print('{\"retry_at\": NaN}')", "no explanation"),
        (f"print('{{}}' + ' ' * {EXPLANATION_BYTES})", "more than an explanation"),
        ("while True: print('x' * 4096)", "more than an explanation"),
        ("import os; os.close(1)", "no explanation"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_child_that_fails(code: str, detail: str) -> None:
    """The user gets an error without details, and the log has the reason."""
    with pytest.raises(Unavailable, match="cannot explain") as caught:
        await explainer(code).explain(REQUEST)
    assert detail in caught.value.detail


@pytest_twisted.ensureDeferred
async def test_lines_for_the_log() -> None:
    """What the child prints on standard error is logged, in printable lines."""
    code = "import sys; print('{}'); sys.stderr.write('policy /p.json\\n\\x1b[2J\\n')"
    with capturedLogs() as log:
        assert await explainer(code).explain(REQUEST) == {}
    lines = [formatEvent(event) for event in log]
    assert lines == [f"explanation of app:1 on a: {t}" for t in ("policy /p.json", "\\x1b[2J")]


@pytest_twisted.ensureDeferred
async def test_the_last_words_of_a_child() -> None:
    """Whatever a child prints before it fails is in the log, with the line that names the fault."""
    code = "print('x' * 300, file=__import__('sys').stderr); raise SystemExit('no database')"
    with capturedLogs() as log, pytest.raises(Unavailable):
        await explainer(code).explain(REQUEST)
    assert formatEvent(log[-1]) == "explanation of app:1 on a: no database"


@pytest_twisted.ensureDeferred
async def test_a_child_that_hangs() -> None:
    """The child is killed after the time limit."""
    with pytest.raises(TimedOut, match="took longer"):
        await explainer("import time; time.sleep(600)", 0.2).explain(REQUEST)


@pytest_twisted.ensureDeferred
async def test_cancelling_ends_the_child(tmp_path: Path) -> None:
    """When the gateway stops, its child ends."""
    file = tmp_path / "pid"
    code = f"import os,time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    running = Deferred.fromCoroutine(explainer(code).explain(REQUEST))
    while not file.exists() or not file.read_text():
        await pause(0.01, reactor)
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)
