"""A configuration without problems, and the findings of `shiftergw check` about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.web.resource import Resource

from shiftergw.app.checkup import Finding, checkup
from shiftergw.config import Config
from tests.installed_reactor import reactor


class Registry(Resource):
    """Answers `/v2/` with one status."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self, status: int = 200) -> None:
        """Answer with `status`."""
        super().__init__()
        self._status = status

    def render_GET(self, request: Any) -> bytes:
        """Answer."""
        request.setResponseCode(self._status if request.path == b"/v2/" else 404)
        return b"{}"


def document(root: Path, registry: int, port: int) -> dict[str, Any]:
    """Return a configuration that is fine, with its registry and its port on the loopback."""
    (root / "images").mkdir(exist_ok=True)
    return {
        "Platforms": {"s": {"accesstype": "local", "local": {"imageDir": "images"}}},
        "Locations": {"reg": {"remotetype": "dockerv2", "url": f"http://127.0.0.1:{registry}"}},
        "DefaultImageLocation": "reg",
        "CacheDirectory": "cache",
        "ExpandDirectory": "expand",
        "StateDirectory": "state",
        "Authentication": "mock",
        "Listen": f"tcp:{port}:interface=127.0.0.1",
    }


async def findings(root: Path, configuration: dict[str, Any]) -> dict[str, Finding]:
    """Return the findings by name; of a name that is there twice, the last one."""
    loaded_config = Config.from_document(configuration, base=root, environ={})
    return {finding.name: finding for finding in await checkup(reactor, loaded_config, {})}
