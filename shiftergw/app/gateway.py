"""Wire the gateway's process: web, authentication, rules, store, queue, housekeeping."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.application.service import Service

from shiftergw.app import compose
from shiftergw.app.admin import AdminListener
from shiftergw.app.cache_sizes import measure_caches
from shiftergw.app.log import LogOptions
from shiftergw.app.measured_store import with_measurements
from shiftergw.app.metric_counts import MetricCounts
from shiftergw.app.metrics import MetricsPage, ReactorLag, count_job_end, requests_left
from shiftergw.app.policies import PolicyPreparation, PresentPolicies
from shiftergw.app.preparation import Preparation
from shiftergw.app.supervision import Supervision
from shiftergw.app.user_files import user_files
from shiftergw.auth.single_use import SingleUse
from shiftergw.auth.users import CONCURRENT_QUERIES
from shiftergw.config import Config
from shiftergw.plumbing import descriptors
from shiftergw.plumbing.line_file import LineFile
from shiftergw.plumbing.listening import Listener
from shiftergw.plumbing.log_lines import write_members
from shiftergw.plumbing.services import ClosedAtStop, OrderedServices
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import (
    Authenticator,
    ImageStore,
    JobEnd,
    JobQueue,
    UsedCredentials,
    UserDirectory,
)
from shiftergw.service.dispatch import Dispatch
from shiftergw.service.explanations import Explanations
from shiftergw.service.gateway import Gateway, GatewayOptions
from shiftergw.service.housekeeping import Housekeeping, Schedule
from shiftergw.service.recovery import Recovery, WorkerShortage
from shiftergw.service.site_caches import CacheReporter
from shiftergw.service.site_report import SiteReporter
from shiftergw.store.sqlite.integrity import CHECK_SECONDS
from shiftergw.web.admin import AdminApplication, Page, health_pages
from shiftergw.web.api import make_site
from shiftergw.web.connections import ConnectionLimits
from shiftergw.web.journal import Audit, audit_nothing
from shiftergw.web.lists import ListLimits
from shiftergw.web.page.admin_page import AdminPage
from shiftergw.work.pool import WorkerPool

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.work.celery.queue import CeleryQueue


def gateway_service(
    reactor: Reactor, config: Config, config_file: Path, log_options: LogOptions | None = None
) -> Service:
    """Return the gateway's process as one service, whose workers follow `log_options`.

    Raises `ConfigurationError` for what the configuration's own checks cannot see.
    """
    # Made here so that its errors end the start, not each worker.
    registry = compose.registry(reactor, config)
    # At the start, each image directory may block one thread.
    threads = Threads(reactor, 8 + len(config.systems), "gateway")
    preparation = Preparation(config, threads, reactor)

    audit, audit_services = audit_of(config, threads, reactor)
    counts = MetricCounts()
    store_service = compose.store(reactor, config, CHECK_SECONDS)
    store = with_measurements(store_service, counts, reactor)
    queue = _queue(reactor, config, config_file, counts, log_options)
    wake, work_services = _work_services(reactor, config, store, queue, counts, audit)

    # The host's user database may block all its places; each listing is parsed beside them.
    user_threads = Threads(reactor, CONCURRENT_QUERIES + len(config.systems), "users")
    users = compose.users(config, user_threads, reactor)
    authenticators, credential_rounds = _authenticators(
        config, users.by_system, store.used_credentials, reactor
    )

    files, file_services = user_files(reactor, config, store, preparation)
    policies = PresentPolicies(config, threads, reactor)
    explanations = _explanations(reactor, config, config_file)
    options = GatewayOptions(files, policies.is_judged, explanations, registry)
    rules = Gateway(config, store, preparation.seal, wake, reactor, queue, options)
    list_limits = ListLimits(config.max_record_size, config.max_list_size)
    connections = _connection_limits(config)
    site = make_site(
        rules, authenticators, reactor, threads.run, list_limits, connections, counts, audit
    )
    metrics = MetricsPage(counts, store, queue, config.systems, threads, reactor)
    return OrderedServices(
        [
            threads,
            *audit_services,
            preparation,
            # With a broker, other machines pull the images.
            *([] if config.broker_url else [PolicyPreparation(config, threads, reactor)]),
            store_service,
            *work_services,
            *credential_rounds,
            *file_services,
            ClosedAtStop(registry.close),
            *([] if explanations is None else [explanations]),
            user_threads,
            *users.listings.values(),
            *(Listener(text, site, reactor) for text in config.listen),
            ReactorLag(counts, reactor),
            *_admin_services(config, rules, metrics, store, queue, counts, threads, reactor),
            Supervision(os.environ, store.ready, config.listen, reactor),
        ]
    )


def _queue(
    reactor: Reactor,
    config: Config,
    config_file: Path,
    counts: MetricCounts,
    log_options: LogOptions | None,
) -> WorkerPool | CeleryQueue:
    """Return the queue, whose local workers follow `log_options` and add to `counts`."""
    queue = compose.queue(reactor, config, config_file, log_options)
    if isinstance(queue, WorkerPool):
        queue.on_metrics, queue.on_metrics_end = counts.merge, counts.forget
    return queue


def audit_of(config: Config, threads: Threads, reactor: Reactor) -> tuple[Audit, Sequence[Service]]:
    """Return a function that adds an event to the audit log, and services that flush it."""
    if config.audit_log is None:
        return audit_nothing, []
    file = LineFile(config.audit_log, threads)

    def audit(fields: Mapping[str, object]) -> None:
        file.append(write_members(reactor.seconds(), fields))

    return audit, [ClosedAtStop(file.close)]


def _work_services(
    reactor: Reactor,
    config: Config,
    store: ImageStore,
    queue: WorkerPool | CeleryQueue,
    counts: MetricCounts,
    audit: Audit,
) -> tuple[Callable[[], None], Sequence[Service]]:
    """Return a function for new work in the store, and the services, to start in order.

    The services bring the store's work to the queue, and its results back.
    """
    limits = config.heartbeat_limit, config.systems, config.user_limits.running
    dispatch = Dispatch(store, queue, reactor, *limits)
    recovery = Recovery(store, dispatch, reactor)
    queue.on_idle = dispatch.wake

    def note_end(end: JobEnd) -> None:
        count_job_end(counts, end)
        recovery.job_ended(end)

    queue.on_end = note_end
    # Only for a local pool: a broken installation must be repaired, but worker machines that are
    # down may come back, so pulls wait for them.
    shortage = WorkerShortage(
        store, queue, reactor, config.worker_wait, config.systems, config.heartbeat_limit
    )
    schedule = Schedule(
        config.scheduled_expiry, config.image_expiration_timeout, config.systems.keys()
    )
    housekeeping = Housekeeping(store, dispatch.wake, reactor, schedule, audit=audit)
    local = [] if config.broker_url else [shortage]
    return dispatch.wake, [recovery, queue, dispatch, *local, housekeeping]


def _explanations(reactor: Reactor, config: Config, config_file: Path) -> Explanations | None:
    """Return what explains pulls; with a broker, other machines have the cache and the systems."""
    if config.broker_url is not None:
        return None
    return Explanations(config, compose.explainer(reactor, config_file), reactor)


def _authenticators(
    config: Config,
    users: Mapping[str, UserDirectory],
    used_credentials: UsedCredentials | None,
    reactor: Reactor,
) -> tuple[Mapping[str, Authenticator], Sequence[Service]]:
    """Return what identifies the callers of each system, and the services that it needs.

    Several gateways may share a store with `used_credentials`: a munge credential then counts once
    for all of them.
    """
    authenticators = {
        name: compose.authenticator(config, system, users[name], reactor)
        for name, system in config.systems.items()
    }
    if config.authentication != "munge" or used_credentials is None:
        return authenticators, []
    single_use = SingleUse(authenticators, used_credentials, reactor)
    return dict.fromkeys(authenticators, single_use), [single_use.rounds]


def _admin_services(
    config: Config,
    rules: Gateway,
    metrics: MetricsPage,
    store: ImageStore,
    queue: JobQueue,
    counts: MetricCounts,
    threads: Threads,
    reactor: Reactor,
) -> Sequence[Service]:
    """Return the admin listener and what it shows, unless `AdminListen` is none."""
    if not config.admin_listen:
        return []
    pages: dict[str, Page] = {**health_pages(rules), "/metrics": metrics}
    caches = None  # with a broker, other machines have them
    if config.broker_url is None:
        caches = CacheReporter(partial(measure_caches, config), threads, reactor)
    reporter = SiteReporter(
        config, store, rules.work, queue, threads, reactor, caches, partial(requests_left, counts)
    )
    application = AdminApplication(pages, reactor, AdminPage(reporter, reactor))
    return [AdminListener(config, application, threads, reactor)]


def _connection_limits(config: Config) -> ConnectionLimits:
    """Return the limits of the web site, within the file descriptors that the process may open."""
    limits = config.web_limits
    return ConnectionLimits.within(
        descriptors.raise_limit(),
        connections=limits.connections,
        per_peer=limits.per_peer,
        request_seconds=limits.request_time,
        proxies=limits.proxies,
    )
