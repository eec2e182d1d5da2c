"""Status messages, which users and scripts read while a pull runs."""

from __future__ import annotations

import ast
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from tests.golden import program, wire
from tests.golden.records import check
from tests.installed_reactor import reactor
from tests.tracing import without_tracing

SOURCE = Path(__file__).parents[2] / "shiftergw"

RARE_MESSAGES = (
    "Checking your access to the image",
    "Waiting for the same conversion for another pull",
    "Waiting for another delivery of this image",
    "waiting {} s: {}",
    "For {} no worker could start on the gateway's machine.",
    "{} workers died on this image; the last one {}.",
    "No worker can start on the gateway's machine; its admins find the reason in the log.",
    "No worker can start on the worker machines of {}.",
    "No worker machine serves {} at the moment.",
    "The gateway's workers take long to start ({} s so far).",
)

"""Messages of rare events, as the source has them, with `{}` for the parts that vary."""


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the local time zone to UTC: messages contain local times."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest_twisted.ensureDeferred
async def test_messages_of_a_pull(tmp_path: Path) -> None:
    """A worker reports each state with its message, in this order."""
    reports: dict[str, list[str]] = {}
    with program.reported_messages() as messages:
        async with program.running_bench(tmp_path) as bench:

            async def pull(name: str, uid: int, login: str | None = None) -> None:
                messages.clear()
                await bench.pull(name, uid=uid, login=login)
                reports[f"{name} for {uid}"] = list(messages)

            await pull("lib/app:1", 2001)
            await pull("lib/app:1", 2002)
            os.utime(bench.image_path, (1, 1))
            await pull("lib/app:2", 2002)
            bench.image_path.unlink()
            bench.source.private = True
            await pull("lib/closed:1", 2001, "alice:secret")
    check("messages-of-a-pull", reports)


def test_messages_of_waits() -> None:
    """The reason why a pull waits has the recorded words."""
    now = 1_000_000.0
    queue = program.broker_queue(reactor, wire.BROKER)
    texts = {
        "a minute": program.waiting_message(now + 60, "hub (rate limit)", now),
        "an hour": program.waiting_message(now + 3600, "hub (rate limit)", now),
        "a day": program.waiting_message(now + 86400, "hub (rate limit)", now),
        "after a death": program.requeue_message("was killed by signal 9", died=True),
        "after a stop": program.requeue_message("ended with exit code 130", died=False),
        "settings that are left out": program.notice(["ENV X"]),
        "without a broker": queue.trouble().what,
    }
    check("messages-of-waits", texts)


@without_tracing
def test_messages_in_the_source() -> None:
    """Each rare message is a text of the program."""
    absent = set(RARE_MESSAGES)
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if any(_words(message) in text for message in absent):
            absent -= set(_texts(ast.parse(text)))
    assert absent == set()


def _words(message: str) -> str:
    """Return half of the longest part of a message that does not vary.

    The source may have the whole part on two lines.
    """
    part = max(message.split("{}"), key=len)
    return part[: len(part) // 2]


def _texts(tree: ast.AST) -> Iterator[str]:
    """Yield all texts of a module, with `{}` for the values in an f-string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield "".join(map(str, parts))
