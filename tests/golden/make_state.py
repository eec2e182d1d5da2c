"""Record the state of the present version: `python -m tests.golden.make_state NAME`.

It creates `states/NAME` with records in each state and work in flight. Do this for a new version
before its release. A recorded state is never written again: it is what a site has on its disks.

A gateway pulls images as usual. It is killed while `mksquashfs` runs for one pull and other pulls
wait. The store then moves some of these into the states in which a kill rarely finds a record.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from twisted.internet import task
from twisted.internet.defer import Deferred

from tests.golden import program, wire
from tests.golden.registry import PASSWORDS, Registry, image_of
from tests.golden.state import STATES, record
from tests.parts import need
from tests.running_service import ALICE, SYSTEM, Service, until

if TYPE_CHECKING:
    from tests.installed_reactor import PosixReactor

ADMIN = "good:root:root::0:0"
ALICE_WITH_LOGIN = f"good:alice:users:{PASSWORDS['alice']}:2001:2100"
BOB_WITH_LOGIN = f"good:bob:users:{PASSWORDS['bob']}:2002:2100"
AGE = 100.0
"""Seconds between the kill and the present time of the recorded state: all heartbeats are old."""

WAITING = (
    "waiting", "pulling", "examining", "delivering", "again", "postponed", "later", "system",
)  # fmt: skip
"""Repositories (below `lib/`) whose pulls are in flight."""


def locations(url: str) -> dict[str, Mapping[str, Any]]:
    """Return the registries of the configuration: two names for the same registry."""
    return {name: {"remotetype": "dockerv2", "url": url} for name in ("registry", "limited")}


CHANGES = {"Metrics": True, "ENABLE_LABELS": True, "WorkerThreads": 1}
"""Keys of the configuration beside those of `Service`."""


def fetch(
    service: Service, what: str, image: str = "", credential: str = ALICE, body: str = ""
) -> Any:
    """Return the body of the answer to a request, which must succeed; POST for a pull."""
    path = f"/api/{what}/{SYSTEM}/" + (f"docker/{quote(image, safe='')}/" if image else "")
    method = "POST" if what == "pull" else "GET"
    status, answer = service.ask(path, credential, method, body.encode())
    assert status == 200, (what, image, answer)
    return answer


def pull_all(service: Service) -> None:
    """Pull images to their end, expire one, take one down, and look one up."""
    for name in ("lib/ready:1", "lib/removed:1", "lib/gone:1", "lib/blocked:1"):
        assert service.pull(name)["status"] == "READY", name
    for name in ("closed/ready:1", "closed/shared:1"):
        assert service.pull(name, ALICE_WITH_LOGIN)["status"] == "READY", name
    assert service.pull("missing/app:1")["status"] == "FAILURE"
    assert service.pull("closed/ready:2", ALICE_WITH_LOGIN)["status"] == "FAILURE"
    fetch(service, "expire", "lib/gone:1", ADMIN)
    image_id = fetch(service, "lookup", "lib/blocked:1")["id"]
    status, _ = service.ask(f"/api/takedown/{SYSTEM}/{image_id}", ADMIN, "POST")
    assert status == 200
    fetch(service, "lookup", "lib/ready:1")
    files = [f"{image_of('lib/gone').digest.hex}.squashfs", f"{image_id}.squashfs"]
    until(lambda: not any((service.images / name).exists() for name in files), 30, "the removal")


def begin_all(service: Service) -> None:
    """Request several pulls; return when the first is in its conversion, and the others wait."""
    service.poll("lib/converting:1")
    until(lambda: service.poll("lib/converting:1")["status"] == "CONVERSION", 30, "a conversion")
    for name in WAITING:
        service.poll(f"lib/{name}:1")
    service.poll("closed/waiting:1", ALICE_WITH_LOGIN)
    service.poll("closed/ready:1", BOB_WITH_LOGIN)
    readers = json.dumps({"allowed_uids": "2001,2003", "allowed_gids": "2300"})
    fetch(service, "pull", "closed/shared:1", ALICE_WITH_LOGIN, readers)
    fetch(service, "expire", "lib/removed:1", ADMIN)


async def advance_records(reactor: PosixReactor, root: Path) -> float:
    """Move some of the waiting records into other states; return the present time."""
    now = time.time() + AGE
    start = time.time()
    async with program.sqlite_store(reactor, root / "state" / "shiftergw.sqlite") as store:
        keys = {record.pulltag: record.key for record in await store.queue(SYSTEM)}
        for name in WAITING[1:]:
            assert await store.begin(keys[f"lib/{name}:1"], "node1:7", start, 60) is not None
        pulling = keys["lib/pulling:1"]
        await store.heartbeat(pulling, 1, program.Progress("PULLING", 100, 200), start)
        for name in ("examining", "delivering"):
            key = keys[f"lib/{name}:1"]
            await store.advance(key, 1, program.State.EXAMINATION, "Examining image", start)
        key = keys["lib/delivering:1"]
        await store.advance(key, 1, program.State.CONVERSION, "Converting image", start)
        await store.advance(key, 1, program.State.TRANSFER, "Transferring image", start)
        image_id = image_of("lib/delivering").digest.hex
        await store.lease(str(root / "images"), image_id, f"{key}/1", start, 120)
        message = "The worker was killed; another one goes on."
        await store.requeue(keys["lib/again:1"], 1, message, died=True)
        why = "registry (rate limit)"
        await store.postpone(keys["lib/postponed:1"], 1, now - 1, why, start)
        reason = f"the system {SYSTEM} (its host does not answer)"
        await store.postpone(keys["lib/system:1"], 1, now - 1, reason, start, cause="system")
        await store.postpone(keys["lib/later:1"], 1, now + 3600, why, start)
        machine = "@MACHINE@"
        for name, end in (("limited", now + 600), ("registry", now - 1)):
            key = f"limit {name} anonymous {machine}"
            await store.trip_breaker(key, end, f"{name} (rate limit)", start)
    return now


def kill(service: Service) -> None:
    """Kill the gateway and its workers, as a power cut does."""
    workers = service.workers()
    service.stop(signal.SIGKILL)
    for worker in workers:
        os.killpg(worker, signal.SIGKILL)


def break_download(root: Path) -> None:
    """Leave half a layer in the cache, as an interrupted download does."""
    layer = image_of("lib/pulling").document["layers"][0]
    digest = layer["digest"].partition(":")[2]
    content = next(
        blob for name, blob in image_of("lib/pulling").blobs.items() if name.hex == digest
    )
    partial = root / "cache" / "sha256" / f"{digest}.partial"
    partial.write_bytes(content[: len(content) // 2])
    partial.chmod(0o600)


def leave_temporaries(root: Path) -> None:
    """Leave temporary files of deliveries that were killed a moment and a day ago."""
    image_id = image_of("lib/delivering").digest.hex
    for kind, digit, age in (("squashfs", "0", 0), ("squashfs", "1", 86400), ("meta", "2", 86400)):
        path = root / "images" / f"{image_id}.{kind}.partial.{digit * 16}"
        path.write_bytes(b"x")
        path.chmod(0o600)
        os.utime(path, (time.time() - age,) * 2)


def record_wire(target: Path) -> None:
    """Record the messages between a gateway and a worker machine of the present version."""
    messages = wire.gateway_messages()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "messages.json")
        file.write_text(json.dumps(messages), encoding="utf-8")
        states, _ = wire.machine_messages(file, Path(directory))
    document = {"gateway": messages, "machine": states}
    (target / "wire.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main(name: str) -> None:
    """Create `states/NAME`."""
    record_wire(STATES / name)
    with tempfile.TemporaryDirectory() as directory, Registry() as registry:
        root = Path(directory)
        slow = root / "mksquashfs"
        real = need("mksquashfs")
        slow.write_text(f'#!/bin/sh\n[ "$1" = -version ] && exec {real} -version\nexec sleep 60\n')
        slow.chmod(0o755)
        with Service(root, locations(registry.url), CHANGES) as service:
            pull_all(service)
        with Service(
            root, locations(registry.url), {**CHANGES, "Mksquashfs": str(slow)}
        ) as service:
            begin_all(service)
            kill(service)
        break_download(root)
        leave_temporaries(root)

        async def run(reactor: PosixReactor) -> None:
            record(root, STATES / name, await advance_records(reactor, root))

        task.react(lambda reactor: Deferred.fromCoroutine(run(reactor)), [])


if __name__ == "__main__":
    main(*sys.argv[1:])
