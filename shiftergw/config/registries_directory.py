"""Read `RegistriesDirectory`: where the signatures of images are, by containers-registries.d(5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shiftergw.config.source import read_text
from shiftergw.config.yaml_mappings import parse_mappings
from shiftergw.errors import ConfigurationError, printable
from shiftergw.model.docker_references import DockerReference
from shiftergw.model.signatures import SignatureStorage

DEFAULT_DIRECTORY = Path("/etc/containers/registries.d")
"""The directory of the machine's other programs, which is read unless the key names another."""

FILES_LIMIT = 1000
"""The most files that are read."""

_BOOLEANS = {
    "": None,
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
}
"""The booleans of YAML, in lower case."""

_SCHEMES = frozenset({"http", "https", "file"})


@dataclass(frozen=True, slots=True)
class RegistriesDirectory:
    """All sections of a directory, by their scopes; `default` applies to other images."""

    sections: Mapping[str, SignatureStorage] = field(default_factory=dict)
    default: SignatureStorage = field(default_factory=SignatureStorage)

    def storage_of(self, reference: DockerReference) -> SignatureStorage:
        """Return the section of the most specific scope that contains the image."""
        for scope in reference.scopes():
            if scope in self.sections:
                return self.sections[scope]
        return self.default


def read_registries_directory(directory: Path | None) -> RegistriesDirectory:
    """Return the content of the configured directory, or of the machine's default one. Blocks.

    The default directory need not exist. Raises `ConfigurationError` for a file that cannot be read
    or is invalid, and for a scope with two sections, as containers-registries.d(5) says.
    """
    sections: dict[str, SignatureStorage] = {}
    places: dict[str, Path] = {}
    default = SignatureStorage()
    for path in _files(directory):
        for scope, storage in _read_file(path):
            if scope in places:
                raise _invalid(path, f"{scope or 'default-docker'} is in {places[scope].name}, too")
            places[scope] = path
            if scope:
                sections[scope] = storage
            else:
                default = storage
    return RegistriesDirectory(sections, default)


def read_signature_storage(directory: Path | None, reference: DockerReference) -> SignatureStorage:
    """Return the storage of an image's signatures; see `read_registries_directory`. Blocks."""
    return read_registries_directory(directory).storage_of(reference)


def _files(directory: Path | None) -> list[Path]:
    path = DEFAULT_DIRECTORY if directory is None else directory
    try:
        files = sorted(file for file in path.iterdir() if file.suffix == ".yaml")
    except FileNotFoundError:
        if directory is None:
            return []
        raise _invalid(path, "there is no such directory") from None
    except OSError as error:
        raise _invalid(path, f"it cannot be read: {error.strerror}") from error
    if len(files) > FILES_LIMIT:
        raise _invalid(path, f"it has more than {FILES_LIMIT} files")
    return files


def _read_file(path: Path) -> Iterator[tuple[str, SignatureStorage]]:
    """Yield scopes and sections of a file; the scope of `default-docker` is empty."""
    try:
        document = parse_mappings(read_text(path))
    except OSError as error:
        raise _invalid(path, f"it cannot be read: {error.strerror}") from error
    except ConfigurationError as error:  # it is not UTF-8
        raise _invalid(path, error.what.removesuffix(".")) from error
    except ValueError as error:
        raise _invalid(path, printable(str(error))) from error
    if "default-docker" in document:
        yield "", _section(path, "default-docker", document["default-docker"])
    docker = document.get("docker") or {}
    if not isinstance(docker, dict):
        raise _invalid(path, "docker must be a mapping")
    for scope, section in docker.items():
        yield scope, _section(path, scope, section)


def _section(path: Path, scope: str, value: Any) -> SignatureStorage:
    """Read a section; `sigstore` is the older name of `lookaside`."""
    section = value or {}
    if not isinstance(section, dict):
        raise _invalid(path, f"{printable(scope)} must be a mapping")
    lookaside = section.get("lookaside") or section.get("sigstore") or ""
    if lookaside and not _is_storage(lookaside):
        raise _invalid(path, f"lookaside of {printable(scope)} must be a URL: https, http or file")
    word = str(section.get("use-sigstore-attachments", "")).lower()
    if word not in _BOOLEANS:
        problem = f"use-sigstore-attachments of {printable(scope)} must be true or false"
        raise _invalid(path, problem)
    return SignatureStorage(str(lookaside).rstrip("/"), _BOOLEANS[word])


def _is_storage(url: object) -> bool:
    if not isinstance(url, str) or not url.isprintable() or not url.isascii():
        return False
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or parts.query or parts.fragment or "@" in parts.netloc:
        return False
    if parts.scheme == "file":
        return not parts.netloc and parts.path.startswith("/")
    return bool(parts.hostname)


def _invalid(path: Path, problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path}: {problem}.", remedy="Correct the file; see containers-registries.d(5)."
    )
