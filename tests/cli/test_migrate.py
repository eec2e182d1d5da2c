"""migrate as a process: from the SQLite file to the database of a configuration."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.ports import ImageStore
from tests import mongod
from tests.cli.command import ENVIRONMENT, shiftergw
from tests.configurations import change_document
from tests.patience import patient
from tests.store.places import mongo_running, running
from tests.store.pulls import NOW, complete_pull, request


@pytest.fixture(scope="module")
def mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URI of a MongoDB server."""
    with mongod.any_server(tmp_path_factory.mktemp("mongod")) as uri:
        yield uri


def write_config(root: Path, **keys: Any) -> str:
    """Write a configuration and return its path."""
    file = root / "imagemanager.json"
    file.write_text(json.dumps(change_document({"StateDirectory": str(root), **keys})))
    return str(file)


def migrate_soon(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `shiftergw migrate` in a program in which gateways have half a second to stop."""
    program = (
        "from functools import partial; from shiftergw.store import migration;"
        "migration.migrate = partial(migration.migrate, patience=0.5);"
        "from shiftergw.cli.start import main; main()"
    )
    argv = [sys.executable, "-c", program, "migrate", *arguments]
    return subprocess.run(
        argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=patient(60), check=False
    )


async def names(store: ImageStore) -> list[tuple[str, ...]]:
    """Return the tags of all records in a store."""
    return [record.tags for record in await store.list("alpha")]


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_from_the_file_to_the_database(mongodb: str, tmp_path: Path) -> None:
    """All records are in the database, and still in the file; a second run copies nothing.

    No password is shown.
    """
    async with running(tmp_path / "shiftergw.sqlite") as store:
        await complete_pull(store, request("x:1"), now=NOW)
    with mongod.database(mongodb) as (name, _):
        config = write_config(tmp_path, MongoDBURI=mongodb, MongoDB=name)
        done = migrate_soon("--config", config)
        assert done.returncode == 0, done.stderr
        assert re.search("the same: 1 images, 0 blocks, 0 ranges, 0 look-ups", done.stdout)
        assert "waiting" in done.stderr
        async with mongo_running(mongodb, name) as tags:
            assert await names(tags) == [("x:1",)]
        second_run = shiftergw("migrate", "--config", config)
        assert (second_run.returncode, second_run.stdout) == (2, "")
        assert "copied into this database already" in second_run.stderr
    async with running(tmp_path / "shiftergw.sqlite") as store:
        assert await names(store) == [("x:1",)]


@pytest_twisted.ensureDeferred
async def test_obstacles_to_a_migration(tmp_path: Path) -> None:
    """Without database, file or server, or beside a gateway, the command fails with a message."""
    alone = shiftergw("migrate", "--config", write_config(tmp_path))
    assert (alone.returncode, "MongoDBURI" in alone.stderr) == (2, True)
    uri = "mongodb://gateway:secret@127.0.0.1:1/"
    config = write_config(tmp_path, MongoDBURI=uri, MongoDB="images")
    empty = shiftergw("migrate", "--config", config)
    assert (empty.returncode, "There is no database" in empty.stderr) == (2, True)
    async with running(tmp_path / "shiftergw.sqlite"):
        used = shiftergw("migrate", "--config", config)
        assert (used.returncode, "Stop the gateway" in used.stderr) == (1, True)
    no_server = shiftergw("migrate", "--config", config)
    assert (no_server.returncode, "127.0.0.1:1" in no_server.stderr) == (1, True)
    assert "secret" not in no_server.stderr
