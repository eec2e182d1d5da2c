"""The steps of `docs/takeover.md` take a site over from the original gateway, and back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from bson.objectid import ObjectId

from tests import mongod
from tests.cli import command, manual
from tests.end_to_end.faulty import FaultyRegistry
from tests.images import entry, make_image, tar_of
from tests.munged import MungeDaemon
from tests.parts import need
from tests.running_service import POLL_PAUSE, SYSTEM, Service, until
from tests.store.original import IN_ORDER, document
from tests.store.original_reader import OriginalReader

PAGE = manual.ROOT / "docs" / "takeover.md"
SAMPLE = manual.ROOT / "conf" / "local-mongodb.json"
READER, STRANGER = (2001, 2100), (2002, 2100)
"""Uid and gid of the user on the list of a private image, and of another."""

CONTENT = b"what the original delivered"
PRIVATE_ID = "b" * 64


class TakenOverSite:
    """A site of the original: its configuration, its database, its image directory."""

    def __init__(self, root: Path, uri: str, name: str, db: Any) -> None:
        """Write what the original leaves; nothing runs until the context is entered."""
        self.db = db
        self.registry = FaultyRegistry()
        self.munged = MungeDaemon()
        self.service = Service(root, {"none": {"remotetype": "dockerv2"}})
        for image in ("lib/app", "lib/new"):
            layer = tar_of([entry("motd", image.encode())])
            self.registry.add(image, make_image([layer]))
        self.public_id = hashlib.sha256(self.registry.images["lib/app"].manifest).hexdigest()
        text = SAMPLE.read_text().replace("/images", str(self.service.images))
        configuration = json.loads(text)
        configuration |= {"MongoDBURI": uri, "MongoDB": name}
        platform = configuration["Platforms"][SYSTEM]
        platform["mungeSocketPath"] = str(self.munged.socket)
        platform["admins"] = [os.getuid()]
        (location,) = configuration["Locations"].values()
        location["url"] = f"http://{self.registry.host}"
        # What the unit and the machine of this gateway add.
        configuration |= {
            "Listen": f"tcp:{self.service.port}:interface=127.0.0.1",
            "StateDirectory": str(root / "state"),
        }
        self.service.config.write_text(json.dumps(configuration))

    def __enter__(self) -> Self:
        """Start what the site has beside a gateway."""
        self.munged.__enter__()
        self.registry.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self.service.stop()
        self.registry.__exit__(None, None, None)
        self.munged.__exit__(None, None, None)

    def add_record(self, n: int, name: str, image_id: str, **changes: Any) -> None:
        """Write a record of the original, and the files of its image if it is READY."""
        members = {"system": SYSTEM, "pulltag": name, "tag": [name], "id": image_id, **changes}
        record = {**document(n, IN_ORDER), **members}
        if record["status"] == "READY":
            (self.service.images / f"{image_id}.squashfs").write_bytes(CONTENT)
            (self.service.images / f"{image_id}.meta").write_text("FORMAT: squashfs\nENV: A=1\n")
        else:
            del record["id"]
        self.db["images"].insert_one(record)

    def follow(self, text: str) -> str:
        """Do what a line of the manual says; return what it prints."""
        if text == "systemctl enable --now shiftergw":
            self.service.start()
        elif text == "systemctl disable --now shiftergw":
            self.service.stop()
        else:
            ((program, arguments),) = manual.calls_in(text)
            assert (program, arguments[-2]) == ("shiftergw", "--config")
            done = command.run(*arguments[:-1], str(self.service.config))
            assert done.returncode == 0, done
            return done.stdout.decode()
        return ""

    def ask(self, user: tuple[int, int], path: str, method: str = "GET") -> tuple[int, Any]:
        """Send a request as `shifterimg` does; return the status and the answer."""
        return self.service.get(f"/api/{path}", self.munged.encode_as(*user), method)

    def names_for(self, user: tuple[int, int]) -> set[str]:
        """Return the names of the images that a user is shown."""
        _, answer = self.ask(user, f"list/{SYSTEM}/")
        assert all(isinstance(row["last_pull"], float) for row in answer["list"])
        return {tag for row in answer["list"] for tag in row["tag"]}

    def pull(self, user: tuple[int, int], name: str) -> dict[str, Any]:
        """Poll a pull to its end; return the last answer."""

        def final_answer() -> dict[str, Any] | None:
            status, answer = self.ask(user, f"pull/{SYSTEM}/docker/{name}/", "POST")
            assert status == 200, answer
            return answer if answer["status"] in {"READY", "FAILURE"} else None

        return until(final_answer, 60, f"the end of the pull of {name}", POLL_PAUSE)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TakenOverSite]:
    """Return a site with a public image, a private one, and a pull that has not ended."""
    need("mksquashfs")
    with (
        mongod.any_server(tmp_path / "mongod") as uri,
        mongod.database(uri) as (name, db),
        TakenOverSite(tmp_path / "site", uri, name, db) as site,
    ):
        site.add_record(1, "lib/app:1", site.public_id)
        site.add_record(2, "old/own:1", PRIVATE_ID, private=True, userACL=[READER[0]])
        site.add_record(3, "lib/new:1", "", status="PULLING", tag=[])
        yield site


def test_there_and_back(site: TakenOverSite) -> None:
    """Images and access stay, pulls go on, and the original can read what is there at the end."""
    check, start, stop = [line.text for line in manual.block_lines(PAGE)]
    before = str(mongod.all_documents(site.db))
    report = site.follow(check)
    assert str(mongod.all_documents(site.db)) == before
    assert "3 records" in report

    site.follow(start)
    assert site.names_for(READER) == {"lib/app:1", "old/own:1"}
    assert site.names_for(STRANGER) == {"lib/app:1"}
    assert site.ask(READER, f"lookup/{SYSTEM}/docker/old%2Fown%3A1/")[1]["id"] == PRIVATE_ID
    assert site.ask(STRANGER, f"lookup/{SYSTEM}/docker/old%2Fown%3A1/")[0] == 404
    assert site.pull(STRANGER, "lib%2Fapp%3A1")["id"] == site.public_id
    new_id = site.pull(STRANGER, "lib%2Fnew%3A1")["id"]

    site.follow(stop)
    records = list(site.db["images"].find())
    reader = OriginalReader(site.db["images"], max(record["last_pull"] for record in records) + 1)
    assert [reader.offences(record) for record in records] == [[], [], []]
    assert site.db["images"].find_one({"_id": ObjectId(f"{1:024x}")})["id"] == site.public_id
    for name, image_id in (
        ("lib/app:1", site.public_id), ("old/own:1", PRIVATE_ID), ("lib/new:1", new_id),
    ):  # fmt: skip
        record = reader.ready(SYSTEM, "docker", name)
        assert record is not None
        assert record["id"] == image_id
        assert reader.pending_record(SYSTEM, "docker", name) is None
        assert reader.may_read(record, READER[0], [])
        assert reader.may_read(record, STRANGER[0], []) is (name != "old/own:1")
        files = [site.service.images / f"{image_id}.{kind}" for kind in ("squashfs", "meta")]
        assert all(file.is_file() for file in files)
        assert (files[0].read_bytes() == CONTENT) is (name != "lib/new:1")
