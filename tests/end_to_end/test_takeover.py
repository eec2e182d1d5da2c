"""A gateway is pointed at the database, and the image directory, of the original one."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson.objectid import ObjectId

from shiftergw.oci.meta import read_meta
from tests import mongod
from tests.end_to_end.faulty import FaultyRegistry
from tests.end_to_end.test_mongo import converter, gateway
from tests.images import entry, make_image, tar_of
from tests.parts import need
from tests.running_service import SYSTEM, Service, until
from tests.store.original import IN_ORDER, NOW, document

ROOT = "good:root:root::0:0"
CONTENT = b"what the original delivered"


@pytest.fixture(scope="module")
def registry() -> Iterator[FaultyRegistry]:
    """Run a registry with two images."""
    with FaultyRegistry() as running:
        for name in ("lib/app", "lib/new"):
            running.add(name, make_image([tar_of([entry("motd", os.urandom(1000))])]))
        yield running


@pytest.fixture
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Any]]:
    """Return a server's URI, a database's name, and pymongo's way there."""
    with (
        mongod.any_server(tmp_path_factory.mktemp("mongod")) as uri,
        mongod.database(uri) as (name, db),
    ):
        yield uri, name, db


def original(n: int, name: str, image_id: str, **changes: Any) -> dict[str, Any]:
    """Return a record of the original, whose expiration has passed."""
    members = {"system": SYSTEM, "pulltag": name, "tag": [name], "id": image_id, "expiration": 12.5}
    return {**document(n, IN_ORDER), **members, **changes}


def deliver(images: Path, image_id: str) -> None:
    """Put the files of an image where the original would have."""
    (images / f"{image_id}.squashfs").write_bytes(CONTENT)
    (images / f"{image_id}.meta").write_text("FORMAT: squashfs\nENV: A=1\n")


def test_everything_is_there(
    registry: FaultyRegistry, taken: tuple[str, str, Any], tmp_path: Path
) -> None:
    """What the original delivered is used as it is; what it did not end is pulled; all by users.

    Nothing is rewritten at the start, and nothing goes before it is said.
    """
    uri, name, db = taken
    program, runs = converter(tmp_path, f'{need("mksquashfs")} "$@"')
    service = gateway(tmp_path, registry, uri, name, Mksquashfs=program, PullUpdateTimeout=60)
    known = hashlib.sha256(registry.images["lib/app"].manifest).hexdigest()
    crashed = original(3, "lib/new:1", "", status="PULLING", tag=[])
    del crashed["id"]
    db["images"].insert_many(
        [
            original(1, "lib/app:1", known),
            original(2, "old/one:1", "b" * 64, tag="old/one:1"),
            crashed,
        ]
    )
    for image_id in (known, "b" * 64):
        deliver(service.images, image_id)
    before = str(mongod.everything(db)["images"])
    with service:
        _wait_for(service, "do not expire by themselves")
        assert str(mongod.everything(db)["images"]) == before
        _, listed = service.get(f"/api/list/{SYSTEM}/")
        assert {one["id"]: one["tag"] for one in listed["list"]} == {
            known: ["lib/app:1"],
            "b" * 64: ["old/one:1"],
        }
        assert service.lookup("old/one:1")[1]["id"] == "b" * 64
        again = service.pull("lib/app:1")
        assert (again["status"], again["id"], runs.exists()) == ("READY", known, False)
        assert (service.images / f"{known}.squashfs").read_bytes() == CONTENT
        new = service.pull("lib/new:1")
        assert (new["status"], len(runs.read_text().splitlines())) == ("READY", 1)
        assert db["images"].find_one({"_id": crashed["_id"]}) is None
        assert service.get(f"/api/expire/{SYSTEM}/docker/old%2Fone:1/", ROOT)[0] == 200
        until(lambda: not (service.images / f"{'b' * 64}.squashfs").exists(), 20, "its removal")
        assert service.lookup("old/one:1")[0] == 404
    found = db["images"].find_one({"_id": ObjectId(f"{1:024x}")})
    assert isinstance(found["last_pull"], float)
    assert found["last_pull"] > NOW


def test_expiry_is_switched_on(
    registry: FaultyRegistry, taken: tuple[str, str, Any], tmp_path: Path
) -> None:
    """From that start on images have their time, and only what is past it then goes."""
    uri, name, db = taken
    service = gateway(tmp_path, registry, uri, name, ScheduledExpiry=True)
    db["images"].insert_one(original(1, "old/one:1", "b" * 64))
    deliver(service.images, "b" * 64)
    with service:
        _wait_for(service, "images expire by themselves")
        assert db["images"].find_one()["expiration"] > time.time() + 89 * 86400
        db["images"].update_one({}, {"$set": {"expiration": 12.5}})
        service.stop()
        service.start()
        until(lambda: not (service.images / f"{'b' * 64}.squashfs").exists(), 20, "its removal")
    assert list(service.images.iterdir()) == []


def test_readers_change_and_the_command_stays(
    registry: FaultyRegistry, taken: tuple[str, str, Any], tmp_path: Path
) -> None:
    """The original's database holds no CMD; its metadata does, and says it afterwards, too."""
    uri, name, db = taken
    service = gateway(tmp_path, registry, uri, name)
    image_id = "b" * 64
    private = {"private": True, "userACL": [2001], "ENTRY": None}
    db["images"].insert_one(original(1, "old/one:1", image_id, **private))
    deliver(service.images, image_id)
    meta = service.images / f"{image_id}.meta"
    meta.write_text("FORMAT: squashfs\nCMD: ['sh', '-c', 'x']\nENV: A=1\nUSERACL: 2001\n")
    with service:
        path = f"/api/pull/{SYSTEM}/docker/old%2Fone:1/"
        change = b'{"allowed_uids":"2001,2002"}'

        def changed() -> bool:
            return bool(service.ask(path, ROOT, "POST", change)[1].get("status") == "READY")

        until(changed, 60, "the change of the readers")
        read = read_meta(meta.read_bytes())
        assert read.cmd == ("sh", "-c", "x")
        assert {2001, 2002} <= {*(read.user_acl or ())}
    assert (service.images / f"{image_id}.squashfs").read_bytes() == CONTENT


def test_autoexpire_names_an_odd_id(
    registry: FaultyRegistry, taken: tuple[str, str, Any], tmp_path: Path
) -> None:
    """What the record has in the place of an id is the answer."""
    uri, name, db = taken
    service = gateway(tmp_path, registry, uri, name)
    db["images"].insert_one(original(1, "old/one:1", "odd id"))
    with service:
        _wait_for(service, "do not expire by themselves")
        assert service.get(f"/api/autoexpire/{SYSTEM}/", ROOT) == (200, {"status": ["odd id"]})


def _wait_for(service: Service, text: str) -> None:
    until(lambda: text in service.log.read_text(), 20, f"that the log says: {text}")
