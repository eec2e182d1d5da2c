"""Wire what a worker has, for the look-ups of `app/explain.py`; nothing is made on this machine."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shiftergw.app import compose
from shiftergw.app.conversion_parts import ConversionParts
from shiftergw.app.worker import target_of
from shiftergw.config import Config
from shiftergw.errors import ConfigurationError
from shiftergw.job.pipeline import Pipeline
from shiftergw.job.policy import ImagePolicies
from shiftergw.job.targets import Target
from shiftergw.model.explanations import ExplainRequest
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.services import ClosedAtStop
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import ImageStore
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.shared_breakers import NoBreakers, SharedBreakers

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.store.mongo.store import MongoStore
    from shiftergw.store.sqlite.store import SqliteStore


@dataclass(frozen=True, slots=True)
class ExplainAdapters:
    """What a worker has, for one system; without a `store` nothing has been delivered yet.

    `mirror_failures` gets the causes for which mirrors are passed over, by their hosts.
    """

    parts: ConversionParts
    registry: RegistryClient
    mirror_failures: dict[str, str]
    pipeline: Pipeline
    policies: ImagePolicies
    target: Target
    store: SqliteStore | MongoStore | None
    closing: Sequence[ClosedAtStop]


async def open_adapters(
    reactor: Reactor,
    config: Config,
    request: ExplainRequest,
    parts: ConversionParts,
    disks: Threads,
) -> ExplainAdapters:
    """Return the adapters of a worker, wired as in `app/worker.py`; no directory is made."""
    has_state, has_cache = await parts.threads.run(_check_user, config)
    store = compose.store(reactor, config) if has_state or config.mongodb_uri else None
    shared_breakers = await _shared_breakers(config, request, store, parts.threads)
    failures: dict[str, str] = {}
    registry = compose.registry(
        reactor,
        config,
        shared_breakers,
        parts.threads if has_cache else None,
        failures.__setitem__,
    )
    lookasides = compose.lookasides(reactor, config, shared_breakers)
    system = config.systems[request.system]
    delivery = compose.delivery_to(system, reactor, disks, config.ost_count_of(system.name))
    directory = delivery.with_breaker(
        system, store or NoBreakers(), shared_breakers.machine, reactor
    )
    source = compose.image_source(registry, config, parts.layouts)
    return ExplainAdapters(
        parts,
        registry,
        failures,
        Pipeline(source, parts.caches.of, parts.builder, config.build_limits(), reactor),
        compose.policies(reactor, config, registry, lookasides, parts.threads),
        target_of(config, system.name, directory),
        store,
        [ClosedAtStop(part.close) for part in (registry, lookasides, directory)],
    )


def _check_user(config: Config) -> tuple[bool, bool]:
    """Return whether the gateway has a database file here, and whether it has a cache. Blocks.

    Raises `ConfigurationError` for another user than that of the gateway, who can neither read its
    database and its keys nor, as root, write files that the gateway can use.
    """
    for key, directory in (
        ("StateDirectory", config.state_directory),
        ("CacheDirectory", config.cache_directory),
    ):
        try:
            owner = directory.stat().st_uid
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigurationError(
                f"{key}: {directory} cannot be read: {error.strerror}.",
                remedy="Run this command as the gateway's user.",
            ) from error
        if owner != os.geteuid():
            name = str(owner)
            with suppress(KeyError):
                name = pwd.getpwuid(owner).pw_name
            raise ConfigurationError(
                f"{key}: {directory} belongs to another user, {name}.",
                remedy=f"Run this command as the gateway's user: sudo -H -u {name} shiftergw"
                " explain …",
            )
    return compose.state_file(config).exists(), config.cache_directory.exists()


async def _shared_breakers(
    config: Config, request: ExplainRequest, store: ImageStore | None, threads: Threads
) -> SharedBreakers:
    """Return the breakers that the site's workers use; none if there is no database yet."""
    machine = socket.gethostname()
    if store is None:
        return SharedBreakers(machine=machine)
    if request.login is None:
        return SharedBreakers(store, machine)
    seal = await threads.run(Seal.read, config.secret_key_file)

    def fingerprint(login: RegistryLogin) -> str:
        return seal.fingerprint(f"{login.user}:{login.password}", "registry login")

    return SharedBreakers(store, machine, fingerprint)
