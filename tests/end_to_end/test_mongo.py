"""Gateways with MongoDB: restarted, without their server, and two with the same database."""

from __future__ import annotations

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pymongo
import pytest

from tests import mongod
from tests.end_to_end.faulty import FaultyRegistry
from tests.images import entry, make_image, tar_of
from tests.munged import MungeDaemon
from tests.parts import need
from tests.patience import patient
from tests.running_service import ALICE, POLL_PAUSE, SYSTEM, Service, until

NAME = "lib/app:1"
PRIVATE_IMAGE = "closed/app:1"
WITH_LOGIN = "good:alice:users:secret:2001:2100"
PASSWORD = "p@ss-word"
QUOTED_PASSWORD = "p%40ss-word"


@pytest.fixture(scope="module")
def registry() -> Iterator[FaultyRegistry]:
    """Run a registry with a public image, and one that requires a login."""
    with FaultyRegistry() as running:
        for name, fault in (("lib/app", ""), ("closed/app", "login")):
            image = make_image([tar_of([entry("etc"), entry("etc/motd", os.urandom(200_000))])])
            running.add(name, image, fault)
        yield running


@pytest.fixture(scope="module")
def mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URI of a MongoDB server."""
    with mongod.any_server(tmp_path_factory.mktemp("mongod")) as uri:
        yield uri


def gateway(root: Path, registry: FaultyRegistry, uri: str, name: str, **changes: Any) -> Service:
    """Return a gateway with a database, which is not started."""
    locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
    return Service(root, locations, {"MongoDBURI": uri, "MongoDB": name, **changes})


def refusal(service: Service, path: str, method: str) -> tuple[int, str | None]:
    """Return the status of a refused request, and the value of `Retry-After`."""
    headers = {"authentication": ALICE}
    request = urllib.request.Request(service.url + path, headers=headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=patient(20))
    with caught.value as answer:
        return answer.code, answer.headers["Retry-After"]


@pytest.mark.slow
def test_a_restarted_gateway_has_its_images(
    registry: FaultyRegistry, mongodb: str, tmp_path: Path
) -> None:
    """The state is in the database alone; beside it the gateway keeps its key and uploads."""
    need("mksquashfs")
    with mongod.database(mongodb) as (name, db):
        with gateway(tmp_path, registry, mongodb, name) as service:
            done = service.pull(NAME)
            assert done["status"] == "READY"
            service.stop()
            service.start()
            status, record = service.lookup(NAME)
            assert (status, record["id"]) == (200, done["id"])
            assert service.poll(NAME)["status"] == "READY"
        (document,) = db["images"].find()
    assert (document["status"], document["id"]) == ("READY", done["id"])
    files = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert files == ["secret.key", "uploads"]  # and no database


def test_a_server_that_is_down_at_the_start(registry: FaultyRegistry, tmp_path: Path) -> None:
    """The gateway starts, refuses requests with `Retry-After`, and works once the server does.

    It never logs the password of the database.
    """
    need("mksquashfs")
    server = mongod.Mongod(
        tmp_path / "mongod", "--standalone", "--sync-on-commit", login=f"gateway:{QUOTED_PASSWORD}@"
    )
    roles = [{"role": "readWrite", "db": "images"}]
    with server, pymongo.MongoClient[dict[str, Any]]("127.0.0.1", server.port) as client:
        client.admin.command("createUser", "gateway", pwd=PASSWORD, roles=roles)
    service = gateway(tmp_path / "service", registry, server.uri, "images")
    try:
        service.start(ready_path="/livez")
        for path, method in (
            ("/readyz", "GET"),
            (f"/api/pull/{SYSTEM}/docker/lib%2Fapp:1/", "POST"),
            (f"/api/lookup/{SYSTEM}/docker/lib%2Fapp:1/", "GET"),
        ):
            status, seconds = refusal(service, path, method)
            assert status == 503, path
            assert int(seconds or 0) > 0, path
        server.start("--auth")
        until(lambda: service.get("/readyz")[0] == 200, 15, "the recovery", POLL_PAUSE)
        assert service.pull(NAME)["status"] == "READY"
    finally:
        service.stop()
        server.kill()
    log = service.log.read_text()
    assert "the database is away" in log
    assert PASSWORD not in log
    assert QUOTED_PASSWORD not in log


def converter(root: Path, command: str) -> tuple[str, Path]:
    """Return a `mksquashfs` that records each conversion and runs `command`, and its record."""
    real, runs = need("mksquashfs"), root / "runs"
    program = root / "converter"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -version ] && exec {real} -version\n'
        f"echo $$ >> '{runs}'\nexec {command.format(real=real)}\n"
    )
    program.chmod(0o755)
    return str(program), runs


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_of_a_pull(
    registry: FaultyRegistry, tmp_path: Path
) -> None:
    """The pull continues: polls get the last answer again, and the image is converted once."""
    go = tmp_path / "go"
    waiting = f'sh -c \'until [ -e {go} ]; do sleep 0.1; done; exec {{real}} "$@"\' sh "$@"'
    program, runs = converter(tmp_path, waiting)
    with (
        mongod.Mongod(tmp_path / "mongod", "--standalone", "--sync-on-commit") as server,
        gateway(
            tmp_path / "service", registry, server.uri, "images", Mksquashfs=program
        ) as service,
    ):
        service.poll(NAME)
        until(runs.exists, 20, "the conversion")
        until(
            lambda: service.poll(NAME)["status"] == "CONVERSION", 5, "the status of the conversion"
        )
        server.kill()
        assert service.poll(NAME)["status"] == "CONVERSION"
        assert service.lookup(NAME)[0] == 503
        server.start()
        until(lambda: service.get("/readyz")[0] == 200, 15, "the recovery", POLL_PAUSE)
        go.touch()
        assert service.pull(NAME)["status"] == "READY"
    assert len(runs.read_text().splitlines()) == 1


def lose(service: Service) -> None:
    """Kill a gateway and all its workers at once, as if their machine died."""
    workers = service.workers()
    service.stop(signal.SIGKILL)
    for worker in workers:
        with suppress(ProcessLookupError):  # an idle worker may have exited by itself
            os.killpg(worker, signal.SIGKILL)


@pytest.mark.slow
def test_a_gateway_takes_up_the_work_of_another(
    registry: FaultyRegistry, mongodb: str, tmp_path: Path
) -> None:
    """Two gateways with the same database and key see the same pull, and convert it once.

    When one of them dies during the conversion, the other begins again, with the user's login.
    """
    local = {"imageDir": str(tmp_path / "images")}
    (tmp_path / "images").mkdir()
    common: Mapping[str, Any] = {
        "Platforms": {SYSTEM: {"accesstype": "local", "local": local}},
        "SecretKeyFile": str(tmp_path / "secret.key"),
        "HeartbeatLimit": 3,
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    hanging, first_runs = converter(tmp_path / "one", "sleep 600")
    working, second_runs = converter(tmp_path / "two", '{real} "$@"')
    with mongod.database(mongodb) as (name, _):
        first = gateway(tmp_path / "one", registry, mongodb, name, Mksquashfs=hanging, **common)
        second = gateway(tmp_path / "two", registry, mongodb, name, Mksquashfs=working, **common)
        try:
            first.start()
            first.poll(PRIVATE_IMAGE, WITH_LOGIN)
            until(first_runs.exists, 20, "the first conversion")
            second.start()
            until(
                lambda: second.poll(PRIVATE_IMAGE, WITH_LOGIN)["status"] == "CONVERSION",
                5,
                "the status of the conversion",
            )
            assert not second_runs.exists()
            lose(first)
            done = second.pull(PRIVATE_IMAGE, WITH_LOGIN, seconds=30)
            assert done["status"] == "READY"
            first.start()
            assert first.lookup(PRIVATE_IMAGE, WITH_LOGIN)[1]["id"] == done["id"]
            assert first.poll(PRIVATE_IMAGE, WITH_LOGIN)["status"] == "READY"
        finally:
            first.stop()
            second.stop()
    assert [len(runs.read_text().splitlines()) for runs in (first_runs, second_runs)] == [1, 1]
    assert sorted(path.suffix for path in (tmp_path / "images").iterdir()) == [".meta", ".squashfs"]


@pytest.mark.slow
def test_a_credential_counts_once_at_two_gateways(registry: FaultyRegistry, tmp_path: Path) -> None:
    """A credential that one gateway has accepted is refused by the other.

    While their server is down, only a client that already polls gets an answer, which repeats the
    last. Credentials of that time count as used once the server is up again.
    """
    program, _ = converter(tmp_path, "sleep 600")
    server = mongod.Mongod(tmp_path / "mongod", "--standalone", "--sync-on-commit")
    with server, MungeDaemon() as munged, MungeDaemon(key=munged.key) as second_munged:

        def at(root: str, daemon: MungeDaemon) -> Service:
            local = {"imageDir": str(tmp_path / root)}
            system = {"accesstype": "local", "mungeSocketPath": str(daemon.socket), "local": local}
            (tmp_path / root).mkdir()
            return gateway(
                tmp_path / root, registry, server.uri, "images", Authentication="munge",
                Platforms={SYSTEM: system}, Mksquashfs=program,
            )  # fmt: skip

        def ask(service: Service, path: str, credential: str, method: str = "GET") -> int:
            return service.ask(f"/api/{path}/", credential, method)[0]

        with at("one", munged) as first, at("two", second_munged) as second:
            credential = munged.encode()
            assert ask(first, f"list/{SYSTEM}", credential) == 200
            assert ask(second, f"list/{SYSTEM}", credential) == 401
            assert ask(second, f"list/{SYSTEM}", munged.encode()) == 200
            first.poll(NAME, munged.encode())
            server.kill()
            caught = munged.encode()
            assert first.poll(NAME, caught)["status"] in {"INIT", "PULLING"}
            pull = f"pull/{SYSTEM}/docker/lib%2Fapp:1"
            assert (
                ask(second, pull, munged.encode(), "POST") == 503
            )  # no client of this gateway polls this pull
            assert ask(first, f"list/{SYSTEM}", munged.encode()) == 503
            assert ask(first, f"expire/{SYSTEM}/docker/lib%2Fapp:1", munged.encode()) == 503
            server.start()
            path = f"/api/list/{SYSTEM}/"
            until(
                lambda: first.get(path, munged.encode())[0] == 200, 15, "the recovery", POLL_PAUSE
            )
            collection = "shiftergw.credentials"
            with pymongo.MongoClient[dict[str, Any]](server.uri) as client:
                count = client["images"][collection].count_documents
                until(lambda: count({}) >= 6, 10, "the record of the used credentials")
            assert ask(second, f"list/{SYSTEM}", caught) == 401
