"""What every store promises. A store's own test module runs this on it, by inheriting from it."""

from __future__ import annotations

from tests.store.contract_ends import EndContract, KeepContract
from tests.store.contract_queue import QueueContract
from tests.store.contract_reads import ReadContract
from tests.store.contract_removals import RemovalContract, TakenBackContract
from tests.store.contract_requeue import RequeueContract
from tests.store.contract_rights import RightsContract
from tests.store.contract_waits import BreakerContract, PostponeContract, ShareContract
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
    TakenBackContract,
    RightsContract,
    ReadContract,
    KeepContract,
):
    """All of it. The heir provides the fixture `place`."""
