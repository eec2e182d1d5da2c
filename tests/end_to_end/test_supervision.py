"""A gateway as a service of systemd: it reports to the socket that the manager names."""

from __future__ import annotations

from pathlib import Path

from tests.notify_socket import NotifySocket
from tests.running_service import Service

LOCATIONS = {"registry": {"remotetype": "dockerv2", "url": "http://127.0.0.1:9"}}


def test_a_gateway_reports_its_state(tmp_path: Path) -> None:
    """It reports that it is ready once its store answers, signs of life, and its stop."""
    with NotifySocket(watchdog_seconds=1) as manager:
        service = Service(tmp_path, LOCATIONS, env=manager.env)
        service.start()
        try:
            address = f"tcp:{service.port}:interface=127.0.0.1"
            assert manager.wait_for("READY")["STATUS"] == f"Listening on {address}"
            manager.wait_for("WATCHDOG")
        finally:
            service.stop()
        assert manager.reports()[-1] == {"STOPPING": "1", "STATUS": "Stopping"}
