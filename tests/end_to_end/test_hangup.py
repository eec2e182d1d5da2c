"""The terminal is closed in which a gateway was started by hand."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.running_service import Service

NOWHERE = {"registry": {"remotetype": "dockerv2", "url": "http://127.0.0.1:9"}}


def test_a_hangup_stops_the_gateway_in_order(tmp_path: Path) -> None:
    """It ends as by SIGTERM, instead of at once with its work still marked as begun."""
    with Service(tmp_path, NOWHERE) as service:
        service.stop(signal.SIGHUP)
    log = service.log.read_text()
    assert "received SIGHUP" in log
    assert "Main loop terminated" in log


def test_nohup(tmp_path: Path) -> None:
    """Where SIGHUP is ignored at the start, it stays ignored."""
    with Service(tmp_path, NOWHERE, through=["nohup"]) as service:
        os.kill(service.pid, signal.SIGHUP)
        assert service.get("/livez")[0] == 200
    assert "received SIGHUP" not in service.log.read_text()
