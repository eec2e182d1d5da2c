"""Choose the adapter behind each port by the configuration: one function for each seam.

`app/gateway.py`, `app/worker.py` and `app/convert.py` wire the adapters into processes. Nothing is
opened here: parts open what they need when their service starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.app.deliveries import (
    SystemDelivery,
    local_delivery,
    ssh_delivery,
    ssh_directory,
)
from shiftergw.app.locations import layout_directories, registry_names
from shiftergw.app.log import LogOptions
from shiftergw.auth.listing import ListedUsers
from shiftergw.auth.mock import MockAuthenticator
from shiftergw.auth.munge import MungeAuthenticator
from shiftergw.auth.users import HostUsers
from shiftergw.config import Config, LocalDelivery, SshDelivery, System
from shiftergw.config.registries_directory import read_signature_storage
from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.job.policy import ImagePolicies, Verifiers
from shiftergw.model.source_names import LocalSourceName, SourceKind
from shiftergw.model.uploads import ImageFile
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import (
    NO_METRICS,
    Authenticator,
    ImageSource,
    Metrics,
    Notify,
    Report,
    UserDirectory,
)
from shiftergw.signatures.gpg import GpgVerifier
from shiftergw.signatures.sigstore import SigstoreVerifier
from shiftergw.sources.by_location import SourcesByLocation
from shiftergw.sources.local.layout_location import LayoutLocation
from shiftergw.sources.local.opening import open_source
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.options import (
    OnMirrorFailure,
    RegistryOptions,
    ignore_failure,
)
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.shared_breakers import SharedBreakers
from shiftergw.sources.registry.shared_manifests import SharedManifests
from shiftergw.sources.registry.signatures import Lookasides, RegistrySignatures
from shiftergw.sources.user_files.files import FilePlaces, UserFiles
from shiftergw.sources.user_files.imports import Imports, import_calls
from shiftergw.sources.user_files.spool_client import SpoolClient
from shiftergw.store.sqlite.store import SqliteStore
from shiftergw.work.explainer import ExplainerProcess
from shiftergw.work.pool import PoolOptions, WorkerPool

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.store.mongo.store import MongoStore
    from shiftergw.work.celery.queue import CeleryQueue

SOURCE_KINDS: Mapping[str, SourceKind] = {
    "": "path",
    "oci-archive": "oci-archive",
    "docker-archive": "docker-archive",
    "dir-archive": "path",
    "sif": "sif",
    "squashfs": "squashfs",
}
"""The kind of source of each kind of upload."""

MANIFESTS = "manifests"
"""The directory in `CacheDirectory` that has the manifests which the processes share."""

JOBS_PER_WORKER = 50
"""Jobs after which a worker process is replaced, in case it leaks memory or files."""


def store(
    reactor: Reactor, config: Config, check_seconds: float | None = None
) -> SqliteStore | MongoStore:
    """Return the store of records: MongoDB if `MongoDBURI` is set, otherwise a SQLite file.

    A SQLite file is checked for damage at the start, for at most `check_seconds`.
    """
    if config.mongodb_uri is None:
        return SqliteStore(reactor, state_file(config), check_seconds=check_seconds)
    # Imported only if it is used: it takes 7 MB.
    from shiftergw.store.mongo.store import MongoStore  # noqa: PLC0415

    assert config.mongodb is not None  # a configuration without it does not load
    return MongoStore(reactor, config.mongodb_uri, config.mongodb)


def state_file(config: Config) -> Path:
    """Return the path of the SQLite file, which holds the state unless MongoDB does."""
    return config.state_directory / "shiftergw.sqlite"


def queue(
    reactor: Reactor, config: Config, config_file: Path, log_options: LogOptions | None = None
) -> WorkerPool | CeleryQueue:
    """Return the job queue: Celery if `BrokerURL` is set, otherwise a pool of local processes.

    The local processes follow when debug messages are switched in `log_options`.
    """
    if config.broker_url is not None:
        from shiftergw.work.celery.queue import CeleryQueue  # noqa: PLC0415 - an extra

        return CeleryQueue(reactor, config.broker_url)
    pool = WorkerPool(
        reactor,
        [sys.executable, "-m", "shiftergw.runner", "--with-metrics", "--config", str(config_file)],
        dict(os.environ),
        PoolOptions(config.worker_threads, JOBS_PER_WORKER, warm=1, systems=tuple(config.systems)),
    )
    if log_options is not None:
        log_options.on_switch = pool.set_debug
    return pool


def explainer(reactor: Reactor, config_file: Path) -> ExplainerProcess:
    """Return what explains pulls for users, in a process of its own."""
    argv = [sys.executable, "-m", "shiftergw.app.explainer", "--config", str(config_file)]
    return ExplainerProcess(argv, dict(os.environ), reactor)


@dataclass(frozen=True, slots=True)
class SystemUsers:
    """The user directory of each system, by its name.

    `listings` are those of the systems with a `groupsCommand`; they are services.
    """

    by_system: Mapping[str, UserDirectory]
    listings: Mapping[str, ListedUsers]


def users(config: Config, threads: Threads, reactor: Reactor) -> SystemUsers:
    """Return the user directories: a listing by the system's own command, or those of this host."""
    host = HostUsers(threads, reactor)
    listings = {
        name: ListedUsers(name, system.groups_command, os.environ, threads, reactor)
        for name, system in config.systems.items()
        if system.groups_command
    }
    return SystemUsers({name: listings.get(name, host) for name in config.systems}, listings)


def authenticator(
    config: Config, system: System, users: UserDirectory, reactor: Reactor
) -> Authenticator:
    """Return what identifies the callers of a system: its munge daemon, or (for tests) nothing."""
    if config.authentication == "mock":
        return MockAuthenticator(system.name, users, system.admins)
    assert system.munge_socket_path is not None  # a system without it does not load
    return MungeAuthenticator(system.name, system.munge_socket_path, users, system.admins, reactor)


def registry(
    reactor: Reactor,
    config: Config,
    shared_breakers: SharedBreakers | None = None,
    threads: Threads | None = None,
    on_mirror_failure: OnMirrorFailure = ignore_failure,
    metrics: Metrics = NO_METRICS,
) -> RegistryClient:
    """Return the client of all configured registries.

    `shared_breakers` is what several processes share about registries that ask to wait. With
    `threads` the processes of a machine share manifests, in `CacheDirectory`. `on_mirror_failure`
    hears why a mirror is passed over. Raises `ConfigurationError` if a location, a mirror or a
    proxy is unusable.
    """
    share_manifests = None
    if threads is not None:
        directory = config.cache_directory / MANIFESTS
        share_manifests = partial(SharedManifests, directory, threads=threads)
    options = replace(
        _registry_options(config, shared_breakers),
        share_manifests=share_manifests,
        on_mirror_failure=on_mirror_failure,
        metrics=metrics,
    )
    proxies = Proxies(os.environ, config.proxied_hosts)
    return RegistryClient(reactor, registry_names(config), proxies, options)


def _registry_options(config: Config, shared_breakers: SharedBreakers | None) -> RegistryOptions:
    return RegistryOptions(
        Limits(rate=config.registry_least_rate, document=config.registry_document_time),
        shared_breakers=shared_breakers or SharedBreakers(),
    )


def lookasides(
    reactor: Reactor, config: Config, shared_breakers: SharedBreakers | None = None
) -> Lookasides:
    """Return the storages of simple signatures; arguments and errors are those of `registry`."""
    proxies = Proxies(os.environ, config.proxied_hosts)
    return Lookasides(reactor, proxies, _registry_options(config, shared_breakers))


def policies(
    reactor: Reactor,
    config: Config,
    registry: RegistryClient,
    lookasides: Lookasides,
    threads: Threads,
) -> ImagePolicies:
    """Return the policies of all systems, with what fetches and verifies signatures."""
    read_storage = partial(read_signature_storage, config.registries_directory)
    source = RegistrySignatures(registry, lookasides, read_storage, threads)
    sigstore = SigstoreVerifier(threads)
    verifiers: Verifiers = {
        "simple": GpgVerifier(reactor, reactor),
        "cosign": sigstore,
        "bundle": sigstore,
    }
    return ImagePolicies(config, source, verifiers, threads, reactor)


def user_files(
    reactor: Reactor, config: Config, threads: Threads, gateway: SpoolClient | None
) -> UserFiles:
    """Return what opens the uploads and imported files of users; `gateway` fetches uploads."""
    limits = config.build_limits()

    async def open_local(
        file: ImageFile, path: Path, scratch: Path, notify: Notify, report: Report
    ) -> ImageSource:
        name = LocalSourceName(SOURCE_KINDS[file.kind], path, file.selector)
        return await open_source(name, scratch, limits, threads, reactor, notify, report)

    imports = Imports(
        config.import_command,
        os.environ,
        config.max_upload_size,
        limits.stages.fetch,
        threads,
        import_calls(threads),
        reactor,
    )
    places = FilePlaces(config.upload_directory, config.expand_directory / "uploads")
    return UserFiles(
        places, gateway, open_local, imports.read, threads, reactor, limits.stages.fetch
    )


def image_source(registry: RegistryClient, config: Config, threads: Threads) -> ImageSource:
    """Return the source of all locations: registries, and directories with OCI layouts.

    Directories are read in `threads`, which they may keep if their file system hangs.
    """
    directories = {
        name: LayoutLocation(name, directory, threads)
        for name, directory in layout_directories(config).items()
    }
    return SourcesByLocation(registry, directories, config.locate)


def delivery_to(
    system: System, reactor: Reactor, threads: Threads, ost_count: int = 0
) -> SystemDelivery:
    """Return how images are delivered to a system, by the kind of its section."""
    match system.delivery:
        case LocalDelivery() as section:
            return local_delivery(
                section, reactor, threads, ost_count, may_link=not system.has_open_files
            )
        case SshDelivery() as section:
            return ssh_delivery(section, system.host, reactor, threads, ost_count)


def directory_on_host(
    section: SshDelivery, host: str, reactor: Reactor, threads: Threads
) -> RemoteDirectory:
    """Return the image directory of a system as one of its hosts sees it."""
    return ssh_directory(section, [host], reactor, threads)
