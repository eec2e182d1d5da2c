"""Two gateways and many clients on one database, while processes and servers die or hang at random.

The short form takes half a minute. `SHIFTERGW_TEST_CHAOS=1` selects the long form: two minutes and
500 clients. Each event is printed with its time.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymongo
import pytest

from shiftergw.rules.attempts import MAX_ATTEMPTS
from tests import mongod
from tests.end_to_end.faulty import FaultyRegistry
from tests.images import entry, make_image, tar_of
from tests.parts import need
from tests.patience import patient
from tests.running_service import FINAL, SYSTEM, Service, until

SLOW_SECONDS = 15.0
"""Time limit of a request: one or two calls of the store that time out, on a slow machine."""

DEATHS = MAX_ATTEMPTS - 1
"""Deaths of processes: after one more, a pull that each of them hits would be given up."""

HEARTBEAT_LIMIT = 6


@dataclass(frozen=True)
class Form:
    """The size of the test; clients poll every `interval` seconds.

    On an idle machine no client waits longer than `patience` seconds for an image. 500 clients keep
    150 images in the queue: more than a minute of work, and the database is down half of the time.
    """

    seconds: float
    clients: int
    images: int
    interval: float
    patience: float


SHORT = Form(15, 30, 24, 0.5, 90)
LONG = Form(120, 500, 150, 4, 180)
FORM = LONG if os.environ.get("SHIFTERGW_TEST_CHAOS") else SHORT


def longest_wait() -> float:
    """Return how many seconds a client waits for an image; more on a busy machine."""
    return max(FORM.patience, patient(FORM.patience / 3))


@dataclass
class Site:
    """The server, the gateways, and the events so far."""

    server: mongod.Mongod
    gateways: Sequence[Service]
    names: Sequence[str]
    lives: Counter[int] = field(default_factory=Counter)
    deaths: list[tuple[float, float]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    ready: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def had_all_faults(self) -> bool:
        """Return whether each kind of fault has happened."""
        return self.counts["outages"] >= 2 and self.counts["deaths"] >= 3

    def note(self, event: str) -> None:
        """Print an event with its time."""
        print(f"{time.time():.3f} {event}")  # noqa: T201 - pytest shows it if the test fails

    def lose(self, number: int) -> None:
        """Kill a gateway and all its workers at once, as if its machine died."""
        workers = self.gateways[number].workers()
        self.lives[number] += 1
        self.gateways[number].stop(signal.SIGKILL)
        for worker in workers:
            with suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)

    def restart(self, number: int) -> None:
        """Stop a gateway as an admin does."""
        self.lives[number] += 1
        self.gateways[number].stop()

    def kill_worker(self, number: int) -> None:
        """Kill one worker of a gateway."""
        for worker in self.gateways[number].workers()[:1]:
            with suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)


Ways = Sequence[tuple[str, Callable[[], object], Callable[[], object]]]
"""A description of each fault, a function that causes it, and one that ends it."""


class Client(threading.Thread):
    """A user who pulls one image after another and looks it up."""

    def __init__(self, site: Site, number: int) -> None:
        """Make a user with a number."""
        super().__init__(daemon=True)
        self._site = site
        self._credential = f"good:user{number}:users::{3000 + number}:2100"
        self._chance = random.Random(number)
        self._gateway = number % len(site.gateways)

    def run(self) -> None:
        """Pull images until the test is over; finish the last pull."""
        time.sleep(self._chance.random() * FORM.interval)
        while not self._site.over.is_set():
            name = self._chance.choice(self._site.names)
            self._pull(name)
            self._look_up(name)

    def _pull(self, name: str) -> None:
        answering_lives: set[tuple[int, int]] = set()
        limit = longest_wait()
        end = time.monotonic() + limit
        while time.monotonic() < end:
            status, answer, life = self._ask("pull", name, "POST")
            if status == 200:
                answering_lives.add(life)
                if answer["status"] in FINAL:
                    if answer["status"] == "READY":
                        self._site.ready.add(name)
                    else:
                        self._site.faults.append(f"{name} failed: {answer['status_message']}")
                    self._site.counts[f"pulls {answer['status']}"] += 1
                    return
            elif life in answering_lives and status and self._site.lives[life[0]] == life[1]:
                self._site.faults.append(f"a poll of {name} was refused: {status} {answer}")
            time.sleep(FORM.interval * (0.5 + self._chance.random()))
        self._site.faults.append(f"{name} was not READY within {limit:.0f} s")

    def _look_up(self, name: str) -> None:
        was_ready = name in self._site.ready
        status, answer, _ = self._ask("lookup", name, "GET")
        if was_ready and status not in {0, 200, 503}:
            self._site.faults.append(f"{name} is gone: {status} {answer}")

    def _ask(self, route: str, name: str, method: str) -> tuple[int, Any, tuple[int, int]]:
        """Send a request to the current gateway; change to the other if it does not answer."""
        life = self._gateway, self._site.lives[self._gateway]
        path = f"/api/{route}/{SYSTEM}/docker/{quote(name, safe='')}/"
        begin = time.monotonic()
        service = self._site.gateways[self._gateway]
        status, answer = service.ask(path, self._credential, method)
        took = time.monotonic() - begin
        self._site.slowest = max(self._site.slowest, took)
        self._site.counts[f"{route} {status}"] += 1
        if took > SLOW_SECONDS:
            self._site.faults.append(f"{route} {name} took {took:.1f} s: {status}")
        if status not in {0, 200, 404, 503}:
            self._site.faults.append(f"{route} {name}: {status} {answer}")
        if status == 0:
            self._gateway = (self._gateway + 1) % len(self._site.gateways)
        return status, answer, life


def converter(root: Path) -> tuple[Path, Path]:
    """Return a slower `mksquashfs` that writes its start times into a file, and that file."""
    real, notes, program = need("mksquashfs"), root / "conversions", root / "converter"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -version ] && exec {real} -version\n'
        f'name=${{2##*/}}\necho "${{name%%-*}} $(date +%s.%N)" >> {notes}\n'
        f'sleep 0.5\nexec {real} "$@"\n'
    )
    program.chmod(0o755)
    return program, notes


@contextmanager
def running(root: Path) -> Iterator[tuple[Site, Path]]:
    """Run a registry, a MongoDB server and two gateways; yield the site and the conversion log."""
    program, notes = converter(root)
    images = root / "images"
    images.mkdir()
    names = [f"lib/app{n}" for n in range(FORM.images)]
    server = mongod.Mongod(root / "mongod", "--standalone", "--sync-on-commit")
    with FaultyRegistry() as registry, server:
        for name in names:
            image = make_image([tar_of([entry("etc"), entry("etc/motd", os.urandom(50_000))])])
            registry.add(name, image)
        locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
        local = {"imageDir": str(images)}
        changes = {
            "Platforms": {SYSTEM: {"accesstype": "local", "local": local}},
            "SecretKeyFile": str(root / "secret.key"),
            "HeartbeatLimit": HEARTBEAT_LIMIT,
            "PullUpdateTimeout": 10,
            "MongoDBURI": server.uri,
            "MongoDB": "images",
            "Mksquashfs": str(program),
        }
        gateways = [Service(root / name, locations, changes) for name in ("one", "two")]
        site = Site(server, gateways, [f"{name}:1" for name in names])
        try:
            for gateway in gateways:
                gateway.start()
            yield site, notes
        finally:
            for gateway in gateways:
                gateway.stop()


def disturb(site: Site, chance: random.Random, done: float) -> None:
    """Cause one fault and end it; `done` is the fraction of the test that is over.

    Each kind of fault happens once at first. Then processes die at regular intervals, `DEATHS`
    times in all, and every other fault is one of the server.
    """
    number = chance.randrange(len(site.gateways))
    duration = chance.uniform(0.3, 1.5)
    servers: Ways = [
        ("the server dies", site.server.kill, site.server.start),
        ("the server hangs", site.server.freeze, site.server.thaw),
    ]
    processes: Ways = [
        (f"gateway {number} dies", lambda: site.lose(number), site.gateways[number].start),
        (f"gateway {number} stops", lambda: site.restart(number), site.gateways[number].start),
        (f"a worker of {number} dies", lambda: site.kill_worker(number), int),
    ]
    dies = site.counts["deaths"] < DEATHS * done
    if not site.had_all_faults:
        dies = site.counts["outages"] > min(1, site.counts["deaths"])
    ways, word = (processes, "deaths") if dies else (servers, "outages")
    event, cause, end = ways[site.counts[word] % len(ways)]
    site.counts[word] += 1
    site.note(event)
    begin = time.time()
    cause()
    time.sleep(duration)
    end()
    if dies:
        site.deaths.append((begin, time.time()))
    site.note("that is over")


def unnecessary_conversions(notes: Path, deaths: Sequence[tuple[float, float]]) -> list[str]:
    """Return the images that were converted again although no process had died in between.

    Each death has the times of its begin and end: a gateway that is told to stop lets its jobs go
    on for some seconds, then stops them.
    """
    starts: dict[str, list[float]] = defaultdict(list)
    for line in notes.read_text().splitlines():
        image_id, at = line.split()
        starts[image_id].append(float(at))
    return [
        f"{image_id} was converted at {first:.3f} and {second:.3f}"
        for image_id, times in starts.items()
        for first, second in pairwise(times)
        if not any(begin <= second and first - 1 <= end for begin, end in deaths)
    ]


def final_faults(site: Site) -> list[str]:
    """Return the faults of records and files after the last work has ended."""
    wrong = []
    with pymongo.MongoClient[dict[str, Any]](site.server.uri) as client:
        images = client["images"]["images"]
        until(lambda: images.count_documents({"claim": {"$gt": ""}}) == 0, 40, "the last work")
        documents = list(images.find())
    tags = Counter(
        tag for record in documents if record["status"] == "READY" for tag in record["tag"]
    )
    wrong += [
        f"{record['pulltag']} is {record['status']}"
        for record in documents
        if record["status"] != "READY"
    ]
    wrong += [f"{count} records have {tag}" for tag, count in tags.items() if count != 1]
    wrong += [f"no record has {name}" for name in site.ready if name not in tags]
    directory = Path(site.gateways[0].root.parent / "images")
    files = {path.stem: path for path in directory.glob("*.squashfs")}
    for record in documents:
        path = files.pop(record.get("id") or "", None)
        if path is None or not path.with_suffix(".meta").exists():
            wrong.append(f"the files of {record['pulltag']} are missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != record["sha256"]:
            wrong.append(f"the file of {record['pulltag']} has another content")
    return wrong + [f"{path.name} belongs to no record" for path in files.values()]


@pytest.mark.slow
@pytest.mark.timeout(FORM.seconds + 10 * FORM.patience)
def test_nothing_is_lost(tmp_path: Path) -> None:
    """Every pull ends READY, no image is converted twice without need, and no record is stuck.

    No request hangs, no poll is refused, and no image that was READY disappears.
    """
    seed = int(os.environ.get("SHIFTERGW_TEST_CHAOS_SEED") or random.randrange(2**32))
    chance = random.Random(seed)
    with running(tmp_path) as (site, notes):
        site.note(f"seed {seed}")
        clients = [Client(site, number) for number in range(FORM.clients)]
        for client in clients:
            client.start()
        begin = time.monotonic()
        done = 0.0
        while done < 1 or not site.had_all_faults:
            time.sleep(chance.uniform(0.5, 2))
            disturb(site, chance, done)
            done = (time.monotonic() - begin) / FORM.seconds
        site.over.set()
        end = time.monotonic() + longest_wait() + SLOW_SECONDS
        while any(client.is_alive() for client in clients) and time.monotonic() < end:
            time.sleep(0.5)
        site.note(f"{dict(site.counts)}, slowest {site.slowest:.1f} s, {len(site.ready)} images")
        wrong = site.faults + final_faults(site) + unnecessary_conversions(notes, site.deaths)
        for fault in wrong:
            site.note(fault)
        assert not any(client.is_alive() for client in clients)
    logs = "".join(gateway.log.read_text() for gateway in site.gateways)
    wrong += [line for line in logs.splitlines() if "Traceback" in line or "Unhandled" in line]
    assert wrong == []
    assert len(site.ready) > FORM.images / 2
    assert "the database is away" in logs
