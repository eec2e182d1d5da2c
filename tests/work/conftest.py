"""What the tests of queues share: a broker, and assertions that show their values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rabbitmq import RabbitMQ

pytest.register_assert_rewrite("tests.work.contract")


@pytest.fixture(scope="session")
def broker() -> Iterator[RabbitMQ]:
    """Return a running broker."""
    with RabbitMQ() as broker:
        yield broker
