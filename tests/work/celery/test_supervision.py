"""The service manager learns when a worker machine is ready, that it lives, and when it stops."""

from __future__ import annotations

import logging
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from shiftergw.plumbing.service_manager import ServiceManager
from shiftergw.work.celery.supervision import MachineSupervision, SupervisionStep
from tests.notify_socket import NotifySocket
from tests.work.celery.test_machine_faults import FakeConsumer
from tests.work.machines import StartMachine


def consumer_with(supervision: MachineSupervision) -> Any:
    """Return a consumer of the queue `alpha`, whose machine has this supervision."""
    consumer: Any = FakeConsumer("alpha")
    consumer.shiftergw_supervision = supervision
    consumer.amqp = SimpleNamespace(queues=SimpleNamespace(consume_from={"alpha": consumer}))
    return consumer


def supervision_for(manager: NotifySocket) -> MachineSupervision:
    """Return a supervision that reports to a socket."""
    return MachineSupervision(ServiceManager.from_environment(manager.env))


def test_connections_to_the_broker() -> None:
    """Each connection is reported, a lost one is a status, and a single timer runs."""
    with NotifySocket(watchdog_seconds=2) as manager:
        consumer = consumer_with(supervision_for(manager))
        step = SupervisionStep(consumer)
        for _ in range(3):
            step.start(consumer)
            step.stop(consumer)
            assert manager.reports() == [
                {"READY": "1", "STATUS": "Connected to the broker, for alpha"},
                {"STATUS": "Waiting for the broker"},
                {"WATCHDOG": "1"},
            ]
        assert consumer.timer.running == 1


def test_nothing_follows_the_stop() -> None:
    """While the last jobs end, the status stays that of the stop."""
    with NotifySocket() as manager:
        supervision = supervision_for(manager)
        supervision.report_stop(sig="SIGTERM", how="Warm", exitcode=0)
        supervision.report_wait()
        assert [report["STOPPING"] for report in manager.reports()] == ["1"]


def test_a_machine_without_a_watchdog() -> None:
    """No timer runs for a manager without a watchdog, or for no manager."""
    with NotifySocket() as manager:
        for supervision in (supervision_for(manager), MachineSupervision(None)):
            consumer = consumer_with(supervision)
            SupervisionStep(consumer).start(consumer)
            supervision.beat()
            assert consumer.timer.running == 0
        assert manager.reports() == [{"READY": "1", "STATUS": "Connected to the broker, for alpha"}]


def test_a_manager_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """A report that cannot be sent is logged, and the machine goes on."""
    with NotifySocket() as manager:
        supervision = supervision_for(manager)
    with caplog.at_level(logging.WARNING):
        supervision.report(READY="1")
    assert "cannot be reached at $NOTIFY_SOCKET" in caplog.text


@pytest_twisted.ensureDeferred
async def test_a_machine_reports_its_state(
    start_machine: StartMachine, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real machine reports the wait for the broker, readiness, signs of life, and its stop."""
    with NotifySocket(watchdog_seconds=1) as manager:
        for name, value in manager.env.items():
            monkeypatch.setenv(name, value)
        machine = start_machine("one")
        report = await deferToThread(manager.next_report)
        assert report == {"STATUS": "Waiting for the broker"}
        report = await deferToThread(manager.wait_for, "READY")
        assert report["STATUS"] == f"Connected to the broker, for {system}"
        await deferToThread(manager.wait_for, "WATCHDOG")
        machine.send_signal(signal.SIGTERM)
        assert "STATUS" in await deferToThread(manager.wait_for, "STOPPING")
