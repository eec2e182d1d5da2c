"""What every store promises. A store's own test module runs this on it, by inheriting from it."""

from __future__ import annotations

from tests.store.contract_ends import EndContract, KeepContract
from tests.store.contract_reads import ReadContract
from tests.store.contract_work import ClaimContract, WorkContract


class StoreContract(ClaimContract, WorkContract, EndContract, ReadContract, KeepContract):
    """All of it. The heir provides the fixture `place`."""
