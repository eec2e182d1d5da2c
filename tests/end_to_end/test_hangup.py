"""A gateway whose terminal is closed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.running_service import Service

LOCATIONS = {"registry": {"remotetype": "dockerv2", "url": "http://127.0.0.1:9"}}


def test_a_hangup_stops_the_gateway_in_order(tmp_path: Path) -> None:
    """SIGHUP stops the gateway as SIGTERM does, so that no record stays marked as in progress."""
    with Service(tmp_path, LOCATIONS) as service:
        service.stop(signal.SIGHUP)
    log = service.log.read_text()
    assert "received SIGHUP" in log
    assert "Main loop terminated" in log


def test_nohup(tmp_path: Path) -> None:
    """A gateway that was started with SIGHUP ignored continues to ignore it."""
    with Service(tmp_path, LOCATIONS, through=["nohup"]) as service:
        os.kill(service.pid, signal.SIGHUP)
        assert service.get("/livez")[0] == 200
    assert "received SIGHUP" not in service.log.read_text()
