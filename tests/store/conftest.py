"""Fixtures of the store's tests, and readable assertions in the contract's modules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import mongod

PARTS = "work ends reads ranges queue requeue removals rights waits breakers"

for part in PARTS.split():
    pytest.register_assert_rewrite(f"tests.store.contract_{part}")


@pytest.fixture(scope="session")
def mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URI of a MongoDB server that all tests share."""
    with mongod.any_server(tmp_path_factory.mktemp("mongod")) as uri:
        yield uri
