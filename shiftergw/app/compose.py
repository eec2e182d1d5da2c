"""The configuration → the parts, wired. Read from top to bottom, this is the architecture.

One function each for the gateway's process, a worker's process, and the stand-alone conversion.
Nothing is opened here: parts open what they need when their service starts.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service

from shiftergw.app.preparation import Preparation
from shiftergw.app.waiting import run_with_waits
from shiftergw.auth.listing import ListedUsers
from shiftergw.auth.mock import MockAuthenticator
from shiftergw.auth.munge import MungeAuthenticator
from shiftergw.auth.once import Once
from shiftergw.auth.users import PLACES, HostUsers
from shiftergw.build import mksquashfs
from shiftergw.build.whole import SquashBuilder
from shiftergw.cache.blob_cache import BlobCaches
from shiftergw.config import Config, LocalDelivery, SshDelivery, System
from shiftergw.delivery.disk_calls import MOST_HANGING
from shiftergw.delivery.factory import SystemDelivery, local_delivery, ssh_delivery
from shiftergw.delivery.local import place
from shiftergw.image import BuiltImage, ResolvedImage, SquashOptions
from shiftergw.job.pipeline import Pipeline
from shiftergw.job.pull import Pull
from shiftergw.job.removal import Removal
from shiftergw.job.targets import Target
from shiftergw.job.watcher import Watcher
from shiftergw.job.worker import Worker
from shiftergw.model import ImageReference, RegistryLogin
from shiftergw.plumbing import descriptors
from shiftergw.plumbing.files import private_directory
from shiftergw.plumbing.services import ClosedAtStop, OrderedServices
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import Authenticator, Sweepable, runner_name
from shiftergw.service.dispatch import Dispatch
from shiftergw.service.gateway import Gateway
from shiftergw.service.housekeeping import SCRATCH_SECONDS, Housekeeping, Schedule, Scratch
from shiftergw.service.recovery import Recovery, WorkerShortage
from shiftergw.sources.registry.admission import Shared
from shiftergw.sources.registry.client import PARALLEL_BLOBS, RegistryClient
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.transport import Limits
from shiftergw.store.sqlite.integrity import CHECK_SECONDS
from shiftergw.store.sqlite.store import SqliteStore
from shiftergw.work.pool import PoolOptions, WorkerPool

if TYPE_CHECKING:
    from shiftergw.store.mongo.store import MongoStore
    from shiftergw.work.celery.queue import CeleryQueue

JOBS_PER_WORKER = 50
"""A worker process is replaced after so many jobs: what it may leak goes with it."""


def gateway(reactor: Any, config: Config, config_file: Path) -> Service:
    """Return the gateway's process as one service."""
    # At the start each image directory may keep one.
    threads = Threads(reactor, 8 + len(config.systems), "gateway")
    preparation = Preparation(config, threads, reactor)
    # Workers do not need these: they start sooner without them.
    from shiftergw.plumbing.listening import Listener  # noqa: PLC0415
    from shiftergw.web.api import make_site  # noqa: PLC0415
    from shiftergw.web.connections import ConnectionLimits  # noqa: PLC0415
    from shiftergw.web.lists import ListLimits  # noqa: PLC0415

    store = _store(reactor, config, CHECK_SECONDS)
    queue = _queue(reactor, config, config_file)
    dispatch = Dispatch(
        store,
        queue,
        reactor,
        config.heartbeat_limit,
        config.systems,
        config.user_limits.running,
    )
    recovery = Recovery(store, dispatch, reactor)
    queue.on_idle, queue.on_end = dispatch.wake, recovery.job_ended
    # Machines that serve no more may come back, and are waited for; a broken installation is not.
    shortage = WorkerShortage(
        store, queue, reactor, config.worker_wait, config.systems, config.heartbeat_limit
    )
    # The host's database may hang with all its places; each system's list is read beside it.
    asking = Threads(reactor, PLACES + len(config.systems), "users")
    users = users_of(config, asking, reactor)
    authenticators: dict[str, Authenticator] = {
        name: _authenticator(config, system, users[name], reactor)
        for name, system in config.systems.items()
    }
    schedule = Schedule(
        config.scheduled_expiry, config.image_expiration_timeout, config.systems.keys()
    )
    keeping: list[Service] = []
    used_credentials = store.used_credentials
    if config.authentication == "munge" and used_credentials is not None:
        # Several gateways may share the store: a credential counts once for all of them.
        once = Once(authenticators, used_credentials, reactor)
        authenticators = dict.fromkeys(authenticators, once)
        keeping = [once.rounds]
    rules = Gateway(config, store, preparation.seal, dispatch.wake, reactor, queue)
    list_limits = ListLimits(config.max_record_size, config.max_list_size)
    limits = config.web_limits
    connections = ConnectionLimits.within(
        descriptors.raise_limit(),
        connections=limits.connections,
        per_peer=limits.per_peer,
        request_seconds=limits.request_time,
        proxies=limits.proxies,
    )
    site = make_site(rules, authenticators, reactor, threads.run, list_limits, connections)
    listeners = [Listener(text, site, reactor) for text in config.listen]
    _registry(reactor, config)  # what is wrong there shall be told here, and not by every worker
    return OrderedServices(
        [
            threads,
            preparation,
            store,
            recovery,
            queue,
            dispatch,
            *([] if config.broker_url else [shortage]),
            Housekeeping(store, dispatch.wake, reactor, schedule),
            *keeping,
            asking,
            *(one for one in users.values() if isinstance(one, ListedUsers)),
            *listeners,
        ]
    )


def _queue(reactor: Any, config: Config, config_file: Path) -> WorkerPool | CeleryQueue:
    """Return what carries work to workers: processes of our own, or the machines at the broker."""
    if config.broker_url is not None:
        from shiftergw.work.celery.queue import CeleryQueue  # noqa: PLC0415 - an extra

        return CeleryQueue(reactor, config.broker_url)
    return WorkerPool(
        reactor,
        [sys.executable, "-m", "shiftergw.runner", "--config", str(config_file)],
        dict(os.environ),
        PoolOptions(config.worker_threads, JOBS_PER_WORKER, warm=1, systems=tuple(config.systems)),
    )


def users_of(config: Config, threads: Threads, reactor: Any) -> dict[str, HostUsers | ListedUsers]:
    """Return who knows the users of each system: its own command, or else this host."""
    host = HostUsers(threads, reactor)
    return {
        name: ListedUsers(name, system.groups_command, os.environ, threads, reactor)
        if system.groups_command
        else host
        for name, system in config.systems.items()
    }


def _authenticator(
    config: Config, system: System, users: HostUsers | ListedUsers, reactor: Any
) -> Authenticator:
    if config.authentication == "mock":
        return MockAuthenticator(system.name, users, system.admins)
    assert system.munge_socket_path is not None  # a system without it does not load
    return MungeAuthenticator(system.name, system.munge_socket_path, users, system.admins, reactor)


def worker(reactor: Any, config: Config) -> tuple[Service, Callable[[], Worker]]:
    """Return a worker process's services, and the worker that is there once they have started."""
    threads, readers = _threads(reactor)
    # Image directories may hang, and then keep their threads from no other work.
    disks = Threads(reactor, (MOST_HANGING + 2) * len(config.systems), "images")
    preparation = Preparation(config, disks, reactor)
    store = _store(reactor, config)
    machine = socket.gethostname()
    shared = Shared(store, machine, partial(_fingerprint, preparation))
    source = _registry(reactor, config, shared)
    builder = _builder(config.expand_directory, config, threads, readers, reactor)
    directories = {
        name: delivery_to(system, reactor, disks, config.ost_count_of(name)).guarded(
            system, store, machine, reactor
        )
        for name, system in config.systems.items()
    }
    targets = {
        name: Target(
            system.directory_name,
            directories[name],
            system.architecture,
            system.squash_options(config),
            config.directory_of(name)[1],
            config.ost_count_of(name),
            not config.disable_acl_metadata,
        )
        for name, system in config.systems.items()
    }
    caches = BlobCaches(config.cache_directory, threads, reactor)
    runner = runner_name(machine, os.getpid())
    pipeline = Pipeline(source, caches.of, builder, config.build_limits(), reactor)

    def make() -> Worker:
        pull = Pull(config, store, pipeline, targets, preparation.seal(), reactor)
        removal = Removal(store, targets)
        limits = config.heartbeat_limit, config.wait_limits()
        return Worker(store, pull, removal, reactor, runner, *limits)

    # A pull that waits for its system uses neither its converted file nor its part meanwhile.
    seconds_kept = SCRATCH_SECONDS + config.delivery_wait
    places: dict[str, tuple[Sweepable, float]] = {
        f"system {name}": (directory, seconds_kept) for name, directory in directories.items()
    }
    places["ExpandDirectory"] = (builder, seconds_kept)
    places["CacheDirectory"] = (caches, config.keep_layers)
    scratch = Scratch(places, reactor)
    # Closed before the scratch round ends, which may be waiting for a system that is down.
    closed = [ClosedAtStop(directory.close) for directory in directories.values()]
    parts = [
        disks,
        threads,
        readers,
        preparation,
        store,
        ClosedAtStop(source.close),
        scratch,
        *closed,
    ]
    return OrderedServices(parts), make


def delivery_to(
    system: System, reactor: Any, threads: Threads, ost_count: int = 0
) -> SystemDelivery:
    """Return how images are delivered to a system, by the kind of its section."""
    match system.delivery:
        case LocalDelivery() as section:
            return local_delivery(section, reactor, threads, ost_count)
        case SshDelivery() as section:
            return ssh_delivery(section, system.host, reactor, threads, ost_count)


async def convert(
    reactor: Any,
    config: Config,
    system: str,
    reference: str,
    out: Path,
    options: SquashOptions | None,
    watcher: Watcher,
    *,
    link: bool,
) -> dict[str, object]:
    """Convert one image to `out` with no service at all; scratch lies where `config` says.

    With `link` the file that was made there may become `out`; systems could get it, too, otherwise.
    Return what the command prints: id, bytes, entries, dropped, seconds per stage. Stages overlap:
    layers are indexed while they are fetched.
    """
    threads, readers = _threads(reactor)
    source = _registry(reactor, config)
    services = OrderedServices([threads, readers, ClosedAtStop(source.close)])
    await services.startService()
    try:
        return await _convert(
            reactor,
            config,
            system,
            reference,
            out,
            options,
            watcher,
            threads,
            readers,
            source,
            link=link,
        )
    finally:
        await services.stopService()


async def _convert(
    reactor: Any,
    config: Config,
    system: str,
    reference: str,
    out: Path,
    options: SquashOptions | None,
    watcher: Watcher,
    threads: Threads,
    readers: Threads,
    source: RegistryClient,
    *,
    link: bool,
) -> dict[str, object]:
    mksquashfs.check_version(await mksquashfs.version(config.mksquashfs, reactor, reactor))
    for directory in (config.cache_directory, config.expand_directory):
        await threads.run(private_directory, directory)
    builder = _builder(config.expand_directory, config, threads, readers, reactor)
    caches = BlobCaches(config.cache_directory, threads, reactor)
    pipeline = Pipeline(source, caches.of, builder, config.build_limits(), reactor)
    chosen = config.systems[system]
    started = time.monotonic()

    async def build() -> tuple[ResolvedImage, BuiltImage, float]:
        image, image_config = await pipeline.resolve(
            ImageReference.parse(reference), chosen.architecture, None, watcher
        )
        resolved = time.monotonic()
        await pipeline.check_space(image)
        chosen_options = options or chosen.squash_options(config)
        async with pipeline.convert(image, image_config, None, chosen_options, watcher) as built:
            await place(built.path, out, built.sha256, threads, watcher.report, link=link)
        return image, built, resolved

    limits = config.wait_limits()
    image, built, resolved = await run_with_waits(build, reactor, limits, watcher.notify)
    report = built.report.to_document()
    return {
        "id": image.id,
        "bytes": built.size,
        "entries": report.pop("entries"),
        "dropped": {name: n for name, n in report.items() if name != "size" and n},
        "seconds": {
            "resolve": round(resolved - started, 3),
            **{stage: round(seconds, 3) for stage, seconds in built.seconds.items()},
            "total": round(time.monotonic() - started, 3),
        },
    }


def _store(
    reactor: Any, config: Config, check_seconds: float | None = None
) -> SqliteStore | MongoStore:
    if config.mongodb_uri is None:
        return SqliteStore(reactor, state_file(config), check_seconds=check_seconds)
    from shiftergw.store.mongo.store import MongoStore  # noqa: PLC0415 - 7 MB that others do not need

    assert config.mongodb is not None  # a configuration without it does not load
    return MongoStore(reactor, config.mongodb_uri, config.mongodb)


def state_file(config: Config) -> Path:
    """Return where the state is as long as it is in SQLite."""
    return config.state_directory / "shiftergw.sqlite"


def _fingerprint(preparation: Preparation, login: RegistryLogin) -> str:
    """Return a digest of a login that nobody without the site's key can test a guess with."""
    return preparation.seal().fingerprint(f"{login.user}:{login.password}", "registry login")


def _registry(reactor: Any, config: Config, shared: Shared | None = None) -> RegistryClient:
    locations = {
        name: Location(name, one.url, one.ca_certificate, one.trusted_hosts)
        for name, one in config.locations.items()
    }
    limits = Limits(rate=config.registry_least_rate, document=config.registry_document_time)
    return RegistryClient(
        reactor,
        locations,
        config.locate,
        os.environ,
        limits=limits,
        proxied_hosts=config.proxied_hosts,
        shared=shared or Shared(),
    )


def _threads(reactor: Any) -> tuple[Threads, Threads]:
    """Return threads for the work on one image, and others that read its layers on their way.

    These wait for those: as many of them as there are downloads at once, and for each processor
    one that reads what has come.
    """
    processors = os.cpu_count() or 1
    return (
        Threads(reactor, 4 + processors, "work"),
        Threads(reactor, PARALLEL_BLOBS + processors, "readers"),
    )


def _builder(
    directory: Path, config: Config, threads: Threads, readers: Threads, reactor: Any
) -> SquashBuilder:
    return SquashBuilder(directory, config.mksquashfs, threads, readers, reactor, reactor)
