"""A worker as composed by the program keeps a converted image while its system hangs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.app import compose, deliveries
from shiftergw.app.worker import worker_service
from shiftergw.config import Config
from shiftergw.delivery.outage import BreakerWaits, SystemBreaker
from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Verification
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.configurations import change_document
from tests.end_to_end.faulty import FaultyRegistry
from tests.images import entry, make_image, tar_of
from tests.installed_reactor import reactor
from tests.parts import need
from tests.patience import stretch
from tests.sshd import Sshd


def configuration(root: Path, sshd: Sshd, registry: FaultyRegistry) -> Config:
    """Return the configuration of a gateway with one system that is reached over SSH."""
    need("mksquashfs")
    images = root / "images"
    images.mkdir()
    changes = {
        "StateDirectory": str(root / "state"),
        "CacheDirectory": str(root / "cache"),
        "ExpandDirectory": str(root / "expand"),
        "Locations/registry.example.com/url": f"http://{registry.host}",
        "Platforms/mycluster": {
            "accesstype": "remote",
            "host": ["127.0.0.1"],
            "squashfs": {"compressor": "gzip", "level": 1},
            "ssh": {
                "username": sshd.user,
                "imageDir": str(images),
                "key": str(sshd.key),
                "port": sshd.port,
                "knownHosts": str(sshd.known_hosts),
                "sshCmdOptions": ["-o", f"ConnectTimeout={stretch(2):.0f}"],
            },
        },
    }
    return Config.from_document(change_document(changes), base=root, environ={}).config


@pytest_twisted.ensureDeferred
@pytest.mark.slow
async def test_a_converted_image_waits_for_its_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the host hangs during the delivery, the next attempt delivers the same file."""
    monkeypatch.setattr(deliveries, "IDLE_SECONDS", stretch(1))
    waits = BreakerWaits(first=0.5, longest=0.5, probe=0.5)
    monkeypatch.setattr(deliveries, "SystemBreaker", partial(SystemBreaker, waits=waits))
    install = RemoteDirectory.install
    outage = ExitStack()
    installs = 0
    with Sshd() as sshd, FaultyRegistry() as registry, outage:

        async def stopping(*arguments: Any) -> Verification:
            nonlocal installs
            installs += 1
            if installs == 1:
                outage.enter_context(sshd.suspension())
            return await install(*arguments)

        monkeypatch.setattr(RemoteDirectory, "install", stopping)
        layer = tar_of([entry("etc"), entry("etc/issue", os.urandom(50_000))])
        registry.add("lib/app", make_image([layer]))
        config = configuration(tmp_path, sshd, registry)
        services, make_worker = worker_service(reactor, config)
        await services.startService()
        store = SqliteStore(reactor, compose.state_file(config))
        await store.startService()
        try:
            worker = make_worker()
            reference = ImageReference.parse("registry.example.com/lib/app:1")
            request = PullRequest("mycluster", "docker", reference, 2001)
            record, _ = await store.claim(request, reactor.seconds())
            await worker.run(record.key)
            waiting = await store.get(record.key)
            assert waiting is not None
            assert waiting.status is State.PENDING, waiting.status_message
            assert waiting.waits_for == "the system mycluster (its host does not answer)"
            (converted_file,) = (tmp_path / "expand").glob("*.squashfs")
            inode = converted_file.stat().st_ino
            outage.close()
            registry.faults["lib/app"] = "missing-layer"  # nothing can be fetched again
            last_record = waiting
            for _ in range(300):
                await pause(0.1, reactor)
                await worker.run(record.key)
                last_record = await store.get(record.key) or last_record
                if last_record.status is not State.PENDING:
                    break
            assert last_record.status is State.READY, last_record.status_message
            assert installs == 2
            assert converted_file.stat().st_ino == inode
        finally:
            await store.stopService()
            await services.stopService()
    assert sorted(path.suffix for path in (tmp_path / "images").iterdir()) == [
        ".meta",
        ".squashfs",
    ]
