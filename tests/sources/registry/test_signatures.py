"""The kinds of signatures that are fetched depend on registries.d and on the policy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.config.registries_directory import read_signature_storage
from shiftergw.errors import ConfigurationError
from shiftergw.model.docker_references import DockerReference
from shiftergw.model.images import Descriptor, Digest, ResolvedImage
from shiftergw.model.signatures import SignatureBlob, SignatureKind
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.signatures import Lookasides, RegistrySignatures
from tests.sources.registry.network import REACTOR, quiet
from tests.thread_pools import running_threads

BLOB = Descriptor(Digest.of(b"blob"), 4)
IMAGE = ResolvedImage(
    Digest.of(b"manifest"), Digest.of(b"index"), BLOB, (BLOB,), "reg.example.org", "team/app"
)
REFERENCE = DockerReference.parse("reg.example.org/team/app:1")


class Registry:
    """A `RegistryStorage` that records the kinds of its requests."""

    def __init__(self) -> None:
        """Start without requests."""
        self.kinds: list[set[SignatureKind]] = []

    async def signatures(
        self, image: ResolvedImage, kinds: frozenset[SignatureKind], *_: Any
    ) -> Sequence[SignatureBlob]:
        """Return one signature of each kind."""
        self.kinds.append(set(kinds))
        return [SignatureBlob(kind) for kind in sorted(kinds)]

    def signature_extension(self, *_: Any) -> Any:
        """Return an extension that is not supported."""
        return self

    async def is_supported(self) -> bool:
        """Return False."""
        return False


async def fetch(directory: Path, *kinds: SignatureKind) -> tuple[Registry, list[str]]:
    """Fetch signatures; return the registry, and the kinds that were found."""
    async with running_threads(1) as threads:
        registry = Registry()
        read_storage = partial(read_signature_storage, directory)
        source = RegistrySignatures(
            registry, Lookasides(REACTOR, Proxies({})), read_storage, threads
        )
        blobs = await source.signatures(IMAGE, REFERENCE, frozenset(kinds), None, quiet)
        return registry, [blob.kind for blob in blobs]


@pytest.mark.parametrize(
    ("section", "is_read"),
    [
        ("", True),
        ("docker:\n  reg.example.org:\n    use-sigstore-attachments: true\n", True),
        ("docker:\n  reg.example.org:\n    use-sigstore-attachments: false\n", False),
        ("default-docker:\n  use-sigstore-attachments: false\n", False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_attachments(tmp_path: Path, section: str, *, is_read: bool) -> None:
    """Attachments are read for a policy that needs them, unless registries.d forbids it."""
    (tmp_path / "a.yaml").write_text(section)
    registry, found_kinds = await fetch(tmp_path, "simple", "cosign", "bundle")
    assert registry.kinds == ([{"cosign", "bundle"}] if is_read else [])
    assert found_kinds == (["bundle", "cosign"] if is_read else [])


@pytest_twisted.ensureDeferred
async def test_signatures_that_no_policy_needs_are_not_fetched(tmp_path: Path) -> None:
    """Attachments are not read for `signedBy`, nor lookasides for `sigstoreSigned`."""
    folder = tmp_path / f"team/app@sha256={IMAGE.digest.hex}"
    folder.mkdir(parents=True)
    (folder / "signature-1").write_bytes(b"1")
    (tmp_path / "a.yaml").write_text(f"default-docker:\n  lookaside: file://{tmp_path}\n")
    registry, found_kinds = await fetch(tmp_path, "simple")
    assert (registry.kinds, found_kinds) == ([], ["simple"])
    registry, found_kinds = await fetch(tmp_path, "cosign")
    assert (registry.kinds, found_kinds) == ([{"cosign"}], ["cosign"])


@pytest_twisted.ensureDeferred
async def test_an_invalid_directory(tmp_path: Path) -> None:
    """A file that cannot be read could hide signatures, so it is an error."""
    (tmp_path / "a.yaml").write_text("docker: [")
    with pytest.raises(ConfigurationError, match=r"a\.yaml: line 1"):
        await fetch(tmp_path, "simple")
