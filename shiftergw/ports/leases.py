"""Port to the leases on the files of images, and to the blocks of images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol


class LeaseStore(Protocol):
    """Who may write the files of an image id in an image directory, and which ids are blocked."""

    async def lease(
        self, directory: str, image_id: str, holder: str, now: float, seconds: float
    ) -> bool:
        """Take or renew the lease on (image directory, image id).

        Returns False if another holder has it. `holder` is `key/attempt`. A lease ends with
        `release`, after `seconds`, or with its attempt: when a later attempt has begun or the
        record is no longer in flight. A later attempt on the same record takes over the lease even
        before that.
        """
        ...

    async def release(self, directory: str, image_id: str, holder: str) -> None:
        """Release a lease; do nothing if `holder` does not have it."""
        ...

    async def block(self, directory: str, image_id: str, uid: int, now: float) -> None:
        """Block an image id in an image directory, by order of `uid`; keep an earlier order."""
        ...

    async def allow(self, directory: str, image_id: str) -> bool:
        """Remove a block; return whether there was one."""
        ...

    async def find_blocks(self, directory: str, prefix: str, limit: int) -> Sequence[str]:
        """Return at most `limit` blocked image ids that begin with `prefix`, sorted."""
        ...

    async def is_blocked(self, directory: str, image_ids: Collection[str]) -> bool:
        """Return whether one of these image ids is blocked in an image directory."""
        ...
