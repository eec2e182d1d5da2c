"""A model of the original gateway as a reader of its database, by the known rules.

Like the original, it does not check the presence or the type of a member.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

WORDS = frozenset(
    {"INIT", "PENDING", "PULLING", "EXAMINATION", "CONVERSION", "TRANSFER", "READY", "FAILURE",
     "EXPIRING", "EXPIRED", "HASHING", "SUCCESS"}
)  # fmt: skip
UPDATE_SECONDS = 300
STUCK_SECONDS = 3600
MEMBERS = ("format", "arch", "os", "remotetype", "ostcount", "replication")
"""Members that it writes into every new record."""


@dataclass(frozen=True)
class OriginalReader:
    """A reader of the collection `images` at a time."""

    images: Any
    now: float

    def ready(self, system: str, itype: str, tag: str) -> dict[str, Any] | None:
        """Return the READY record whose list of tags contains this tag."""
        query = {"status": "READY", "system": system, "itype": itype, "tag": {"$in": [tag]}}
        record: dict[str, Any] | None = self.images.find_one(query)
        return record

    def pending_record(self, system: str, itype: str, tag: str) -> dict[str, Any] | None:
        """Return the first record of this tag that is not READY."""
        query = {"system": system, "itype": itype, "pulltag": tag,
                  "status": {"$nin": ["READY", "SUCCESS"]}}  # fmt: skip
        record: dict[str, Any] | None = self.images.find_one(query)
        return record

    def may_read(self, record: dict[str, Any], uid: int, gids: Collection[int]) -> bool:
        """Return whether a user may see an image."""
        if record["private"] is False:
            return True
        users, groups = record["userACL"], record["groupACL"]
        if (users is None and groups is None) or (users == [] and groups == []):
            return True
        return uid in users or any(gid in groups for gid in gids)

    def would_pull(
        self, system: str, itype: str, tag: str, users: list[int], groups: list[int]
    ) -> bool:
        """Return whether a pull request would start work."""
        record = self.pending_record(system, itype, tag) or self.ready(system, itype, tag)
        if record is None or record["status"] == "EXPIRED":
            return True
        age = self.now - record["last_pull"]
        if record["status"] == "READY":
            same = sorted(users) == sorted(record["userACL"]) and sorted(groups) == sorted(
                record["groupACL"]
            )
            return bool(age > (UPDATE_SECONDS if same else 10))
        if record["status"] == "FAILURE":
            return bool(age > UPDATE_SECONDS)
        return bool(self.now - record.get("last_heartbeat", self.now) > STUCK_SECONDS)

    def due(self, system: str) -> list[str]:
        """Return the ids of the images whose expiration has passed."""
        records = self.images.find({"system": system, "status": "READY"})
        return [doc["id"] for doc in records if doc.get("expiration", self.now) < self.now]

    def offences(self, record: dict[str, Any]) -> list[str]:
        """Return the members of a record that the original could not read."""
        wrong = [name for name in MEMBERS if not isinstance(record.get(name), str)]
        if not isinstance(record.get("last_pull"), float):
            wrong.append("last_pull")
        tags = record.get("tag")
        if not isinstance(tags, list) or not all(isinstance(value, str) for value in tags):
            wrong.append("tag")
        if str(record.get("status")) not in WORDS:
            wrong.append("status")
        readers = ("userACL", "groupACL")
        wrong += [name for name in readers if not isinstance(record.get(name), list)]
        wrong += [name for name in ("system", "itype", "pulltag", "private") if name not in record]
        if record.get("status") == "READY" and len(str(record.get("id"))) != 64:
            wrong.append("id")
        return wrong
