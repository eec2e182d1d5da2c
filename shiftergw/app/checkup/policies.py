"""Check the policies of the systems, and which delivered images they have not accepted."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftergw.app.checkup.finding import Finding, Level, failure
from shiftergw.app.checkup.policy_keys import PolicyKeys
from shiftergw.config import Config, System
from shiftergw.config.locations import ANY_REGISTRY
from shiftergw.config.registries_directory import read_registries_directory
from shiftergw.errors import BadRequest, GatewayError, PolicyInvalid, printable
from shiftergw.job.policy import read_policy
from shiftergw.model.records import ImageRecord
from shiftergw.model.references import ImageReference
from shiftergw.rules.image_identity import identify_record, registry_host
from shiftergw.rules.policy import Policy, remembered_verdict
from shiftergw.rules.policy_document import parse_policy
from shiftergw.signatures.gpg import GpgVerifier

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

_TRANSPORTS = frozenset(
    {"docker", "atomic", "containers-storage", "dir", "docker-archive", "docker-daemon", "oci",
     "oci-archive", "ostree", "sif", "squashfs", "tarball"}
)  # fmt: skip
"""The transports of containers-transports(5), and `squashfs`, which is of this program."""

REFUSED_IMAGES = "images that the policy of their system refuses"
UNJUDGED_IMAGES = "images whose signatures the present policy of their system has not judged"


async def policies(config: Config, reactor: Reactor) -> AsyncIterator[Finding]:
    """Yield the findings about all policies, and about what the check of signatures needs."""
    needs_gpg = needs_signatures = False
    for system in config.systems.values():
        if system.policy_file is None:
            continue
        name = f"policy_file of {system.name}"
        try:
            policy = read_policy(system.policy_file)
        except PolicyInvalid as error:
            yield failure(name, error)
            continue
        needs_gpg = needs_gpg or policy.needs_gpg
        needs_signatures = needs_signatures or policy.needs_signatures
        yield _policy(name, system.policy_file, policy)
        for finding in _writable_paths(name, system.policy_file):
            yield finding
        for finding in _idle_scopes(name, config, policy):
            yield finding
        for finding in await PolicyKeys(name, policy, reactor).findings():
            yield finding
    if needs_gpg:
        yield await _gpgv(reactor)
    if needs_signatures:
        yield _registries_directory(config)


def _policy(name: str, path: Path, policy: Policy) -> Finding:
    scopes = sum(map(len, policy.transports.values()))
    text = f"{path}: {scopes} scopes beside the default; digest {policy.digest[:19]}"
    return Finding(name, Level.OK, text)


def _writable_paths(name: str, path: Path) -> Iterator[Finding]:
    """Warn of files of a policy that everybody may change, or replace in their directories."""
    files = [path]

    def note(key: str) -> bytes:
        files.append(Path(key))
        return b"key"

    with suppress(OSError, PolicyInvalid):
        parse_policy(path.read_bytes(), note)
    for file in dict.fromkeys(files):
        for place in (file, file.parent):
            try:
                mode = place.stat().st_mode
            except OSError:
                continue
            is_sticky_directory = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
            if mode & stat.S_IWOTH and not is_sticky_directory:
                remedy = f"Take the permission to write from everybody else: chmod o-w {place}."
                yield Finding(name, Level.WARNING, f"everybody may write to {place}", remedy)


def _idle_scopes(name: str, config: Config, policy: Policy) -> Iterator[Finding]:
    """Warn of parts of a policy that apply to no image, perhaps because of a typing error."""
    transports = sorted(policy.transports.keys() - _TRANSPORTS)
    if transports:
        yield Finding(
            name,
            Level.WARNING,
            f"no image has the transport {printable(', '.join(transports))}",
            "See the list of transports in containers-transports(5).",
        )
    if ANY_REGISTRY in config.locations or config.registries_conf is not None:
        return  # any host may be a registry
    known_hosts = {
        registry_host(location, section.url)
        for location, section in config.locations.items()
        if not section.url.startswith("file:")
    }
    scopes = policy.transports.get("docker", {})
    hosts = {scope.partition("/")[0].partition("@")[0] for scope in scopes if scope[:2] != "*."}
    idle_hosts = sorted(hosts - known_hosts - {""})
    if idle_hosts:
        yield Finding(
            name,
            Level.WARNING,
            f"no location has a host of these scopes: {printable(', '.join(idle_hosts))}",
            "Write hosts as in docker.io/library/ubuntu. The hosts of this gateway are"
            f" {printable(', '.join(sorted(known_hosts)))}.",
        )


async def _gpgv(reactor: Reactor) -> Finding:
    try:
        await GpgVerifier(reactor, reactor).check_program()
    except GatewayError as error:
        return failure("gpgv", error)
    return Finding("gpgv", Level.OK, "can be started")


def _registries_directory(config: Config) -> Finding:
    name = "RegistriesDirectory"
    try:
        directory = read_registries_directory(config.registries_directory)
    except GatewayError as error:
        return failure(name, error)
    default = " and a default" if directory.default.lookaside else ""
    count = f"scopes with signatures: {len(directory.sections)}{default}"
    return Finding(name, Level.OK, count)


class PolicyRecords:
    """Judges delivered images by the present policies of their systems, without any request."""

    def __init__(self, config: Config) -> None:
        """Read the policies; an invalid one refuses every image. Blocks."""
        self._config = config
        self._policies = dict(_policies_of(config.systems.values()))

    def judge(self, document: Mapping[str, Any]) -> str:
        """Return what is wrong with a READY record: the name of a class of images, or nothing."""
        record = ImageRecord.from_document(document)
        if record.system not in self._policies:
            return ""
        policy = self._policies[record.system]
        if policy is None:
            return REFUSED_IMAGES
        classes = {self._judge_tag(policy, record, tag) for tag in record.tags}
        return next((name for name in (REFUSED_IMAGES, UNJUDGED_IMAGES) if name in classes), "")

    def _judge_tag(self, policy: Policy, record: ImageRecord, tag: str) -> str:
        location = record.origin.location if record.origin is not None else ""
        section = self._config.locations.get(location)
        try:
            reference = ImageReference.parse(tag)
        except BadRequest:
            return UNJUDGED_IMAGES
        identity = identify_record(record, reference, section.url if section is not None else "")
        verdict = None if identity is None else remembered_verdict(policy, identity, record)
        if verdict is None:
            return UNJUDGED_IMAGES
        return "" if verdict.is_accepted else REFUSED_IMAGES


def _policies_of(systems: Iterable[System]) -> Iterator[tuple[str, Policy | None]]:
    for system in systems:
        if system.policy_file is not None:
            try:
                yield system.name, read_policy(system.policy_file)
            except PolicyInvalid:
                yield system.name, None
