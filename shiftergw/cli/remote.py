"""The gateway's HTTP interface, seen from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from shiftergw.cli import answers
from shiftergw.cli.exits import RequestRefused
from shiftergw.cli.gateways import Gateways
from shiftergw.model.names import is_image_id

NAMES_LIMIT = 3.0
"""Seconds for a list of names, which only helps: nobody waits for it."""


class Remote(Gateways):
    """The routes of the gateways of one system, for one user."""

    def leave_logins_out(self) -> None:
        """Send requests without the user's logins, which take time to open and need none here."""
        self._credentials.carry({})

    async def images(self) -> list[dict[str, Any]]:
        """Return the records of the system's images."""
        return await self.ask_first("GET", ["list"], answers.parse_list)

    async def queue(self) -> list[dict[str, Any]]:
        """Return the records of pulls that wait, work or have failed."""
        return await self.ask_first("GET", ["queue"], answers.parse_list)

    async def names(self) -> list[dict[str, Any]]:
        """Return id, type and tags of the system's images, from the gateway that is asked first."""
        return await self.ask_last("GET", ["names"], answers.parse_list, limit=NAMES_LIMIT)

    async def systems(self) -> list[str]:
        """Return the names of the systems, from the gateway that is asked first."""
        rows = await self.ask_last("GET", ["systems"], answers.parse_list, limit=NAMES_LIMIT)
        return _texts([row.get("system") for row in rows])

    async def lookup(self, itype: str, image: str) -> str:
        """Return the id of a READY image."""
        return await self.ask_first("GET", ["lookup", itype, image], answers.parse_image_id)

    async def inspect(self, itype: str, image: str) -> dict[str, Any]:
        """Return what a gateway knows of a READY image."""
        return await self.ask_first("GET", ["inspect", itype, image], answers.parse_record)

    async def pull(
        self, itype: str, image: str, members: Mapping[str, Any], *, to_last: bool = False
    ) -> dict[str, Any]:
        """Request an image; return the record of its pull.

        `members` are those of the request's body: readers, or an upload. `to_last` asks the gateway
        that answered last, which has the upload, and no other.
        """
        body = json.dumps(members) if members else ""
        if to_last:
            path = ["pull", itype, image]
            return await self.ask_last("POST", path, answers.parse_record, body=body)
        return await self.ask_first("POST", ["pull", itype, image], answers.parse_record, body=body)

    async def poll(
        self, itype: str, image: str, members: Mapping[str, Any], notify: Callable[[str], None]
    ) -> dict[str, Any]:
        """Return the record of a pull that has begun; see `ask_again`."""
        body = json.dumps(members) if members else ""
        path = ["pull", itype, image]
        return await self.ask_again("POST", path, answers.parse_record, notify, body=body)

    async def explain(self, itype: str, image: str) -> dict[str, Any]:
        """Have a gateway explain the pull of an image; return the state of the explanation."""
        return await self.ask_first("POST", ["explain", itype, image], answers.parse_explanation)

    async def explanation(self, explanation_id: str) -> dict[str, Any]:
        """Return the state of an explanation, from the gateway that was asked for it."""
        return await self.ask_last("GET", ["explain", explanation_id], answers.parse_explanation)

    async def expire(self, itype: str, image: str) -> None:
        """Remove a tag from its image."""
        answer = await self._ask("GET", "expire", itype, image)
        _check_success(answer.get("status"))

    async def remove(self, itype: str, image: str) -> tuple[str, list[str]]:
        """Remove an image with all its tags; return its id, and the tags as `type:tag`."""
        answer = await self._ask("POST", "remove", itype, image)
        _check_success(answer.get("status"))
        return _id_in(answer, ""), _texts(answer.get("removed"))

    async def pin(self, itype: str, image: str) -> str:
        """Have an image not expire; return its id."""
        return await self._change("pin", itype, image)

    async def unpin(self, itype: str, image: str) -> str:
        """Let an image expire again; return its id."""
        return await self._change("unpin", itype, image)

    async def _change(self, route: str, itype: str, image: str) -> str:
        answer = await self._ask("POST", route, itype, image)
        _check_success(answer.get("status"))
        return _id_in(answer, "")

    async def autoexpire(self) -> list[str]:
        """Expire the images that are due; return their ids."""
        ids = (await self._ask("GET", "autoexpire")).get("status")
        _check_success(isinstance(ids, list))
        return _texts(ids)

    async def take_down(self, prefix: str) -> tuple[str, list[str]]:
        """Remove and block the image whose id begins with `prefix`.

        Returns the id, and the image's tags as `type:tag`.
        """
        answer = await self._ask("POST", "takedown", prefix)
        _check_success(answer.get("status"))
        return _id_in(answer, prefix), _texts(answer.get("removed"))

    async def allow(self, prefix: str) -> str:
        """Unblock the image whose id begins with `prefix`; return the id."""
        answer = await self._ask("POST", "allow", prefix)
        _check_success(answer.get("status"))
        return _id_in(answer, prefix)

    async def metrics(self, limit: int) -> list[dict[str, Any]]:
        """Return the last `limit` look-ups, oldest first."""
        return await self.ask_first("GET", ["metrics"], answers.parse_rows, query=f"?limit={limit}")

    async def workers(self) -> list[dict[str, Any]]:
        """Return the worker machines of the system, sorted by name."""
        return await self.ask_first("GET", ["workers"], answers.parse_list)

    async def declare(
        self, members: Mapping[str, Any], *, to_last: bool = False
    ) -> answers.UploadState | dict[str, Any]:
        """Declare an upload, or find it again; the gateway that answers keeps its bytes.

        Returns the record of the image instead if it is READY, so that no upload is needed.
        `to_last` asks the gateway that answered last, and no other.
        """
        body = json.dumps(members)
        if to_last:
            return await self.ask_last("POST", ["upload"], answers.parse_declaration, body=body)
        return await self.ask_first("POST", ["upload"], answers.parse_declaration, body=body)

    async def page_address(self) -> str:
        """Return an address that opens the page of the gateway that answers, once."""
        path = await self.ask_first("POST", ["page"], answers.parse_page_path)
        return f"{self._urls[0]}/{path}"

    async def check_login(self, location: str, login: str) -> dict[str, Any]:
        """Have a gateway try a login (`user:password`) at a registry.

        Returns an object with `result`, and perhaps `cause` and `remedy`. Raises `Misuse` with mock
        authentication.
        """
        self._credentials.carry({location: login})
        body = json.dumps({"location": location})
        return await self.ask_first("POST", ["login"], answers.parse_object, body=body)

    async def registries(self) -> list[dict[str, Any]]:
        """Return the registries of the gateway, each with its `location` and `host`."""
        return await self.ask_first("GET", ["registries"], answers.parse_registries)

    async def _ask(self, method: str, *path: str) -> dict[str, Any]:
        return await self.ask_first(method, path, answers.parse_object)


def _id_in(answer: Mapping[str, Any], prefix: str) -> str:
    """Return the image id in an answer; gateways that take whole ids only do not repeat it."""
    image_id = answer.get("id")
    return str(image_id) if is_image_id(image_id) else prefix


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _check_success(status: object) -> None:
    """Raise `RequestRefused` where the original gateway refuses: with 200, `false` or `null`."""
    if status is not True:
        raise RequestRefused("The gateway has not done it: you may not, or there is no such image.")
