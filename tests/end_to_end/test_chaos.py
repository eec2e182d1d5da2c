"""Two gateways and many clients on one database, and whatever may die or hang does, at random.

The short form takes half a minute. `SHIFTERGW_TEST_CHAOS=1` asks for the long one: two minutes and
500 clients. What happened, and when, is printed.
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
"""How long no request takes: a call or two of the store that are given up, and a slow machine."""

DEATHS = MAX_ATTEMPTS - 1
"""How often processes die: once more, and a pull that is hit each time is rightly given up."""

HEARTBEAT_LIMIT = 6


@dataclass(frozen=True)
class Form:
    """How long, with how many; clients ask every `interval` seconds.

    Nobody waits for an image longer than `patience` seconds on an idle machine. 500 clients keep
    150 images in the queue: more than a minute's work, half of which the database is away.
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
    """Return the seconds that a client waits for an image: more on a busy machine."""
    return max(FORM.patience, patient(FORM.patience / 3))


@dataclass
class Site:
    """What there is, and what was seen of it."""

    server: mongod.Mongod
    gateways: Sequence[Service]
    names: Sequence[str]
    lives: Counter[int] = field(default_factory=Counter)
    killed: list[float] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    ready: set[str] = field(default_factory=set)
    seen: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def had_everything(self) -> bool:
        """Say whether each kind of thing has gone wrong once."""
        return self.seen["outages"] >= 2 and self.seen["deaths"] >= 3

    def note(self, what: str) -> None:
        """Say what happens now."""
        print(f"{time.time():.3f} {what}")  # noqa: T201 - pytest shows it if the test fails

    def lose(self, number: int) -> None:
        """Have a gateway die with all its workers, as with its machine, and come back."""
        workers = self.gateways[number].workers()
        self.lives[number] += 1
        self.gateways[number].stop(signal.SIGKILL)
        for worker in workers:
            with suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)

    def restart(self, number: int) -> None:
        """Stop a gateway as an admin does, and start it again."""
        self.lives[number] += 1
        self.gateways[number].stop()

    def kill_worker(self, number: int) -> None:
        """Have one worker die."""
        for worker in self.gateways[number].workers()[:1]:
            with suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)


Ways = Sequence[tuple[str, Callable[[], object], Callable[[], object]]]
"""What goes wrong, how it does, and how it comes right again."""


class Client(threading.Thread):
    """One user, who pulls one image after the other and looks it up."""

    def __init__(self, site: Site, number: int) -> None:
        """Be somebody of his own."""
        super().__init__(daemon=True)
        self._site = site
        self._credential = f"good:user{number}:users::{3000 + number}:2100"
        self._chance = random.Random(number)
        self._gateway = number % len(site.gateways)

    def run(self) -> None:
        """Go on until it is over, and what was begun has ended."""
        time.sleep(self._chance.random() * FORM.interval)
        while not self._site.over.is_set():
            name = self._chance.choice(self._site.names)
            self._pull(name)
            self._look_up(name)

    def _pull(self, name: str) -> None:
        told: set[tuple[int, int]] = set()
        limit = longest_wait()
        end = time.monotonic() + limit
        while time.monotonic() < end:
            status, answer, life = self._ask("pull", name, "POST")
            if status == 200:
                told.add(life)
                if answer["status"] in FINAL:
                    if answer["status"] == "READY":
                        self._site.ready.add(name)
                    else:
                        self._site.faults.append(f"{name} failed: {answer['status_message']}")
                    self._site.seen[f"pulls {answer['status']}"] += 1
                    return
            elif life in told and status and self._site.lives[life[0]] == life[1]:
                self._site.faults.append(f"a poll of {name} was refused: {status} {answer}")
            time.sleep(FORM.interval * (0.5 + self._chance.random()))
        self._site.faults.append(f"{name} was not READY within {limit:.0f} s")

    def _look_up(self, name: str) -> None:
        was_ready = name in self._site.ready
        status, answer, _ = self._ask("lookup", name, "GET")
        if was_ready and status not in {0, 200, 503}:
            self._site.faults.append(f"{name} is gone: {status} {answer}")

    def _ask(self, route: str, name: str, method: str) -> tuple[int, Any, tuple[int, int]]:
        """Ask the gateway at hand, and go to the other one if it does not answer."""
        life = self._gateway, self._site.lives[self._gateway]
        path = f"/api/{route}/{SYSTEM}/docker/{quote(name, safe='')}/"
        begin = time.monotonic()
        service = self._site.gateways[self._gateway]
        status, answer = service.ask(path, self._credential, method)
        took = time.monotonic() - begin
        self._site.slowest = max(self._site.slowest, took)
        self._site.seen[f"{route} {status}"] += 1
        if took > SLOW_SECONDS:
            self._site.faults.append(f"{route} {name} took {took:.1f} s: {status}")
        if status not in {0, 200, 404, 503}:
            self._site.faults.append(f"{route} {name}: {status} {answer}")
        if status == 0:
            self._gateway = (self._gateway + 1) % len(self._site.gateways)
        return status, answer, life


def converter(root: Path) -> tuple[Path, Path]:
    """Return a `mksquashfs` that takes a moment longer and notes when it begins, and its notes."""
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
    """Run a registry, a MongoDB server and two gateways; yield them, and the conversions' notes."""
    program, notes = converter(root)
    images = root / "images"
    images.mkdir()
    names = [f"lib/app{n}" for n in range(FORM.images)]
    server = mongod.Mongod(root / "mongod", "--standalone", "--sync-on-commit")
    with FaultyRegistry() as registry, server:
        for name in names:
            made = make_image([tar_of([entry("etc"), entry("etc/motd", os.urandom(50_000))])])
            registry.add(name, made)
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
    """Have one thing go wrong, and come right again; `done` says how much of the test is over.

    Each has its turn first; then processes die so often, evenly, and else it is the server.
    """
    number = chance.randrange(len(site.gateways))
    away = chance.uniform(0.3, 1.5)
    servers: Ways = [
        ("the server dies", site.server.kill, site.server.start),
        ("the server hangs", site.server.freeze, site.server.thaw),
    ]
    processes: Ways = [
        (f"gateway {number} dies", lambda: site.lose(number), site.gateways[number].start),
        (f"gateway {number} stops", lambda: site.restart(number), site.gateways[number].start),
        (f"a worker of {number} dies", lambda: site.kill_worker(number), int),
    ]
    dies = site.seen["deaths"] < DEATHS * done
    if not site.had_everything:
        dies = site.seen["outages"] > min(1, site.seen["deaths"])
    ways, word = (processes, "deaths") if dies else (servers, "outages")
    what, break_it, mend_it = ways[site.seen[word] % len(ways)]
    site.seen[word] += 1
    site.note(what)
    begin = time.time()
    break_it()
    time.sleep(away)
    mend_it()
    if dies:
        site.killed += [begin, time.time()]
    site.note("it is mended")


def converted_twice(notes: Path, killed: Sequence[float]) -> list[str]:
    """Return the images that were converted again though nothing had died since the last time."""
    begun: dict[str, list[float]] = defaultdict(list)
    for line in notes.read_text().splitlines():
        image_id, at = line.split()
        begun[image_id].append(float(at))
    return [
        f"{image_id} was converted at {first:.3f} and {second:.3f}"
        for image_id, times in begun.items()
        for first, second in pairwise(times)
        if not any(first - 1 <= at <= second for at in killed)
    ]


def in_the_end(site: Site) -> list[str]:
    """Return what is not as it should be when all is quiet."""
    wrong = []
    with pymongo.MongoClient[dict[str, Any]](site.server.uri) as client:
        images = client["images"]["images"]
        until(lambda: images.count_documents({"claim": {"$gt": ""}}) == 0, 40, "the last work")
        documents = list(images.find())
    tags = Counter(tag for one in documents if one["status"] == "READY" for tag in one["tag"])
    wrong += [
        f"{one['pulltag']} is {one['status']}" for one in documents if one["status"] != "READY"
    ]
    wrong += [f"{n} records carry {tag}" for tag, n in tags.items() if n != 1]
    wrong += [f"no record carries {name}" for name in site.ready if name not in tags]
    directory = Path(site.gateways[0].root.parent / "images")
    files = {path.stem: path for path in directory.glob("*.squashfs")}
    for one in documents:
        path = files.pop(one.get("id") or "", None)
        if path is None or not path.with_suffix(".meta").exists():
            wrong.append(f"the files of {one['pulltag']} are not there")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != one["sha256"]:
            wrong.append(f"the file of {one['pulltag']} is another one")
    return wrong + [f"{path.name} is nobody's" for path in files.values()]


@pytest.mark.slow
@pytest.mark.timeout(FORM.seconds + 10 * FORM.patience)
def test_nothing_is_lost(tmp_path: Path) -> None:
    """Every pull ends READY, nothing is converted twice without need, no record is stuck.

    No request hangs, no poll is refused, nothing that was READY is gone again.
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
        while done < 1 or not site.had_everything:
            time.sleep(chance.uniform(0.5, 2))
            disturb(site, chance, done)
            done = (time.monotonic() - begin) / FORM.seconds
        site.over.set()
        end = time.monotonic() + longest_wait() + SLOW_SECONDS
        while any(client.is_alive() for client in clients) and time.monotonic() < end:
            time.sleep(0.5)
        site.note(f"{dict(site.seen)}, slowest {site.slowest:.1f} s, {len(site.ready)} images")
        wrong = site.faults + in_the_end(site) + converted_twice(notes, site.killed)
        for one in wrong:
            site.note(one)
        assert not any(client.is_alive() for client in clients)
    logs = "".join(gateway.log.read_text() for gateway in site.gateways)
    wrong += [line for line in logs.splitlines() if "Traceback" in line or "Unhandled" in line]
    assert wrong == []
    assert len(site.ready) > FORM.images / 2
    assert "the database is away" in logs
