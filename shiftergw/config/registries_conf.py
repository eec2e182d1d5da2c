"""Read registries.conf, the configuration of registries that podman, skopeo and others share.

The format is version 2 of containers-registries.conf(5), with the drop-in files of
containers-registries.conf.d(5). Only the tables `[[registry]]` count here: names without a registry
mean `DefaultImageLocation`, never a search or an alias.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shiftergw.config.source import read_text
from shiftergw.config.values import HOST
from shiftergw.errors import ConfigurationError, printable
from shiftergw.model.names import DOCKER_HUB_HOSTS, DOCKER_IO

MirrorUse = Literal["all", "digest-only", "tag-only"]
"""The references for which a mirror is asked: its `pull-from-mirror`."""

_PORT = re.compile(r":[0-9]+$")
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TOP_KEYS = frozenset(
    {
        *("registry", "unqualified-search-registries", "aliases", "short-name-mode"),
        *("credential-helpers", "additional-layer-store-auth-helper"),
    }
)
_REGISTRY_KEYS: Mapping[str, type] = {
    "prefix": str,
    "location": str,
    "insecure": bool,
    "blocked": bool,
    "mirror-by-digest-only": bool,
    "mirror": list,
}
_MIRROR_KEYS: Mapping[str, type] = {"location": str, "insecure": bool, "pull-from-mirror": str}
_USES: Mapping[str, MirrorUse] = {
    "all": "all",
    "digest-only": "digest-only",
    "tag-only": "tag-only",
}
_TYPES = {str: "text", bool: "true or false", list: "an array of tables"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place of repositories at a registry: `https://HOST[:PORT]`, and the path in front of them.

    `insecure` of the file means plain HTTP here.
    """

    url: str
    path: str = ""

    @classmethod
    def parse(cls, text: str, *, insecure: bool) -> Endpoint:
        """Read `HOST[:PORT][/PATH]`; raise `ValueError`."""
        host, path = split_prefix(text)
        return cls(f"{'http' if insecure else 'https'}://{host}", path)


@dataclass(frozen=True, slots=True)
class MirrorRule:
    """One `[[registry.mirror]]`."""

    endpoint: Endpoint
    use: MirrorUse = "all"


@dataclass(frozen=True, slots=True)
class RegistryRule:
    """One `[[registry]]`: what names that begin with `host/path` mean.

    A host that begins with `*.` stands for all its subdomains; without an `endpoint` their names
    are used as they are.
    """

    host: str
    path: str = ""
    endpoint: Endpoint | None = None
    insecure: bool = False
    is_blocked: bool = False
    mirrors: tuple[MirrorRule, ...] = ()

    @property
    def prefix(self) -> str:
        """Return the prefix as it is written in the file."""
        return f"{self.host}/{self.path}" if self.path else self.host

    def covers(self, host: str, repository: str) -> bool:
        """Return whether the rule is for this repository of this host.

        A rule that blocks a host without a port blocks all its ports.
        """
        if self.is_blocked and ":" not in self.host:
            host = _PORT.sub("", host)
        if self.host.startswith("*."):
            return host.endswith(self.host[1:])
        return host == self.host and f"{repository}/".startswith(f"{self.path}/" * bool(self.path))


@dataclass(frozen=True, slots=True)
class RegistryRules:
    """All rules of registries.conf and its drop-in files."""

    rules: tuple[RegistryRule, ...] = ()

    def find(self, host: str, repository: str) -> RegistryRule | None:
        """Return the rule with the longest prefix for a name, or None."""
        host, repository = normalize(host, repository)
        matches = [rule for rule in self.rules if rule.covers(host, repository)]
        return max(matches, key=lambda rule: len(rule.prefix), default=None)


def normalize(host: str, repository: str) -> tuple[str, str]:
    """Return host and repository as prefixes have them; Docker Hub is `docker.io/library/…`."""
    host = host.lower().removesuffix(":443")
    if host in DOCKER_HUB_HOSTS:
        return DOCKER_IO, repository if "/" in repository else f"library/{repository}"
    return host, repository


def split_prefix(text: str) -> tuple[str, str]:
    """Split `HOST[:PORT][/PATH]`; raise `ValueError` for another form."""
    host, slash, path = text.removesuffix("/").partition("/")
    if (
        not HOST.fullmatch(host.lower())
        or "://" in text
        or (slash and not all(map(_PATH.fullmatch, path.split("/"))))
    ):
        raise ValueError("must be HOST[:PORT][/PATH], without https://, tag or digest")
    return host.lower(), path


@dataclass
class _Reader:
    """Reads the files of one registries.conf, and collects their problems and warnings."""

    rules: dict[str, RegistryRule] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def read(self, file: Path) -> None:
        """Add the rules of a file; they replace those of earlier files with the same prefix."""
        where = f"RegistriesConf: {file}"
        try:
            document = tomllib.loads(read_text(file))
        except OSError as error:
            self.problems.append(f"{where}: cannot be read: {error.strerror}")
            return
        except ConfigurationError as error:
            self.problems.append(f"{where}: {error.what}")
            return
        except tomllib.TOMLDecodeError as error:
            self.problems.append(f"{where}: this is not TOML: {printable(str(error))}")
            return
        self._check_top(document, where)
        tables = document.get("registry", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.problems.append(f"{where}: registry: must be an array of tables: [[registry]]")
            return
        rules: dict[str, RegistryRule] = {}
        for number, table in enumerate(tables, 1):
            place = f"{where}: [[registry]] {number}"
            rule = self._rule(table, place)
            if rule is not None and rule.prefix in rules:
                self.problems.append(f"{place}: the prefix {rule.prefix} appears more than once")
            elif rule is not None:
                rules[rule.prefix] = rule
        self.rules |= rules

    def _check_top(self, document: Mapping[str, Any], where: str) -> None:
        if "registries" in document:
            self.problems.append(
                f"{where}: registries: this is version 1 of the format; write [[registry]] tables"
            )
        for key in ("unqualified-search-registries", "aliases"):
            if document.get(key):
                self.warnings.append(
                    f"{where}: {key}: has no effect: a name without a registry means"
                    " DefaultImageLocation"
                )
        helpers = document.get("credential-helpers")
        if helpers and helpers != ["containers-auth.json"]:
            self.warnings.append(f"{where}: credential-helpers: has no effect: users log in")
        for key in document.keys() - _TOP_KEYS - {"registries"}:
            self.warnings.append(f"{where}: {printable(key)}: unknown key, not used")

    def _rule(self, table: Mapping[str, Any], place: str) -> RegistryRule | None:
        """Return the rule of a table, or None after adding its problems."""
        problems = [*_type_problems(table, _REGISTRY_KEYS, place)]
        tables = table.get("mirror", [])
        if not problems and not all(isinstance(mirror, dict) for mirror in tables):
            problems.append(f"{place}.mirror: must be an array of tables")
        if problems:
            self.problems += problems
            return None
        self._warn_of_unknown_keys(table, _REGISTRY_KEYS, place)
        location, insecure = table.get("location", ""), table.get("insecure", False)
        try:
            host, path = _split_rule(table.get("prefix") or location, location)
            endpoint = Endpoint.parse(location, insecure=insecure) if location else None
        except ValueError as error:
            self.problems.append(f"{place}: {error}")
            return None
        by_digest_only = table.get("mirror-by-digest-only", False)
        mirrors = [
            self._mirror(mirror, f"{place}, mirror {number}", by_digest_only=by_digest_only)
            for number, mirror in enumerate(tables, 1)
        ]
        return RegistryRule(
            host,
            path,
            endpoint,
            insecure,
            table.get("blocked", False),
            tuple(mirror for mirror in mirrors if mirror is not None),
        )

    def _mirror(
        self, table: Mapping[str, Any], place: str, *, by_digest_only: bool
    ) -> MirrorRule | None:
        problems = [*_type_problems(table, _MIRROR_KEYS, place)]
        if problems:
            self.problems += problems
            return None
        self._warn_of_unknown_keys(table, _MIRROR_KEYS, place)
        use = _USES.get(table.get("pull-from-mirror") or "all", "all")
        if table.get("pull-from-mirror", "") not in {"", *_USES}:
            self.problems.append(f"{place}: pull-from-mirror: must be one of {', '.join(_USES)}")
        if by_digest_only and table.get("pull-from-mirror"):
            self.problems.append(
                f"{place}: pull-from-mirror: is not allowed together with mirror-by-digest-only"
            )
        insecure = table.get("insecure", False)
        try:
            endpoint = Endpoint.parse(table.get("location", ""), insecure=insecure)
        except ValueError as error:
            self.problems.append(f"{place}: location: {error}")
            return None
        return MirrorRule(endpoint, "digest-only" if by_digest_only else use)

    def _warn_of_unknown_keys(
        self, table: Mapping[str, Any], keys: Mapping[str, type], place: str
    ) -> None:
        for key in sorted(table.keys() - keys):
            self.warnings.append(f"{place}: {printable(key)}: unknown key, not used")
        if table.get("insecure"):
            self.warnings.append(
                f"{place}: insecure: the gateway uses plain HTTP for it; for TLS with an authority"
                " of your own write the registry into Locations, with sslcacert"
            )


def _type_problems(table: Mapping[str, Any], keys: Mapping[str, type], place: str) -> Iterator[str]:
    for key, kind in keys.items():
        if key in table and not isinstance(table[key], kind):
            yield f"{place}: {key}: must be {_TYPES[kind]}"


def _split_rule(prefix: str, location: str) -> tuple[str, str]:
    """Split the prefix of a rule, which may be `*.DOMAIN`; raise `ValueError`."""
    domain = prefix.removeprefix("*.")
    host, path = split_prefix(domain)
    if domain == prefix:
        if not location:
            raise ValueError("location is required, unless the prefix begins with *.")
        host = DOCKER_IO if host in DOCKER_HUB_HOSTS else host
        return host, path
    if path or ":" in host:
        raise ValueError("a prefix that begins with *. is followed by a domain alone")
    return f"*.{host}", ""


def read_rules(file: Path) -> tuple[RegistryRules, list[str]]:
    """Return the rules of a file and of the drop-in files in `FILE.d`, and warnings about them.

    Drop-in files (`*.conf`) are read in the order of their names. Raises `ConfigurationError` with
    all problems. Blocks.
    """
    reader = _Reader()
    reader.read(file)
    directory = file.with_name(f"{file.name}.d")
    try:
        parts = sorted(part for part in directory.iterdir() if part.suffix == ".conf")
    except FileNotFoundError:
        parts = []
    except OSError as error:
        reader.problems.append(f"RegistriesConf: {directory}: cannot be read: {error.strerror}")
        parts = []
    for part in parts:
        reader.read(part)
    if reader.problems:
        raise ConfigurationError("\n".join(reader.problems), remedy="")
    return RegistryRules(tuple(reader.rules.values())), reader.warnings
