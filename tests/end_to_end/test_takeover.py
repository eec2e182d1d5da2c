"""A gateway uses the database and the image directory of the original gateway."""

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
from tests.running_service import POLL_PAUSE, SYSTEM, Service, until
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
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Any]]:
    """Return a server's URI, the name of a database, and pymongo's object for it."""
    with (
        mongod.any_server(tmp_path_factory.mktemp("mongod")) as uri,
        mongod.database(uri) as (name, db),
    ):
        yield uri, name, db


def original(n: int, name: str, image_id: str, **changes: Any) -> dict[str, Any]:
    """Return a record of the original gateway, whose expiration has passed."""
    members = {"system": SYSTEM, "pulltag": name, "tag": [name], "id": image_id, "expiration": 12.5}
    return {**document(n, IN_ORDER), **members, **changes}


def deliver(images: Path, image_id: str) -> None:
    """Write the files of an image as the original gateway does."""
    (images / f"{image_id}.squashfs").write_bytes(CONTENT)
    (images / f"{image_id}.meta").write_text("FORMAT: squashfs\nENV: A=1\n")


def test_images_and_records_are_used(
    registry: FaultyRegistry, database: tuple[str, str, Any], tmp_path: Path
) -> None:
    """Delivered images are used as they are, and an unfinished pull is pulled again on request.

    The start changes no record, and no image expires unless `ScheduledExpiry` is set.
    """
    uri, name, db = database
    program, runs = converter(tmp_path, f'{need("mksquashfs")} "$@"')
    service = gateway(tmp_path, registry, uri, name, Mksquashfs=program, PullUpdateTimeout=60)
    image_id = hashlib.sha256(registry.images["lib/app"].manifest).hexdigest()
    pulling = original(3, "lib/new:1", "", status="PULLING", tag=[])
    del pulling["id"]
    db["images"].insert_many(
        [
            original(1, "lib/app:1", image_id),
            original(2, "old/one:1", "b" * 64, tag="old/one:1"),
            pulling,
        ]
    )
    for delivered_id in (image_id, "b" * 64):
        deliver(service.images, delivered_id)
    before = str(mongod.all_documents(db)["images"])
    with service:
        _wait_for(service, "do not expire by themselves")
        assert str(mongod.all_documents(db)["images"]) == before
        _, body = service.get(f"/api/list/{SYSTEM}/")
        assert {image["id"]: image["tag"] for image in body["list"]} == {
            image_id: ["lib/app:1"],
            "b" * 64: ["old/one:1"],
        }
        assert service.lookup("old/one:1")[1]["id"] == "b" * 64
        answer = service.pull("lib/app:1")
        assert (answer["status"], answer["id"], runs.exists()) == ("READY", image_id, False)
        assert (service.images / f"{image_id}.squashfs").read_bytes() == CONTENT
        new = service.pull("lib/new:1")
        assert (new["status"], len(runs.read_text().splitlines())) == ("READY", 1)
        assert db["images"].find_one({"_id": pulling["_id"]}) is None
        assert service.get(f"/api/expire/{SYSTEM}/docker/old%2Fone:1/", ROOT)[0] == 200
        until(lambda: not (service.images / f"{'b' * 64}.squashfs").exists(), 20, "its removal")
        assert service.lookup("old/one:1")[0] == 404
    record = db["images"].find_one({"_id": ObjectId(f"{1:024x}")})
    assert isinstance(record["last_pull"], float)
    assert record["last_pull"] > NOW


def test_expiry_is_switched_on(
    registry: FaultyRegistry, database: tuple[str, str, Any], tmp_path: Path
) -> None:
    """The start gives each image an expiry time, and only images past that time expire."""
    uri, name, db = database
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


def test_a_change_of_readers_keeps_the_command(
    registry: FaultyRegistry, database: tuple[str, str, Any], tmp_path: Path
) -> None:
    """The original's database has no CMD; the metadata keeps its CMD through the change."""
    uri, name, db = database
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

        def has_changed() -> bool:
            return bool(service.ask(path, ROOT, "POST", change)[1].get("status") == "READY")

        until(has_changed, 60, "the change of the readers", POLL_PAUSE)
        read = read_meta(meta.read_bytes())
        assert read.cmd == ("sh", "-c", "x")
        assert {2001, 2002} <= {*(read.user_acl or ())}
    assert (service.images / f"{image_id}.squashfs").read_bytes() == CONTENT


def test_autoexpire_names_an_odd_id(
    registry: FaultyRegistry, database: tuple[str, str, Any], tmp_path: Path
) -> None:
    """The answer names a record by its id, even if that is not a digest."""
    uri, name, db = database
    service = gateway(tmp_path, registry, uri, name)
    db["images"].insert_one(original(1, "old/one:1", "odd id"))
    with service:
        _wait_for(service, "do not expire by themselves")
        assert service.get(f"/api/autoexpire/{SYSTEM}/", ROOT) == (200, {"status": ["odd id"]})


def _wait_for(service: Service, text: str) -> None:
    until(lambda: text in service.log.read_text(), 20, f"that the log says: {text}")
