"""What of the configuration reaches the clients of registries, and the lists of the site."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet import reactor

from shiftergw.app import compose, gateway
from shiftergw.sources.registry.location import WebOrigin
from shiftergw.web.lists import ListLimits
from tests.configurations import BASE, load_config

LIMITS = {"RegistryLeastRate": 77, "RegistryDocumentTime": 88, "ProxiedHosts": ["example.com"]}


@pytest.mark.parametrize(
    ("client", "make"), [("RegistryClient", "registry"), ("Lookasides", "lookasides")]
)
def test_limits_on_registries(monkeypatch: pytest.MonkeyPatch, client: str, make: str) -> None:
    """Both clients get the least rate, the time for documents, and the hosts behind proxies."""
    arguments: list[Any] = []
    monkeypatch.setattr(compose, client, lambda *values: arguments.extend(values))
    getattr(compose, make)(reactor, load_config(LIMITS).config)
    proxies, options = arguments[-2:]
    assert (options.limits.rate, options.limits.document) == (77, 88)
    assert proxies.has_list
    assert proxies.lists(WebOrigin.of("https://ghcr.example.com"))
    assert not proxies.lists(WebOrigin.of("https://example.org"))


class _SiteMade(Exception):
    """Ends the start of a gateway once its site has its limits."""


def test_limits_on_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records and lists are as long as the configuration allows."""
    arguments: list[Any] = []

    def make_site(*values: Any) -> None:
        arguments.extend(values)
        raise _SiteMade

    monkeypatch.setattr(gateway, "make_site", make_site)
    config = load_config({"MaxRecordSize": 5000, "MaxListSize": 6_000_000}).config
    with pytest.raises(_SiteMade):
        gateway.gateway_service(reactor, config, BASE / "imagemanager.json")
    (limits,) = (value for value in arguments if isinstance(value, ListLimits))
    assert (limits.row, limits.size) == (5000, 6_000_000)
