"""Check the registries, their mirrors, and the certificates that the gateway shows them."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.app.checkup.finding import NETWORK_LIMIT, Finding, Level, date_problem, failure
from shiftergw.app.locations import configured_locations, layout_directories
from shiftergw.config import Config
from shiftergw.config.locations import ANY_REGISTRY
from shiftergw.errors import ConfigurationError, GatewayError, RegistryUntrusted, TimedOut
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.timing import within
from shiftergw.sources.registry.local_files import client_certificate_dates, mirror_login
from shiftergw.sources.registry.location import Location, WebOrigin
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.transport import Transport, place_of

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

_REMEDY = "Check the url, the network, the proxy (https_proxy) and sslcacert."


async def registries(config: Config, environ: Mapping[str, str], reactor: Reactor) -> list[Finding]:
    """Return the findings about every location, each followed by its mirrors.

    A default registry that does not answer is a failure. Another registry, or a mirror, is a
    warning, because only some images come from it.
    """
    findings: list[Finding] = []
    places: list[tuple[str, Location, Level]] = []
    for name, location in configured_locations(config).items():
        places.append((f"registry {name}", location, _level_without(name, config)))
        for mirror in location.mirrors:
            label = f"mirror {mirror.location.name} of {name}"
            places.append((label, mirror.location, Level.WARNING))
            try:
                mirror_login(mirror)
            except ConfigurationError as error:
                findings.append(failure(label, error))
    findings += filter(None, (_client_certificate(name, location) for name, location, _ in places))
    findings += await gather_or_cancel(_answer(*place, environ, reactor) for place in places)
    directories = [
        _directory(f"location {name}", path, _level_without(name, config))
        for name, path in layout_directories(config).items()
    ]
    return [*findings, *directories, *_without_location(config)]


def _level_without(name: str, config: Config) -> Level:
    """Return how grave it is if a location does not answer."""
    return Level.FAILURE if name == config.default_image_location else Level.WARNING


def _directory(label: str, path: Path, level_without: Level) -> Finding:
    """Check that a directory with OCI layouts can be read."""
    if os.access(path, os.R_OK | os.X_OK) and path.is_dir():
        return Finding(label, Level.OK, str(path))
    problem = "cannot be read by you" if path.is_dir() else "is not a directory"
    return Finding(label, level_without, f"{path} {problem}", "Correct its url, or its mode.")


def _without_location(config: Config) -> list[Finding]:
    """Return what holds for registries without a location, which are not asked."""
    findings = []
    if config.registries_conf is not None:
        prefixes = ", ".join(rule.prefix for rule in config.registry_rules.rules)
        text = f"{config.registries_conf}: {prefixes or 'no [[registry]]'}"
        findings.append(Finding("RegistriesConf", Level.OK, text))
    if ANY_REGISTRY in config.locations:
        section = config.locations[ANY_REGISTRY]
        allow = "any" if section.allow is None else ", ".join(section.allow) or "none"
        text = f"{allow}, except {', '.join(section.deny)}" if section.deny else allow
        findings.append(Finding("registries without a location", Level.OK, text))
    return findings


def _client_certificate(name: str, location: Location) -> Finding | None:
    """Check the dates of a client certificate; None if there is none, or it cannot be read.

    `_answer` reports files that cannot be read, and a key of another certificate.
    """
    if location.client_certificate is None:
        return None
    try:
        dates = client_certificate_dates(location)
    except ConfigurationError:
        return None
    problem = date_problem(*dates, dt.datetime.now(dt.UTC))
    text = f"clientCertificate {location.client_certificate}"
    if problem is None:
        return Finding(name, Level.OK, f"{text} is valid")
    level, what = problem
    return Finding(name, level, f"{text} {what}", "Have its authority renew it.")


async def _answer(
    name: str,
    location: Location,
    level_without: Level,
    environ: Mapping[str, str],
    reactor: Reactor,
) -> Finding:
    """Check that a registry answers `GET /v2/` (distribution-spec, "Determining Support").

    Whatever `level_without` is, an error of the configuration is a failure.
    """
    try:
        transport = Transport(reactor, location, Proxies(environ), Limits(connect=NETWORK_LIMIT))
        try:
            status, place = await within(
                NETWORK_LIMIT,
                reactor,
                _status(transport, f"{location.base}/v2/"),
                lambda: TimedOut(f"It did not answer within {NETWORK_LIMIT:.0f} s."),
            )
        finally:
            await transport.close()
    except ConfigurationError as error:
        return failure(name, error)
    except RegistryUntrusted as error:  # its own remedy is better
        return replace(failure(name, error), level=level_without)
    except GatewayError as error:
        return replace(failure(name, error), level=level_without, remedy=_REMEDY)
    text = f"{location.base} answers with HTTP status {status}"
    if status in {200, 401} and place != location.origin:
        address = f"{place.scheme}://{place.authority}"
        return Finding(
            name,
            Level.WARNING,
            f"{location.base} redirects to {address}, where no login is sent",
            f"If that is the registry, make {address} the url of the location.",
        )
    if status in {200, 401}:
        return Finding(name, Level.OK, text)
    return Finding(name, level_without, text, _REMEDY)


async def _status(transport: Transport, url: str) -> tuple[int, WebOrigin]:
    """Return the status of the answer at the end of all redirects, and who has sent it."""
    response = await transport.request("GET", url, {})
    transport.discard(response)
    return response.code, place_of(response)
