"""The promises of every store. The test module of each store runs them by inheritance."""

from __future__ import annotations

from tests.store.contract_breakers import BreakerContract
from tests.store.contract_ends import EndContract, KeepContract
from tests.store.contract_owners import OwnerContract
from tests.store.contract_queue import QueueContract
from tests.store.contract_ranges import RangesContract
from tests.store.contract_reads import ReadContract
from tests.store.contract_removals import CancelledRemovalContract, RemovalContract
from tests.store.contract_requeue import RequeueContract
from tests.store.contract_rights import RightsContract
from tests.store.contract_throughput import ThroughputContract
from tests.store.contract_waits import PostponeContract, ShareContract
from tests.store.contract_work import ClaimContract, WorkContract


class StoreContract(
    ClaimContract,
    WorkContract,
    RequeueContract,
    QueueContract,
    PostponeContract,
    ShareContract,
    BreakerContract,
    EndContract,
    RemovalContract,
    CancelledRemovalContract,
    RightsContract,
    OwnerContract,
    ReadContract,
    RangesContract,
    ThroughputContract,
    KeepContract,
):
    """All parts of the contract. A subclass provides the fixture `place`."""
