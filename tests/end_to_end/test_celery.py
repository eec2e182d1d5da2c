"""A gateway with worker machines that die, stop and start again, and a broker that restarts.

With `SHIFTERGW_LONG=1` there are 200 pulls of 40 images on three machines.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import pymongo
import pytest

from tests import mongod
from tests.end_to_end.faulty import FaultyRegistry
from tests.end_to_end.test_uploads import UploadService, saved_image
from tests.images import entry, make_image, tar_of
from tests.parts import free_port, need
from tests.rabbitmq import RabbitMQ
from tests.running_service import ALICE, BOB, FINAL, SYSTEM, Service, until
from tests.wiretap import Wiretap
from tests.work.machines import WorkerMachine

LONG = os.environ.get("SHIFTERGW_LONG") == "1"
IMAGES, PULLS, MACHINES = (40, 200, 3) if LONG else (6, 12, 2)
PRIVATE_IMAGE = "closed/app:1"
OTHER_NAMES = [f"lib/other{n}" for n in range(5)]
PASSWORD = "correct-horse-battery"
WITH_LOGIN = f"good:alice:users:{PASSWORD}:2001:2100"
ADMIN = "good:root:root::0:0"


@pytest.fixture(scope="module")
def registry() -> Iterator[FaultyRegistry]:
    """Run a registry with public images, and one that requires a login."""
    with FaultyRegistry() as running:
        names = [*(f"lib/app{n}" for n in range(IMAGES)), *OTHER_NAMES, "closed/app"]
        for name in names:
            image = make_image([tar_of([entry("etc"), entry("etc/motd", os.urandom(50_000))])])
            running.add(name, image, "login" if name == "closed/app" else "")
        yield running


class Cluster:
    """A gateway, MongoDB, and worker machines, each with its own directories below `root`."""

    def __init__(
        self,
        root: Path,
        registry: FaultyRegistry,
        broker: RabbitMQ,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the configuration, with `changes`; the context starts the gateway."""
        self.root = root
        self.runs = root / "runs"
        self.machines: dict[int, WorkerMachine] = {}
        self.server = mongod.Mongod(root / "mongod", "--standalone", "--sync-on-commit")
        self.wire = Wiretap(broker.port)
        self._stack = ExitStack()
        program = root / "converter"
        real = need("mksquashfs")
        program.write_text(
            f'#!/bin/sh\n[ "$1" = -version ] && exec {real} -version\n'
            f'echo $$ >> "{self.runs}"\n'
            "trap 'kill $!; exit 143' TERM\nsleep 0.3 & wait $!\ntrap - TERM\n"
            f'exec {real} "$@"\n'
        )
        program.chmod(0o755)
        locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
        changes = {
            "MongoDBURI": self.server.uri,
            "MongoDB": "images",
            "BrokerURL": broker.url.replace(f":{broker.port}/", f":{self.wire.port}/"),
            "SecretKeyFile": str(root / "secret.key"),
            "Mksquashfs": str(program),
            "HeartbeatLimit": 4,
            "WorkerThreads": 1,
            **(changes or {}),
        }
        self.service = UploadService(root / "gateway", locations, changes)
        document = json.loads(self.service.config.read_text())
        document["GatewayURL"] = self.service.url
        self.service.config.write_text(json.dumps(document))

    def __enter__(self) -> Self:
        """Start the database and the gateway."""
        with ExitStack() as stack:
            stack.enter_context(self.wire)
            stack.enter_context(self.server)
            stack.enter_context(self.service)
            stack.callback(self.kill_machines)
            self.db = pymongo.MongoClient[dict[str, Any]](self.server.uri)
            stack.callback(self.db.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the machines, the gateway and the database."""
        self._stack.close()

    def kill_machines(self) -> None:
        """Kill all machines."""
        for number in list(self.machines):
            self.cut(number)

    def start(self, number: int, *options: str) -> None:
        """Start a machine."""
        place = self.root / f"machine{number}"
        place.mkdir(exist_ok=True)
        document = json.loads(self.service.config.read_text())
        document |= {
            name: str(place / name)
            for name in ("StateDirectory", "CacheDirectory", "ExpandDirectory")
        }
        config = place / "imagemanager.json"
        config.write_text(json.dumps(document))
        env = {"GWCONFIG": str(config)}
        self.machines[number] = WorkerMachine(
            f"node{number}",
            SYSTEM,
            1,
            place / "log",
            env,
            app="shiftergw.work.celery",
            options=options,
        )

    def jobs(self, number: int) -> list[int]:
        """Return the ids of the worker processes of a machine."""
        name = str(self.root / f"machine{number}").encode()
        pids = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                line = (process / "cmdline").read_bytes()
                if b"shiftergw.runner" in line and name in line:
                    pids.append(int(process.name))
        return pids

    def sleep(self, seconds: float) -> None:
        """Make each conversion sleep for `seconds` first."""
        program = self.root / "converter"
        program.write_text(re.sub(r"sleep [0-9.]+", f"sleep {seconds}", program.read_text()))

    def cut(self, number: int) -> None:
        """Kill all processes of a machine at once, as a power cut does."""
        machine = self.machines.pop(number)
        machine.kill()
        for job in self.jobs(number):
            with suppress(ProcessLookupError):
                os.killpg(job, signal.SIGKILL)

    def list_machines(self) -> list[dict[str, Any]]:
        """Return the machines that the gateway shows to admins."""
        status, body = self.service.get(f"/api/workers/{SYSTEM}/", ADMIN)
        assert status == 200, body
        rows: list[dict[str, Any]] = body["list"]
        return rows

    def rows(self, number: int) -> list[dict[str, Any]]:
        """Return the rows that the gateway shows for a machine."""
        return [row for row in self.list_machines() if row["name"] == f"celery@node{number}"]

    def children(self, number: int) -> str:
        """Return the names of the programs that the jobs of a machine have started."""
        groups = set(self.jobs(number))
        names = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                name, _, rest = (process / "stat").read_text().rpartition(")")
                if int(rest.split()[2]) in groups:
                    names.append(name)
        return " ".join(names)

    def has_all_machines(self) -> bool:
        """Return whether the gateway shows all machines."""
        return len(self.list_machines()) >= len(self.machines)

    def records(self, but: str = "lib/other") -> list[dict[str, Any]]:
        """Return the records in the database, except those with a tag that begins with `but`."""
        records = self.db["images"]["images"].find()
        return [record for record in records if but not in json.dumps(record, default=str)]

    def conversions(self) -> int:
        """Return how many conversions have begun."""
        return len(self.runs.read_text().splitlines()) if self.runs.exists() else 0

    def attempts(self) -> int:
        """Return the number of attempts of all records."""
        return sum(record["attempt"] for record in self.records("no tag"))

    def record(self, tag: str) -> dict[str, Any]:
        """Return the record with a tag."""
        records = self.records("no tag")
        (record,) = [record for record in records if tag in json.dumps(record, default=str)]
        return record


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, registry: FaultyRegistry, broker: RabbitMQ
) -> Iterator[Cluster]:
    """Return a running cluster."""
    with Cluster(tmp_path_factory.mktemp("cluster"), registry, broker) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """Return the cluster without machines and with short conversions."""
    running.sleep(0.3)
    yield running
    running.kill_machines()


def files_with_secret(place: Path, secret: bytes) -> list[Path]:
    """Return the files below a directory that contain a secret."""
    return [
        path
        for path in place.rglob("*")
        if path.is_file() and not path.is_symlink() and secret in path.read_bytes()
    ]


@pytest.mark.timeout(1200 if LONG else 150)
@pytest.mark.slow
def test_machines_die_and_the_broker_restarts(cluster: Cluster, broker: RabbitMQ) -> None:
    """All pulls end READY, no attempt converts twice, and no password is kept or sent in clear."""
    chance = random.Random(7)
    runs, attempts = cluster.conversions(), cluster.attempts()
    for number in range(MACHINES):
        cluster.start(number)
    cluster.service.poll(PRIVATE_IMAGE, WITH_LOGIN)
    wishes = [(f"lib/app{n % IMAGES}:1", BOB if n % 2 else ALICE) for n in range(PULLS)]
    answers: dict[tuple[str, str], str] = {}
    until(cluster.has_all_machines, 60, "the machines")
    has_restarted = False
    next_cut = time.monotonic() + 3
    deadline = time.monotonic() + (1000 if LONG else 120)
    waiting = [*wishes, (PRIVATE_IMAGE, WITH_LOGIN)]
    while waiting:
        assert time.monotonic() < deadline, (waiting, cluster.records())
        for wish in list(waiting):
            status = cluster.service.poll(*wish)["status"]
            answers[wish] = status
            if status in FINAL:
                waiting.remove(wish)
        if time.monotonic() > next_cut and (LONG or not has_restarted):
            number = chance.randrange(MACHINES)
            if LONG and chance.random() < 0.3:
                cluster.machines[number].signal_all(signal.SIGSTOP)
                time.sleep(6)  # longer than the limit of heartbeats
                cluster.machines[number].signal_all(signal.SIGCONT)
            else:
                cluster.cut(number)
                cluster.start(number)
            if not has_restarted:
                has_restarted = True
                with broker.outage():
                    cluster.service.poll("lib/app0:1")
            next_cut = time.monotonic() + 12
        time.sleep(0.2)
    assert has_restarted
    assert set(answers.values()) == {"READY"}
    records = cluster.records()
    assert len(records) == IMAGES + 1
    assert {record["status"] for record in records} == {"READY"}
    runs, attempts = cluster.conversions() - runs, cluster.attempts() - attempts
    assert IMAGES + 1 <= runs <= attempts, (runs, attempts)
    for secret in (PASSWORD, broker.password):
        logs = [*cluster.root.rglob("*log*"), broker.root / "output"]
        assert not [path for path in logs if path.is_file() and secret in path.read_text("latin1")]
    assert str(records[0]["_id"]).encode() in cluster.wire.recording
    assert PASSWORD.encode() not in cluster.wire.recording
    for place in (cluster.root / "mongod", broker.root, cluster.service.images):
        assert files_with_secret(place, PASSWORD.encode()) == []


def test_a_job_that_exceeds_the_soft_limit(cluster: Cluster) -> None:
    """The pull fails and names the limit, and the machine takes the next job."""
    cluster.sleep(300)
    cluster.start(11, "--soft-time-limit", "3")
    answer = cluster.service.pull("lib/other3:1")
    assert answer["status"] == "FAILURE"
    assert "limit of time" in answer["cause"]
    assert cluster.record("lib/other3:1")["attempt"] == 1
    left_over = (cluster.root / "machine11" / "ExpandDirectory").rglob("*")
    assert [path for path in left_over if path.is_file()] == []
    cluster.sleep(0.3)
    assert cluster.service.pull("lib/other0:1")["status"] == "READY"


def test_a_job_ends_with_its_machine(cluster: Cluster) -> None:
    """If only Celery is killed, its job stops by itself; the restarted machine runs it again."""
    cluster.start(12)
    cluster.sleep(300)
    cluster.service.poll("lib/other4:1")
    until(lambda: "sleep" in cluster.children(12), 60, "the conversion")
    cluster.sleep(0.3)
    machine = cluster.machines.pop(12)
    machine.send_signal(signal.SIGKILL)
    until(lambda: cluster.jobs(12) == [], 15, "the end of the job")
    machine.kill()
    cluster.start(12)
    assert cluster.service.pull("lib/other4:1")["status"] == "READY"
    assert cluster.record("lib/other4:1")["attempt"] == 2


def test_a_machine_is_drained_and_shown(cluster: Cluster) -> None:
    """An admin sees the job of a machine. After SIGTERM it finishes the job.

    It takes no other job until it is started again.
    """
    cluster.start(10)
    until(lambda: cluster.rows(10), 60, "the machine")
    cluster.sleep(1)
    cluster.service.poll("lib/other1:1")
    until(lambda: cluster.rows(10)[0]["jobs"] == ["lib/other1:1"], 20, "the job")
    (row,) = cluster.rows(10)
    assert (row["name"], row["slots"], row["systems"]) == ("celery@node10", 1, [SYSTEM])
    cluster.machines[10].send_signal(signal.SIGTERM)
    cluster.service.poll("lib/other2:1")
    until(lambda: cluster.machines[10].has_ended, 30, "the end of the machine")
    assert cluster.service.poll("lib/other1:1")["status"] == "READY"
    assert cluster.service.poll("lib/other2:1")["status"] not in FINAL
    assert cluster.service.get(f"/api/workers/{SYSTEM}/", ALICE)[0] == 403
    cluster.machines.pop(10)
    cluster.start(10)
    assert cluster.service.pull("lib/other2:1")["status"] == "READY"


@pytest.mark.parametrize("broker_away", ["wait", "refuse"])
def test_a_gateway_without_its_broker(cluster: Cluster, tmp_path: Path, broker_away: str) -> None:
    """The gateway serves requests; it queues or refuses new pulls, as `BrokerAway` says."""
    changes = {
        "MongoDBURI": cluster.server.uri,
        "MongoDB": f"without_{broker_away}",
        "BrokerURL": f"amqp://guest:secret@127.0.0.1:{free_port()}/",
        "BrokerAway": broker_away,
    }
    with Service(tmp_path, {"registry": {"remotetype": "dockerv2"}}, changes) as service:
        status, body = service.get(f"/api/pull/{SYSTEM}/docker/app:1/", ALICE, "POST")
        if broker_away == "wait":
            assert status == 200, body
            assert service.poll("app:1")["status"] == "PENDING"
        else:
            assert status == 503, body
            assert "No worker can be reached" in str(body)
        assert service.get(f"/api/list/{SYSTEM}/")[0] == 200
    assert "secret" not in service.log.read_text()


def test_a_machine_fetches_an_upload(cluster: Cluster) -> None:
    """A machine without the gateway's disk gets the file over HTTP, and keeps no part of it.

    A machine that dies leaves the job to the next one.
    """
    service = cluster.service
    upload_id = service.upload(saved_image("app:1", size=9_500_000))
    body = json.dumps({"upload": upload_id}).encode()

    def is_working() -> bool:
        path = f"/api/pull/{SYSTEM}/custom/mine:1/"
        _, answer = service.ask(path, ALICE, "POST", body)
        return answer is not None and answer["status"] not in {"INIT", "PENDING"}

    cluster.start(1)
    until(is_working, 40, "the begin of the work")
    cluster.kill_machines()
    cluster.start(2)
    ready = service.wait_for_end("mine:1", {"upload": upload_id})
    assert ready["status"] == "READY", ready
    assert (service.images / f"{ready['id']}.squashfs").stat().st_size > 9_000_000
    assert service.spool == []
    scratch = cluster.root / "machine2" / "ExpandDirectory" / "uploads"
    until(lambda: not list(scratch.glob("*")), 20, "the end of the clean-up")
