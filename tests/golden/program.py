"""Every name of the program that the golden tests use.

Only this module and `options` import `shiftergw`. A change that renames or moves a part of the
program edits these two; the recorded data stays the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from shiftergw.auth.mock import MockAuthenticator
from shiftergw.cli import logins
from shiftergw.cli.exits import code_of
from shiftergw.errors import (
    ChildFailed,
    GatewayError,
    PullError,
    RetryLater,
    Unavailable,
)
from shiftergw.job.attempt import Attempt
from shiftergw.model.packed_data import PackedData
from shiftergw.model.records import (
    Expired,
    Failed,
    ImageRecord,
    Origin,
    Progress,
    Ready,
    WorkerMachine,
)
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest
from shiftergw.model.throughput import Throughput
from shiftergw.model.uploads import ImageFile
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.threads import Threads
from shiftergw.service import recovery
from shiftergw.service.gateway import Gateway
from shiftergw.ssh import known_hosts_file
from shiftergw.states import State
from shiftergw.store import waits
from shiftergw.store.sqlite import database as sqlite_database
from shiftergw.store.sqlite.store import SqliteStore
from shiftergw.web.api import make_site
from shiftergw.web.routes import MethodNotAllowed
from tests.configurations import load_config
from tests.job.workbench import running_bench
from tests.web.fakes import FakeGateway, Wire, in_no_thread, site_of
from tests.work.fakes import FakeQueue

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from tests.installed_reactor import PosixReactor

__all__ = ["Progress", "State", "Unavailable", "code_of", "running_bench"]


@asynccontextmanager
async def sqlite_store(reactor: PosixReactor, path: Path) -> AsyncIterator[SqliteStore]:
    """Run the store of a SQLite file while the context lives."""
    store = SqliteStore(reactor, path)
    await store.startService()
    try:
        yield store
    finally:
        await store.stopService()


class _Groups:
    """Users whose only group is their primary one."""

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:
        """Return the groups of a user."""
        return frozenset({gid})


def gateway_site(
    store: SqliteStore, clock: IReactorTime, reactor: PosixReactor, key_file: Path, **changes: Any
) -> Any:
    """Return the site of a gateway with mock authentication, whose admin is root.

    It offers no work, and it shows one worker machine. `changes` are made to the configuration.
    """
    config = load_config(changes).config
    queue = FakeQueue(0)
    queue.worker_machines = [
        WorkerMachine("node1", "0.1.0", ("mycluster",), 2, (), leaving=False, heard=clock.seconds())
    ]
    seal = Seal.from_file(key_file)
    gateway = Gateway(config, store, lambda: seal, lambda: None, clock, queue)
    people = {name: MockAuthenticator(name, _Groups(), ["root"]) for name in config.systems}
    return make_site(gateway, people, reactor, in_no_thread)


def errors() -> Iterator[GatewayError]:
    """Yield an error of each class that has a code of its own."""
    classes: list[type[GatewayError]] = [GatewayError]
    for kind in classes:
        classes += [sub for sub in kind.__subclasses__() if sub not in classes]
        if "code" not in vars(kind) or not kind.__module__.startswith("shiftergw."):
            continue
        if issubclass(kind, ChildFailed):
            yield kind("text", exit_code=1, signal=None, stderr="")
        elif issubclass(kind, RetryLater):
            yield kind(1.0, "why", PullError("text"))
        elif issubclass(kind, MethodNotAllowed):
            yield kind(b"PUT", "GET")
        else:
            yield kind("text")


def refusal(error: GatewayError, path: str = "/api/list/mycluster/") -> Any:
    """Return the HTTP answer to a request that ends in an error."""
    return Wire(site_of(FakeGateway(raises=error))).ask(path)


def fake_gateway() -> FakeGateway:
    """Return a gateway in memory with an image, a pull that failed, and a pull that waits."""
    failure = ImageRecord(
        key="2",
        system="mycluster",
        pulltag="broken:1",
        status=State.FAILURE,
        status_message="It broke.",
        stage="PULLING",
        cause="It broke.",
        remedy="Mend it.",
        retryable=False,
    )
    waits = ImageRecord(
        key="3", system="mycluster", pulltag="app:1", status_message="Waits.", last_pull=1.5
    )
    return FakeGateway(pulls=[failure], waiting=[waits])


def pull_request(tag: str, uid: int, **members: Any) -> PullRequest:
    """Return a request for an image on the system `mycluster`."""
    reference = ImageReference.parse(tag)
    return PullRequest("mycluster", "docker", reference, uid, request_id="1a2b3c4d", **members)


def upload_request(tag: str, uid: int) -> PullRequest:
    """Return a request for an image that is made of an upload."""
    file = ImageFile("ab" * 16, "docker-archive", 1234, "cd" * 32, "app:1", public=False)
    return replace(pull_request(tag, uid, upload=file), itype="custom")


def upload_end(image_id: str, request: PullRequest) -> Ready:
    """Return the end of the work on an upload whose image is delivered."""
    end = ready_end(image_id)
    origin = Origin("", "uploads/2001", f"sha256:{image_id}", private=True)
    changes = {"origin": origin, "remotetype": "docker-archive", "upload": request.upload}
    return replace(end, changes={**end.changes, **changes})


def ready_end(image_id: str) -> Ready:
    """Return the end of a pull whose image is delivered, with every member of a record."""
    origin = Origin("hub", "lib/app", f"sha256:{image_id}", private=False)
    report = {
        "entries": 3,
        "verification": {"method": "sha256", "reason": ""},
        "copied_bytes": 1024,
        "sent_bytes": 3072,
    }
    changes = {
        "user_acl": (),
        "group_acl": (),
        "private": False,
        "env": ("A=1",),
        "entry": ("/bin/run",),
        "cmd": ("--help",),
        "workdir": "/work",
        "labels": {"a": "b"},
        "expiration": 1_000_900.0,
        "location": "hub",
        "origin": origin,
        "size": 4096,
        "sha256": "c" * 64,
        "modified": 1_000_000,
        "options": "ae48017929c7",
        "report": report,
    }
    return Ready(image_id, changes, untagged_until=1_002_000.0, directory="/images")


def failed_end(*, own: bool = False) -> Failed:
    """Return the end of work that failed."""
    return Failed("PULLING", "The registry has no such image.", "Check it.", False, own)


def packed_data() -> PackedData:
    """Return the ranges of a file that has data of one pack."""
    return PackedData.collect([("d" * 64, [(0, 96, 5000)])])


def throughput(now: float) -> Throughput:
    """Return work that has ended at a time."""
    return Throughput(now, pulls=1, image_bytes=5000, layer_bytes=4000)


def expired_end() -> Expired:
    """Return the end of a removal."""
    return Expired()


def schema_scripts() -> list[Path]:
    """Return the scripts that create and update a SQLite file."""
    return sorted(Path(sqlite_database.__file__).parent.glob("*.sql"))


def broker_sender(url: str) -> Any:
    """Return the sender of the gateway's messages to worker machines."""
    connections = import_module("shiftergw.work.celery.broker_connections")
    return connections.MessageSender(broker_app(url))


def broker_app(url: str) -> Any:
    """Return Celery with the settings of the gateway."""
    return import_module("shiftergw.work.celery.app").make_app(url)


def worker_machine(url: str, argv: list[str]) -> Any:
    """Return Celery of a worker machine with one slot that runs `argv` for each job."""
    return import_module("shiftergw.work.celery.worker").make_worker(url, 1, argv)


def broker_queue(reactor: PosixReactor, url: str) -> Any:
    """Return the gateway's queue of worker machines, which is not started."""
    return import_module("shiftergw.work.celery.queue").CeleryQueue(reactor, url)


@contextmanager
def reported_messages() -> Iterator[list[str]]:
    """Yield a list to which each report of a worker is added, as state and message."""
    messages: list[str] = []
    enter_stage, notify = Attempt.enter_stage, Attempt.notify

    def note_state(attempt: Attempt, state: State, message: str) -> None:
        messages.append(f"{state}: {message}")
        enter_stage(attempt, state, message)

    def note_message(attempt: Attempt, message: str) -> None:
        messages.append(message)
        notify(attempt, message)

    with (
        patch.object(Attempt, "enter_stage", note_state),
        patch.object(Attempt, "notify", note_message),
    ):
        yield messages


def waiting_message(not_before: float, why: str, now: float) -> str:
    """Return the message of a pull that is postponed."""
    return waits.waiting_message(not_before, why, now)


def notice(names: list[str]) -> str:
    """Return the message of a READY image whose record lacks some settings."""
    report = {"metadata": names}
    return ImageRecord(status=State.READY, report=report).notice


def requeue_message(loss: str, *, died: bool) -> str:
    """Return the message of a pull whose worker ended without a result."""
    return recovery.status_message(loss, died=died)


def checked_collections() -> set[str]:
    """Return the collections for which `shiftergw check` examines a user's rights."""
    return set(import_module("shiftergw.store.mongo.rights")._COLLECTIONS)


def threads(reactor: PosixReactor) -> Threads:
    """Return running threads for work on files."""
    pool = Threads(reactor, 2, "golden")
    pool.startService()
    return pool


def keep_login(home: Path, system: str, location: str, credential: str) -> None:
    """Store a login in the file of a user."""
    file = logins.LoginFile(home)
    file.change(lambda content: logins.replace_credential(content, system, location, credential))


def add_known_host(path: Path, line: str) -> None:
    """Add a line to a list of known hosts."""
    known_hosts_file.add(path, [line])


def seal_of(path: Path) -> Seal:
    """Return the seal with the key in a file, which opens sealed logins."""
    return Seal.read(path)
