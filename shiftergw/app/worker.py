"""Wire a worker's process: registry, cache, builder, image directories, store."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from twisted.application.service import Service

from shiftergw.app import compose
from shiftergw.app.conversion_parts import ConversionParts
from shiftergw.app.policies import PolicyPreparation
from shiftergw.app.preparation import Preparation
from shiftergw.config import Config
from shiftergw.delivery.disk_calls import MOST_HANGING
from shiftergw.job.pipeline import Pipeline
from shiftergw.job.pull import Pull
from shiftergw.job.removal import Removal
from shiftergw.job.targets import Target
from shiftergw.job.worker import Worker
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.services import ClosedAtStop, OrderedServices
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import NO_METRICS, ImageDirectory, Metrics, Sweepable, runner_name
from shiftergw.service.housekeeping import SCRATCH_SECONDS, Scratch
from shiftergw.service.scrubbing import Scrubbing
from shiftergw.sources.registry.shared_breakers import SharedBreakers
from shiftergw.sources.user_files.files import UserFiles
from shiftergw.sources.user_files.spool_client import SpoolClient

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor


def worker_service(
    reactor: Reactor, config: Config, metrics: Metrics = NO_METRICS
) -> tuple[Service, Callable[[], Worker]]:
    """Return a worker process's services, and a function that returns the worker once they run."""
    parts = ConversionParts(reactor, config, metrics)
    # Threads of their own, since an image directory that hangs keeps its threads.
    disks = Threads(reactor, (MOST_HANGING + 2) * len(config.systems), "images")
    preparation = Preparation(config, disks, reactor)
    store = compose.store(reactor, config)
    machine = socket.gethostname()

    def fingerprint(login: RegistryLogin) -> str:
        # Keyed, so that nobody without the site's key can test a guess of the password.
        return preparation.seal().fingerprint(f"{login.user}:{login.password}", "registry login")

    shared_breakers = SharedBreakers(store, machine, fingerprint)
    registry = compose.registry(reactor, config, shared_breakers, parts.threads, metrics=metrics)
    lookasides = compose.lookasides(reactor, config, shared_breakers)
    policies = compose.policies(reactor, config, registry, lookasides, parts.threads)
    source = compose.image_source(registry, config, parts.layouts)
    pipeline = Pipeline(source, parts.caches.of, parts.builder, config.build_limits(), reactor)
    directories = {
        name: compose.delivery_to(system, reactor, disks, config.ost_count_of(name)).with_breaker(
            system, store, machine, reactor
        )
        for name, system in config.systems.items()
    }
    targets = {name: target_of(config, name, directories[name]) for name in config.systems}
    gateway = None
    if config.gateway_url is not None:
        gateway = SpoolClient(config.gateway_url, preparation.seal, parts.threads, reactor)
    files = compose.user_files(reactor, config, parts.threads, gateway)

    def make_worker() -> Worker:
        seal = preparation.seal()
        pull = Pull(config, store, pipeline, policies, targets, seal, reactor, files.open)
        removal = Removal(store, targets)
        runner = runner_name(machine, os.getpid())
        limits = config.heartbeat_limit, config.wait_limits()
        return Worker(store, pull, removal, reactor, runner, *limits, metrics)

    services = [
        disks,
        parts.threads,
        parts.readers,
        parts.layouts,
        preparation,
        PolicyPreparation(config, disks, reactor),
        store,
        ClosedAtStop(registry.close),
        ClosedAtStop(lookasides.close),
        *([] if gateway is None else [ClosedAtStop(gateway.close)]),
        Scratch(_scratch_places(config, directories, files, parts), reactor),
        *([Scrubbing(parts.scrub, config.scrub_cache, reactor)] if config.scrub_cache else []),
        # Stopped before Scratch, whose sweep may be waiting for a system that is down.
        *(ClosedAtStop(directory.close) for directory in directories.values()),
    ]
    return OrderedServices(services), make_worker


def _scratch_places(
    config: Config,
    directories: Mapping[str, ImageDirectory],
    files: UserFiles,
    parts: ConversionParts,
) -> dict[str, tuple[Sweepable, float]]:
    """Return where old temporary files lie, by the name for the log, and their ages in seconds."""
    # While a pull waits for its system, its converted file and its partial file are not used.
    seconds = SCRATCH_SECONDS + config.delivery_wait
    places: dict[str, tuple[Sweepable, float]] = {
        f"system {name}": (directory, seconds) for name, directory in directories.items()
    }
    places["ExpandDirectory"] = (parts.builder, seconds)
    places["uploads"] = (files, seconds)
    places["CacheDirectory"] = (parts.caches, config.keep_layers)
    places["packs of layers"] = (parts.packs, config.keep_layers)
    return places


def target_of(config: Config, name: str, directory: ImageDirectory) -> Target:
    """Return how images for a system are made and delivered, into its image directory."""
    system = config.systems[name]
    return Target(
        system.directory_name,
        directory,
        system.architecture,
        system.squash_options(config),
        config.directory_of(name)[1],
        config.ost_count_of(name),
        not config.disable_acl_metadata,
        system.file_mode,
    )
