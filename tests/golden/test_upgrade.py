"""A state directory of an earlier version, with work in flight, under the present gateway."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import children
from tests.golden.make_state import (
    ADMIN,
    ALICE_WITH_LOGIN,
    BOB_WITH_LOGIN,
    CHANGES,
    fetch,
    locations,
)
from tests.golden.quotes import is_in_source, quoted_lines, shape_of, wait_of
from tests.golden.records import check, mask, plain_name
from tests.golden.registry import Registry, image_of
from tests.golden.state import DATABASE, STATES, TREES, restore
from tests.patience import patient
from tests.running_service import ALICE, BOB, FINAL, Service, until

AUDIT = Path(__file__).with_name("audit")
MASKS = {
    "waits_until": "time",
    "since": "time",
    "_id": "key",
    "request_id": "request",
    "last_pull": "time",
    "last_heartbeat": "time",
    "expiration": "time",
    "not_before": "time",
    "modified": "time",
    "sha256": "digest",
    "sealed": "sealed",
    "runner": "host:pid",
    "waited": "seconds",
    "seconds": "stages",
    "steps": "stages",
}


@dataclass(frozen=True)
class Upgrade:
    """The results of a present gateway that has finished the work of an earlier version.

    `names` are the names of files that `audit` recorded, `documents` those of all records, ordered
    by tag, and `answers` the bodies of HTTP answers. `service` is the gateway, which still runs.
    """

    version: str
    service: Service
    registry: Registry
    names: Sequence[Sequence[Any]]
    documents: Sequence[Mapping[str, Any]]
    answers: Mapping[str, Any]


def _documents(path: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT document FROM images ORDER BY pulltag, key").fetchall()
    return [json.loads(row[0]) for row in rows]


def _answers(service: Service) -> dict[str, Any]:
    answers = {
        f"{what} of {name}": fetch(service, what, credential=credential)
        for what in ("list", "queue")
        for name, credential in (("alice", ALICE), ("bob", BOB), ("admin", ADMIN))
    }
    for answer in answers.values():
        answer["list"].sort(key=lambda row: str(row.get("image", row.get("tag"))))
    return {**answers, "metrics": fetch(service, "metrics", credential=ADMIN)}


def _in_flight(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as db:
        query = "SELECT pulltag FROM images WHERE json_extract(document, '$.claim') IS NOT NULL"
        return {row[0] for row in db.execute(query)}


@pytest.fixture(scope="module", params=sorted(path.name for path in STATES.iterdir()))
def upgrade(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Upgrade]:
    """Run the gateway on a recorded state until only the postponed work is in flight."""
    root = tmp_path_factory.mktemp("upgrade")
    notes = root / "notes"
    notes.touch()
    env = {"PYTHONPATH": str(AUDIT), "AUDIT_FILE": str(notes), "PYTHONDONTWRITEBYTECODE": "1"}
    with Registry() as registry:
        service = Service(root, locations(registry.url), CHANGES, env)
        restore(request.param, root, time.time())
        old = service.images / f"{image_of('lib/delivering').digest.hex}.meta.partial.{'2' * 16}"
        with service:
            later_work = {"lib/later:1"}
            until(lambda: _in_flight(root / DATABASE) == later_work, 20, "the end of the work")
            until(lambda: not old.exists(), 10, "the sweep of the image directory")
            names = [json.loads(line) for line in notes.read_text().splitlines()]
            assert service.poll("lib/ready:1")["status"] == "READY"
            documents, answers = _documents(root / DATABASE), _answers(service)
            yield Upgrade(request.param, service, registry, names, documents, answers)


def test_work_in_flight_is_finished(upgrade: Upgrade) -> None:
    """Every pull, removal and access list change succeeds, by the members of its record."""
    check(f"upgrade-{upgrade.version}-documents", mask(upgrade.documents, MASKS))


def test_users_see_the_images(upgrade: Upgrade) -> None:
    """Lists, the queue and the metrics show earlier images and those that were in flight."""
    check(f"upgrade-{upgrade.version}-answers", mask(upgrade.answers, {**MASKS, "time": "time"}))


def test_metadata(upgrade: Upgrade) -> None:
    """The `.meta` file beside each image has the recorded lines, which the runtime reads."""
    texts = {
        next(line for line in path.read_text().splitlines() if "NAME=" in line): path.read_text()
        for path in upgrade.service.images.glob("*.meta")
    }
    check(
        f"upgrade-{upgrade.version}-metadata",
        {name: text.splitlines() for name, text in sorted(texts.items())},
    )


def test_quoted_lines(upgrade: Upgrade) -> None:
    """The log has each line that the documents quote, and waits have the quoted reasons."""
    lines = upgrade.service.log.read_text().splitlines()
    waits = {line: wait_of(line) for line in quoted_lines()}
    assert waits
    absent = [
        line
        for line, wait in waits.items()
        if not (is_in_source(wait) if wait else any(map(shape_of(line).search, lines)))
    ]
    assert absent == []


def test_sealed_logins_reach_the_registry(upgrade: Upgrade) -> None:
    """Work that was claimed before the upgrade sends each user's own login to the registry."""
    users = {line.split()[2] for line in upgrade.registry.requests if len(line.split()) > 3}
    assert users == {"alice", "bob"}
    readers = {
        name: upgrade.service.lookup(name, credential)[1]["userACL"]
        for name, credential in (
            ("closed/waiting:1", ALICE_WITH_LOGIN),
            ("closed/ready:1", BOB_WITH_LOGIN),
            ("closed/shared:1", ALICE_WITH_LOGIN),
        )
    }
    assert readers == {
        "closed/waiting:1": [2001],
        "closed/ready:1": [2001, 2002],
        "closed/shared:1": [2001, 2003],
    }


def test_the_cache_is_used(upgrade: Upgrade) -> None:
    """A complete layer is not downloaded again, and half a layer is resumed."""
    blobs = [
        line for line in upgrade.registry.requests if line.startswith("GET") and "blobs" in line
    ]
    half = image_of("lib/pulling")
    layer = half.document["layers"][0]
    (request,) = [line for line in blobs if layer["digest"] in line]
    assert request.endswith(f" {layer['size'] // 2}")
    whole = image_of("lib/converting").document["layers"][0]["digest"]
    assert not [line for line in blobs if whole in line]


def test_breakers_hold_requests_back(upgrade: Upgrade) -> None:
    """A pull from a registry whose breaker is open waits, and sends no request."""

    def postponement() -> str | None:
        answer = upgrade.service.poll("limited/lib/new:1")
        message = str(answer["status_message"])
        waits = message.startswith("Waits until ")
        return message if waits or answer["status"] in FINAL else None

    message = until(postponement, 20, "a postponement")
    assert message.startswith("Waits until ")
    assert message.endswith(" for limited (rate limit)")
    assert not [line for line in upgrade.registry.requests if "lib/new" in line]


def test_blocks_stay(upgrade: Upgrade) -> None:
    """An image that was taken down is refused."""
    answer = upgrade.service.pull("lib/blocked:1", seconds=20)
    assert (answer["status"], answer["retryable"]) == ("FAILURE", False)


def timeless_name(name: str) -> str:
    """Return a name in its recorded form.

    Whether a small layer is packed before or after the end of its download is a matter of time.
    """
    return plain_name(name).replace("-early.part", ".part")


def test_names_on_disk(upgrade: Upgrade) -> None:
    """Temporary and final files have the recorded names."""
    root = str(upgrade.service.root)
    creations = set()
    for kind, *names in upgrade.names:
        if kind != "run" and all(name.startswith(root) for name in names):
            short = [timeless_name(name.removeprefix(f"{root}/")) for name in names]
            if short[-1].startswith(TREES) and len(set(short)) == len(short):
                creations.add(" ".join([kind, *short]))
    files = {
        plain_name(str(path.relative_to(root)))
        for tree in TREES
        for path in Path(root, tree).rglob("*")
        if path.is_file()
    }
    check("disk", {"creations": sorted(creations), "files": sorted(files)})


def test_commands_that_the_gateway_runs(upgrade: Upgrade) -> None:
    """The gateway starts workers, and a worker the converter, by the recorded commands."""
    root = str(upgrade.service.root)
    commands = set()
    for kind, *arguments in upgrade.names:
        if kind == "run":
            program, *rest = arguments[0]
            parts = [Path(program).name, *(part.replace(root, "ROOT") for part in rest)]
            commands.add(timeless_name(" ".join(parts)))
    check("commands-run", sorted(commands))


def test_lines_of_a_worker(upgrade: Upgrade) -> None:
    """A worker process reads a line for each record, and writes lines when ready and done."""
    key = "f" * 24
    worker = children.start(
        [sys.executable, "-m", "shiftergw.runner", "--config", upgrade.service.config],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker.stdin, worker.stdout:
        worker.stdin.write(json.dumps({"record": key}).encode() + b"\n")
        worker.stdin.flush()
        answers = [json.loads(worker.stdout.readline()) for _ in range(2)]
    assert worker.wait(patient(30)) == 0
    assert answers == [{"ready": True}, {"done": key}]
