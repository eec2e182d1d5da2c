"""Tests of the architecture: allowed imports, the length of files, and their places.

Every rule is a function that returns the offences of a file, given its place and text. Tests run it
on the program and on invented files that break the rule.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = sorted((ROOT / "shiftergw").rglob("*.py"))
Rule = Callable[[str, str], list[str]]
"""A function of the place and the text of a file, which returns its offences."""

LONGEST = 400
"""Lines that no file exceeds."""


@dataclass(frozen=True)
class Layer:
    """The modules of a layer, and the layers, rooms, modules and packages that they may import.

    They may not import `forbidden_names`. They may import their own layer, unless its rooms are
    `apart`.
    """

    modules: tuple[str, ...]
    layers: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    forbidden_names: tuple[str, ...] = ()
    apart: bool = False


LAYERS = {
    "vocabulary": Layer(("errors", "states", "model", "ports", "__version__")),
    "rules": Layer(("rules",), ("vocabulary",)),
    "configuration": Layer(("config",), ("vocabulary", "ssh.cipher_names"), ("pydantic",)),
    "formats": Layer(
        ("oci", "squashfs"),
        ("vocabulary",),
        ("isal", "zstandard", "deflate"),
        forbidden_names=("socket", "ssl", "time", "asyncio", "select"),
        apart=True,
    ),
    "plumbing": Layer(
        ("plumbing",),
        ("errors",),
        ("twisted", "zope", "cryptography", "OpenSSL", "service_identity"),
    ),
    "protocols": Layer(
        ("ssh", "sftp", "mongo"),
        ("errors", "plumbing", "__version__"),
        ("twisted", "zope", "cryptography", "txmongo", "pymongo", "bson", "OpenSSL"),
        apart=True,
    ),
    "adapters": Layer(
        ("auth", "sources", "cache", "build", "delivery", "signatures", "store",
         "work"),
        ("vocabulary", "configuration", "formats", "plumbing", "protocols"),
        ("twisted", "zope", "treq", "pymongo", "bson", "celery", "kombu", "amqp", "OpenSSL",
         "cryptography", "service_identity"),
        apart=True,
    ),
    "domain": Layer(
        ("service", "job"),
        ("vocabulary", "rules", "configuration", "formats", "plumbing"),
        ("twisted",),
        forbidden_names=("twisted.web", "twisted.conch", "twisted.protocols", "twisted.enterprise"),
        apart=True,
    ),
    "web": Layer(
        ("web",),
        ("vocabulary", "configuration", "plumbing", "service"),
        ("twisted", "zope", "pydantic", "pydantic_core"),
    ),
    "cli": Layer(
        ("cli",),
        ("vocabulary", "configuration", "plumbing", "app", "auth"),
        ("twisted", "zope", "treq", "click", "rich"),
    ),
    "app": Layer(
        ("app", "runner"),
        ("vocabulary", "rules", "configuration", "formats", "plumbing", "protocols", "adapters",
         "domain", "web"),
        ("twisted", "zope", "prometheus_client"),
    ),
}  # fmt: skip

HOMES = {
    "txmongo": ("mongo",),
    "pymongo": ("mongo", "store.mongo", "store.migration", "store.export"),
    "bson": ("mongo", "store.mongo", "store.migration", "store.export"),
    "sqlite3": ("store",),
    "twisted.conch": ("ssh",),
    "celery": ("work.celery",),
    "kombu": ("work.celery",),
    "amqp": ("work.celery",),
    "deflate": ("squashfs.direct_compressors",),
    "prometheus_client": ("app.metrics",),
    "treq": ("sources", "cli"),
    "twisted.internet.reactor": ("app.reactor", "app.tap"),
    "twisted.internet.ssl": ("plumbing.tls",),
    "service_identity": ("plumbing.tls",),
}
"""Packages that only these rooms, packages or modules of the program may import."""

TLS_HOMES = {"shiftergw/plumbing/tls.py", "shiftergw/plumbing/tls_context.py"}
"""The files that make contexts of TLS: for Twisted, and for sockets."""

TLS_MAKERS = {
    "CertificateOptions", "ClientContextFactory", "Context", "SSLContext", "create_default_context",
    "_create_unverified_context", "optionsForClientTLS", "platformTrust",
}  # fmt: skip
"""Functions of Twisted, pyOpenSSL and `ssl` that make a context."""

TOP_LEVEL = {
    ".ci", ".git", ".github", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE",
    "README.md", "SECURITY.md", "conf", "docs", "pyproject.toml", "shiftergw", "tests", "twisted",
}  # fmt: skip


def imports_of(tree: ast.Module, typing_too: bool) -> Iterator[str]:
    """Yield the dotted names that a module imports, with `typing_too` also under TYPE_CHECKING."""
    typing_nodes: set[ast.AST] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.If)
            and ast.unparse(node.test) == "TYPE_CHECKING"
            and not typing_too
        ):
            typing_nodes.update(inner for statement in node.body for inner in ast.walk(statement))
        if node in typing_nodes:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def begins(name: str, package: str) -> bool:
    """Return whether a dotted name is `package` or is inside it."""
    return name == package or name.startswith(f"{package}.")


def layer_of(room: str) -> tuple[str, Layer] | None:
    """Return the name and the layer of a module or package directly below `shiftergw`."""
    for name, layer in LAYERS.items():
        if any(fnmatch(room, pattern) for pattern in layer.modules):
            return name, layer
    return None


def import_offences(place: str, source: str) -> list[str]:
    """Return the imports of a file of the program that the table forbids."""
    module = ".".join(Path(place).with_suffix("").parts[1:])
    room = module.partition(".")[0]
    layer_and_name = layer_of("errors" if room == "__init__" else room)
    if layer_and_name is None:
        return [f"{place}: no layer has this file"]
    layer_name, layer = layer_and_name
    offences = []
    for name in imports_of(ast.parse(source), typing_too=room != "ports"):
        package = name.partition(".")[0]
        if name.startswith("."):
            wrong = "a relative import"
        elif any(begins(name, home) and not _is_in(module, rooms) for home, rooms in HOMES.items()):
            wrong = "it has another home"
        elif any(begins(name, forbidden_name) for forbidden_name in layer.forbidden_names):
            wrong = f"never in {layer_name}"
        elif package == "shiftergw":
            wrong = "" if _may_enter(room, layer_name, layer, name) else "upward"
        elif package in sys.stdlib_module_names or package in layer.packages:
            wrong = ""
        else:
            wrong = f"a package that {layer_name} does not use"
        if wrong:
            offences.append(f"{place} imports {name}: {wrong}")
    return offences


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    """Return whether a module of the program is one of `packages` or is inside one of them."""
    return any(begins(module, package) for package in packages)


def _may_enter(room: str, layer_name: str, layer: Layer, name: str) -> bool:
    """Return whether a room may import a name such as `shiftergw.ssh.login.Login`."""
    place = name.removeprefix("shiftergw.")
    target_room = place.partition(".")[0]
    target = layer_of(target_room)
    if target is None:
        return False
    if target[0] == layer_name:
        return target_room == room or not layer.apart
    return target[0] in layer.layers or any(begins(place, lower) for lower in layer.layers)


def length_offences(place: str, source: str) -> list[str]:
    """Return a complaint if the file is too long."""
    lines = len(source.splitlines())
    return [f"{place}: {lines} lines"] if lines > LONGEST else []


def place_of(path: Path) -> str:
    """Return the path of a file inside the repository."""
    return path.relative_to(ROOT).as_posix()


def offences(rule: Rule) -> list[str]:
    """Return the offences of all files of the program."""
    return [offence for path in PROGRAM for offence in rule(place_of(path), path.read_text())]


def test_imports() -> None:
    """No file imports a name that the table of the architecture forbids."""
    assert offences(import_offences) == []


@pytest.mark.parametrize(
    ("place", "source", "wrong"),
    [
        ("errors.py", "import twisted", "a package that vocabulary does not use"),
        ("model/records.py", "import pydantic", "a package that vocabulary does not use"),
        ("ports.py", "from twisted.internet import defer", "a package that vocabulary does not"),
        ("states.py", "from shiftergw.config import Config", "upward"),
        ("config.py", "from shiftergw.plumbing.files import file_system_of", "upward"),
        ("config/values.py", "from shiftergw import app", "upward"),
        ("config/values.py", "from shiftergw.ssh import ciphers", "upward"),
        ("oci/tar.py", "from twisted.python import log", "a package that formats does not use"),
        ("oci/tar.py", "import socket", "never in formats"),
        ("oci/tar.py", "from time import monotonic", "never in formats"),
        ("squashfs/reader.py", "import twisted", "a package that formats does not use"),
        ("squashfs/reader.py", "from shiftergw.oci.tree import Leaf", "upward"),
        ("oci/tree.py", "from shiftergw.squashfs.nodes import FileNode", "upward"),
        ("plumbing/locks.py", "from shiftergw.model.images import Digest", "upward"),
        ("sources/registry/client.py", "from shiftergw.store import sqlite", "upward"),
        ("sources/registry/client.py", "import shiftergw.service.gateway", "upward"),
        ("sources/registry/client.py", "from shiftergw.web.api import x", "upward"),
        ("sources/registry/client.py", "import requests", "a package that adapters does not use"),
        ("auth/mock.py", "import treq", "it has another home"),
        ("delivery/local.py", "import sqlite3", "it has another home"),
        (
            "sources/registry/client.py",
            "from twisted.conch.ssh import transport",
            "it has another home",
        ),
        ("sources/registry/client.py", "from twisted import conch", "it has another home"),
        ("store/mongo/store.py", "import celery.app", "it has another home"),
        ("work/pool.py", "from txmongo import ConnectionPool", "it has another home"),
        (
            "service/gateway.py",
            "def f():\n    from twisted.internet import reactor",
            "it has another home",
        ),
        ("service/gateway.py", "import twisted.internet.reactor", "it has another home"),
        ("service/gateway.py", "from twisted.web.server import Request", "never in domain"),
        ("service/gateway.py", "from shiftergw.auth.mock import MockAuthenticator", "upward"),
        ("job/worker.py", "if TYPE_CHECKING:\n    from shiftergw.store import sqlite", "upward"),
        ("web/api.py", "from shiftergw.build import build", "upward"),
        ("web/api.py", "from shiftergw.app import tap", "upward"),
        ("cli/main.py", "from shiftergw.service.gateway import Gateway", "upward"),
        ("cli/main.py", "from shiftergw.sources.registry.client import x", "upward"),
        ("app/runner.py", "from shiftergw.cli import main", "upward"),
        ("app/runner.py", "import treq", "it has another home"),
        ("app/compose.py", "from txmongo import ConnectionPool", "it has another home"),
        ("app/compose.py", "from twisted.internet import reactor", "it has another home"),
        ("store/sqlite/store.py", "import pymongo", "it has another home"),
        ("work/pool.py", "import celery", "it has another home"),
        ("mongo/tls.py", "from twisted.internet.ssl import ClientContextFactory", "another home"),
        ("plumbing/listening.py", "from twisted.internet import ssl", "it has another home"),
        ("rules/access.py", "from shiftergw.plumbing.timing import pause", "upward"),
        ("rules/access.py", "import twisted", "a package that rules does not use"),
        ("ssh/login.py", "from shiftergw.sftp.packets import x", "upward"),
        ("ssh/login.py", "from shiftergw.model.records import ImageRecord", "upward"),
        ("mongo/link.py", "from shiftergw.states import State", "upward"),
        ("service/recovery.py", "from shiftergw.job.worker import Worker", "upward"),
        ("job/worker.py", "from shiftergw.service.claims import x", "upward"),
        ("job/worker.py", "from shiftergw.app import compose", "upward"),
        ("web/api.py", "from shiftergw.job.worker import Worker", "upward"),
        ("oci/tar.py", "from . import paths", "a relative import"),
        ("service/gateway.py", "from shiftergw import attic", "upward"),
        ("attic.py", "", "no layer has this file"),
        ("attic/__init__.py", "", "no layer has this file"),
        ("__init__.py", "import twisted", "a package that vocabulary does not use"),
    ],
)
def test_imports_can_offend(place: str, source: str, wrong: str) -> None:
    """An invented file that breaks a line of the table is an offence."""
    (offence,) = import_offences(f"shiftergw/{place}", source)
    assert wrong in offence


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("ports.py", "if TYPE_CHECKING:\n    from twisted.internet.interfaces import IConsumer"),
        ("config.py", "import pydantic\nfrom shiftergw.errors import GatewayError"),
        ("config/ssh_options.py", "from shiftergw.ssh.cipher_names import CIPHERS"),
        ("plumbing/files.py", "from shiftergw.errors import TimedOut\nimport twisted.internet"),
        ("sources/registry/a.py", "import treq\nfrom shiftergw.sources.registry.b import c"),
        (
            "cli/main.py",
            "from shiftergw.auth.munge_client import encode\nfrom shiftergw import app",
        ),
        ("app/reactor.py", "from twisted.internet import reactor\nfrom shiftergw.web import api"),
        (
            "delivery/sftp_files.py",
            "from shiftergw.ssh.login import x\nfrom shiftergw.sftp import client",
        ),
        ("job/pull.py", "from shiftergw.rules.access import Access"),
        ("runner.py", "from shiftergw.app.runner import main"),
        (
            "web/api.py",
            "from shiftergw.service.gateway import Gateway\nfrom shiftergw import __version__",
        ),
    ],
)
def test_imports_along_the_table(place: str, source: str) -> None:
    """An import that the table allows is not an offence."""
    assert import_offences(f"shiftergw/{place}", source) == []


def tls_offences(place: str, source: str) -> list[str]:
    """Return the calls of a file outside `TLS_HOMES` that make a context of TLS."""
    if place in TLS_HOMES:
        return []
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    names = (getattr(call, "attr", getattr(call, "id", "")) for call in calls)
    return [f"{place} calls {name}" for name in names if name in TLS_MAKERS]


def test_tls_contexts_are_made_in_one_place() -> None:
    """Whether a certificate is verified is decided in one module for Twisted and one for sockets.

    Every other connection gets its context from there, so that none is made without verification.
    """
    assert offences(tls_offences) == []


@pytest.mark.parametrize("call", ["ssl.SSLContext(2)", "SSL.Context(m)", "optionsForClientTLS(h)"])
def test_tls_contexts_can_offend(call: str) -> None:
    """A file that makes a context is an offence outside the two modules only."""
    (offence,) = tls_offences("shiftergw/mongo/tls.py", f"context = {call}")
    assert "mongo/tls.py calls" in offence
    assert tls_offences("shiftergw/plumbing/tls.py", f"context = {call}") == []


def test_length() -> None:
    """No file of the program is longer than the limit."""
    assert offences(length_offences) == []


def test_length_can_offend() -> None:
    """A file that is one line longer than the limit is an offence."""
    assert length_offences("a.py", "x = 1\n" * LONGEST) == []
    assert length_offences("a.py", "x = 1\n" * (LONGEST + 1)) == [f"a.py: {LONGEST + 1} lines"]


def strangers(names: set[str], patterns: list[str]) -> set[str]:
    """Return the names at the top of the repository that neither the table nor .gitignore has."""
    return {
        name
        for name in names - TOP_LEVEL
        if not any(fnmatch(name, pattern.rstrip("/")) for pattern in patterns)
    }


def test_top_level() -> None:
    """The top of the repository has no files besides those of the table and of .gitignore."""
    patterns = (ROOT / ".gitignore").read_text().split()
    names = {path.name for path in ROOT.iterdir()}
    assert strangers(names, patterns) == set()
    assert strangers({*names, "utils.py", "notes"}, patterns) == {"utils.py", "notes"}


def plugin_offences(files: set[str], source: str) -> list[str]:
    """Return the imports and packages that do not belong into the folder that `twistd` searches."""
    imports = [n for n in imports_of(ast.parse(source), typing_too=True) if begins(n, "shiftergw")]
    packages = [name for name in files if name.endswith("__init__.py")]
    return [*imports, *packages]


def test_plugin() -> None:
    """The plugin names the service without importing it, in a folder that is not a package."""
    folder = ROOT / "twisted"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    source = (folder / "plugins" / "shiftergw_plugin.py").read_text()
    assert plugin_offences(files, source) == []
    assert plugin_offences({*files, "plugins/__init__.py"}, "import shiftergw.app.tap") == [
        "shiftergw.app.tap",
        "plugins/__init__.py",
    ]
