"""Requests, outcomes and whole pulls for the tests of the contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from shiftergw.model.records import Failed, ImageRecord, Ready
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest
from shiftergw.ports import ImageStore

NOW = 1_000_000.0
LIMIT = 60.0
WHY = "ghcr.io (rate limit)"
ID = "a" * 64
OTHER_ID = "b" * 64


def request(tag: str = "ubuntu:24.04", uid: int = 1000, **members: Any) -> PullRequest:
    """Return a pull request."""
    pull = PullRequest("alpha", "docker", ImageReference.parse(tag), uid)
    return replace(pull, **members)


def failure(*, own: bool = False) -> Failed:
    """Return the outcome of a pull that has failed."""
    return Failed("PULLING", "The registry has no such image.", "Check it.", True, own)


async def begin_pull(store: ImageStore, pull: PullRequest, now: float = NOW) -> ImageRecord:
    """Claim a pull and begin its first attempt; return the record."""
    record, _ = await store.claim(pull, now)
    attempt = await store.begin(record.key, "node:1", now, LIMIT)
    assert attempt is not None
    return attempt


def holder(record: ImageRecord) -> str:
    """Return the name under which the record's attempt holds leases."""
    return f"{record.key}/{record.attempt}"


async def complete_pull(
    store: ImageStore, pull: PullRequest, image_id: str = ID, now: float = NOW, **changes: Any
) -> ImageRecord:
    """Return the READY record of a pull, from its claim to its end."""
    record = await begin_pull(store, pull, now)
    return await store.finish(record.key, record.attempt, Ready(image_id, changes), now)


async def request_removal(
    store: ImageStore, pull: PullRequest, image_id: str = ID, now: float = NOW
) -> ImageRecord:
    """Pull an image and request its removal; return the EXPIRING record."""
    record = await store.expire((await complete_pull(store, pull, image_id, now)).key)
    assert record is not None
    return record


async def all_of(coroutines: Any) -> list[Any]:
    """Run coroutines concurrently and return their results."""
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
