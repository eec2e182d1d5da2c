"""Jobs of worker machines that die or stop run again, without a wait for heartbeats."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.end_to_end.faulty import FaultyRegistry
from tests.end_to_end.test_celery import Cluster
from tests.images import entry, make_image, tar_of
from tests.rabbitmq import RabbitMQ
from tests.running_service import SYSTEM, until

ATTEMPT_SECONDS = 35.0
"""Time limit of a second attempt, which takes about two seconds on an idle machine."""

LONG_LIMIT = 3600
"""Seconds; a limit of heartbeats that no test reaches."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, broker: RabbitMQ) -> Iterator[Cluster]:
    """Return a running cluster with one machine."""
    with FaultyRegistry() as registry:
        for n in range(5):
            image = make_image([tar_of([entry("etc"), entry("etc/motd", os.urandom(50_000))])])
            registry.add(f"lib/app{n}", image)
        root = tmp_path_factory.mktemp("cluster")
        with Cluster(root, registry, broker, {"HeartbeatLimit": LONG_LIMIT}) as cluster:
            until(lambda: "No worker machine serves" in waiting(cluster), 40, "the message")
            cluster.start(1)
            assert cluster.service.pull("lib/app0:1", seconds=90)["status"] == "READY"
            yield cluster


def waiting(cluster: Cluster) -> str:
    """Return the message of the pull that waits."""
    return str(cluster.service.poll("lib/app0:1")["status_message"])


def begin(cluster: Cluster, image: str, number: int = 1) -> int:
    """Begin a long conversion; return the id of its worker process."""
    cluster.sleep(300)
    cluster.service.poll(image)
    until(lambda: "sleep" in cluster.children(number), 60, "the conversion")
    cluster.sleep(0.3)
    (job,) = cluster.jobs(number)
    return job


def test_a_job_that_is_killed(cluster: Cluster) -> None:
    """The message of the pull reports the signal, and the machine runs the job again."""
    os.kill(begin(cluster, "lib/app1:1"), signal.SIGKILL)
    messages: list[str] = []

    def has_ended() -> bool:
        answer = cluster.service.poll("lib/app1:1")
        messages.append(answer["status_message"])
        return bool(answer["status"] == "READY")

    until(has_ended, ATTEMPT_SECONDS, "the end")
    assert any("was killed by signal 9" in words for words in messages)
    assert cluster.record("lib/app1:1")["attempt"] == 2
    cluster.service.log_with(f"requeued: docker:lib/app1:1 on {SYSTEM}")


def test_the_parent_of_a_job_is_killed(cluster: Cluster) -> None:
    """The job reads the end of its input from Celery's process, and requeues its record."""
    job = begin(cluster, "lib/app2:1")
    parent = int(Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    assert cluster.service.pull("lib/app2:1", seconds=ATTEMPT_SECONDS)["status"] == "READY"
    assert cluster.record("lib/app2:1")["attempt"] == 2


def test_a_machine_that_is_stopped_at_once(cluster: Cluster) -> None:
    """After SIGQUIT its jobs requeue their records, and another machine takes them."""
    cluster.start(2)
    until(cluster.has_all_machines, 60, "the second machine")
    cluster.sleep(300)
    cluster.service.poll("lib/app3:1")
    until(lambda: any("sleep" in cluster.children(n) for n in (1, 2)), 60, "the conversion")
    cluster.sleep(0.3)
    busy = next(n for n in (1, 2) if "sleep" in cluster.children(n))
    machine = cluster.machines.pop(busy)
    try:
        machine.send_signal(signal.SIGQUIT)
        done = cluster.service.pull("lib/app3:1", seconds=ATTEMPT_SECONDS)
        assert done["status"] == "READY"
        until(lambda: machine.has_ended, 30, "the end of the machine")
        assert cluster.jobs(busy) == []
    finally:
        with suppress(ProcessLookupError):
            machine.kill()
