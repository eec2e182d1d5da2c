"""Requests, ends and whole pulls that the contract's tests are made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from shiftergw.model import Failed, ImageRecord, ImageReference, PullRequest, Ready
from shiftergw.ports import ImageStore

NOW = 1_000_000.0
LIMIT = 60.0
ID = "a" * 64
OTHER_ID = "b" * 64


def request(tag: str = "ubuntu:24.04", uid: int = 1000, **members: Any) -> PullRequest:
    """Return a pull request."""
    wish = PullRequest("alpha", "docker", ImageReference.parse(tag), uid)
    return replace(wish, **members)


def failure(*, own: bool = False) -> Failed:
    """Return a bad end."""
    return Failed("PULLING", "The registry has no such image.", "Check it.", True, own)


async def begun(store: ImageStore, wish: PullRequest, now: float = NOW) -> ImageRecord:
    """Return a record on which the first attempt has begun."""
    record, _ = await store.claim(wish, now)
    started = await store.begin(record.key, "node:1", now, LIMIT)
    assert started is not None
    return started


def holder(record: ImageRecord) -> str:
    """Return the name by which a record's attempt holds leases."""
    return f"{record.key}/{record.attempt}"


async def pulled(
    store: ImageStore, wish: PullRequest, image_id: str = ID, now: float = NOW, **changes: Any
) -> ImageRecord:
    """Return the READY record of a pull from its claim to its end."""
    record = await begun(store, wish, now)
    return await store.finish(record.key, record.attempt, Ready(image_id, changes), now)


async def expiring(
    store: ImageStore, wish: PullRequest, image_id: str = ID, now: float = NOW
) -> ImageRecord:
    """Return the record of an image that was pulled, and whose removal waits."""
    record = await store.expire((await pulled(store, wish, image_id, now)).key)
    assert record is not None
    return record


async def all_of(coroutines: Any) -> list[Any]:
    """Run coroutines side by side."""
    results: list[Any] = await gatherResults([Deferred.fromCoroutine(c) for c in coroutines])
    return results


OF_THE_ORIGINAL = {
    "system": "alpha",
    "itype": "docker",
    "pulltag": "old:1",
    "tag": ["old:1"],
    "status": "READY",
    "id": ID,
    "private": None,
    "userACL": None,
    "ENV": ["A=1"],
    "ENTRY": "/bin/sh",
    "expiration": 12,
    "site_note": {"kept": ["by", "us"]},
}
"""A READY document as an original gateway, or an admin, left it."""
