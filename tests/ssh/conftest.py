"""Fixtures shared with the tests of deliveries."""

from tests.delivery.conftest import black_hole, log, pair, root, source, system

__all__ = ["black_hole", "log", "pair", "root", "source", "system"]
