"""Celery's own lines in JSON."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from celery.signals import after_setup_logger, after_setup_task_logger

from shiftergw.work.celery.worker import log_json


@pytest.fixture
def receivers() -> Iterator[None]:
    """Forget what was connected to the signals."""
    signals = after_setup_logger, after_setup_task_logger
    receivers = [list(signal.receivers or ()) for signal in signals]
    yield
    for signal, earlier in zip(signals, receivers, strict=True):
        signal.receivers = earlier


@pytest.mark.usefixtures("receivers")
@pytest.mark.parametrize("logs_json", [True, False])
def test_lines_of_celery(logs_json: bool) -> None:
    """With `"LogFormat": "json"` every line is an object, also that of an exception."""
    if logs_json:
        log_json()
    file = io.StringIO()
    handler = logging.StreamHandler(file)
    logger = logging.Logger("celery.test")  # noqa: LOG001 - one that nothing else uses
    logger.addHandler(handler)
    after_setup_logger.send(sender=None, logger=logger)
    logger.warning("a %s", "text\nof two lines")
    try:
        int("why")
    except ValueError:
        logger.exception("broken")
    lines = file.getvalue().splitlines()
    if not logs_json:
        assert lines[0] == "a text"
        return
    first, second = map(json.loads, lines)
    assert (first["level"], first["logger"], first["process"]) == ("warn", "celery.test", "machine")
    assert first["message"] == r"a text\x0aof two lines"
    assert second["level"] == "error"
    assert second["message"].startswith("broken | Traceback")
    assert second["message"].endswith("with base 10: 'why'")
