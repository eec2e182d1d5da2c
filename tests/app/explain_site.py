"""A private registry, and the configuration of a gateway, for tests of explanations."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from twisted.internet import reactor

from shiftergw.app.compose import state_file
from shiftergw.app.explain import explain_image
from shiftergw.config import Config
from shiftergw.model.explanations import ExplainRequest, Explanation
from shiftergw.model.images import Digest
from shiftergw.model.records import Origin
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest, RegistryLogin
from shiftergw.plumbing.seal import Seal
from shiftergw.store.sqlite.store import SqliteStore
from tests.images import tar_of
from tests.parts import free_port
from tests.registries import USER, DockerRegistry
from tests.store.pulls import complete_pull

SYSTEM, STRICT = "mycluster", "strict"
LAYER = tar_of({"etc/motd": b"hello"})
SCOPE = "reg.example.org"


class Site:
    """A private registry, and the configuration of a gateway that has never run."""

    def __init__(self, root: Path, registry: DockerRegistry, digest: Digest) -> None:
        """Keep the parts; `digest` is that of the image `team/app:1`."""
        self.root = root
        self.registry = registry
        self.digest = digest
        self.images = root / "images"
        self.images.mkdir()
        self.lines: list[str] = []
        policy = root / "policy.json"
        policy.write_text(json.dumps({"default": [{"type": "reject"}]}))
        system = {"accesstype": "local", "local": {"imageDir": str(self.images)}}
        dead_url = f"http://127.0.0.1:{free_port()}"
        urls = {"reg": f"http://{registry.host}", "away": dead_url}
        self.document: dict[str, Any] = {
            "Authentication": "mock",
            "DefaultImageLocation": "reg",
            "StateDirectory": str(root / "state"),
            "CacheDirectory": str(root / "cache"),
            "ExpandDirectory": str(root / "expand"),
            "Locations": {
                **{name: {"remotetype": "dockerv2", "url": url} for name, url in urls.items()},
                "mirrored": {"remotetype": "dockerv2", "url": urls["reg"], "mirrors": [dead_url]},
                "files": {"remotetype": "oci-layout", "url": f"file://{root}/layouts"},
            },
            "Platforms": {SYSTEM: system, STRICT: {**system, "policy_file": str(policy)}},
        }
        self.config = Config.from_document(self.document, base=root, environ={}).config

    async def explain(
        self, image: str = "team/app:1", system: str = SYSTEM, login: RegistryLogin | None = USER
    ) -> Explanation:
        """Explain a pull."""
        request = ExplainRequest(ImageReference.parse(image), system, login)
        return await explain_image(reactor, self.config, request, self.lines.append)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[SqliteStore]:
        """Open the database of the gateway, which is made if necessary."""
        self.config.state_directory.mkdir(mode=0o700, exist_ok=True)
        Seal.from_file(self.config.secret_key_file)
        store = SqliteStore(reactor, state_file(self.config))
        await store.startService()
        try:
            yield store
        finally:
            await store.stopService()

    async def deliver(self, **members: Any) -> None:
        """Write the image's file and its record."""
        (self.images / f"{self.digest.hex}.squashfs").write_bytes(b"x" * 5)
        pull = PullRequest(SYSTEM, "docker", ImageReference.parse("team/app:1"), 7)
        members = {"private": True, "user_acl": (7,), "size": 5, **members}
        origin = Origin("reg", "team/app", str(self.digest), members["private"])
        async with self.database() as store:
            await complete_pull(store, pull, self.digest.hex, origin=origin, **members)
