"""The contract's assertions show their values, like those of a test module."""

import pytest

for part in ("work", "ends", "reads", "queue", "removals", "rights"):
    pytest.register_assert_rewrite(f"tests.store.contract_{part}")
