"""Behaviors of registries, and their effects on the requests and the outcome of a pull."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from shiftergw.errors import (
    PullError,
)
from shiftergw.model.images import Digest, Platform
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.retry import Patience
from tests.images import make_image, tar_of
from tests.sources.registry.faulty import (
    Access,
    FaultySite,
    Reply,
    Request,
    Script,
)
from tests.sources.registry.network import Sink, open_client, quiet

IMAGE = make_image([tar_of({"a": b"a" * 500})], config={"Cmd": ["/bin/sh"]})
PATIENCE = Patience(first=0.005, quick=0.5)
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html><html><head><title>Sign in &amp; \x1b[1m pay</title></head>"
DENIAL = b'{"details":"use a token, you have 2FA"}'
LIMIT = Reply(429, b'{"errors":[{"message":"slow down"}]}')


@dataclass(frozen=True)
class Row:
    """A behavior of a site, and its effects.

    `steps` are those of a pull: `head`, `resolve`, `prove`, `layers`. `words` are parts of the
    error, and `absent` must not be in it.
    """

    name: str
    requests: tuple[str, ...]
    script: Script = field(default=lambda _: None)
    access: Access = "open"
    login: RegistryLogin | None = None
    steps: tuple[str, ...] = ("resolve",)
    error: type[PullError] | None = None
    words: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    is_private: bool = False
    trusted_hosts: tuple[str, ...] = ("127.0.0.1",)
    prepare: Callable[[FaultySite], object] = bool


def on(kind: str, *replies: Reply | None, method: str = "", caller: str | None = None) -> Script:
    """Return a script that answers requests of a kind with these replies in turn, then the last."""

    def script(request: Request) -> Reply | None:
        if request.kind != kind or (method and request.method != method):
            return None
        if caller is not None and request.caller != caller:
            return None
        return replies[min(request.nth, len(replies)) - 1]

    return script


def first_of(*scripts: Script) -> Script:
    """Return a script that answers by the first of `scripts` with an answer."""
    return lambda request: next(
        (reply for script in scripts if (reply := script(request)) is not None), None
    )


def as_served(kind: str, change: Callable[[Reply], Reply], method: str = "GET") -> Script:
    """Return a script that changes the correct replies to requests of a kind."""

    def script(request: Request) -> Reply | None:
        if request.kind != kind or request.method != method:
            return None
        return change(request.site.respond_well(request))

    return script


def encode(coding: str, change: Callable[[bytes], bytes]) -> Callable[[Reply], Reply]:
    """Return a function that adds a content coding to a reply."""
    return lambda reply: replace(
        reply,
        body=change(reply.body) if reply.status == 200 else reply.body,
        fields={**reply.fields, "Content-Encoding": coding}
        if reply.status == 200
        else reply.fields,
    )


TOKEN_PULL = ("GET manifest", "GET token", "GET manifest as anonymous token")


async def pull(row: Row, client: RegistryClient) -> bool:
    """Run the steps of a pull; return whether the image counts as private."""
    reference = ImageReference.parse("team/app")
    image = None
    for step in row.steps:
        if step == "head":
            await client.head(reference, row.login, quiet)
            continue
        if step == "resolve":
            image, _ = await client.resolve(reference, Platform(), row.login, quiet)
            continue
        assert image is not None
        if step == "prove":
            await client.prove(image, row.login, quiet)
        else:
            for layer in image.layers:
                sink = Sink()
                await client.blob(image, layer, row.login, quiet, 0, sink)
                assert Digest.of(bytes(sink.content)) == layer.digest
    return image is not None and image.private


async def check(row: Row) -> None:
    """Check that the requests, their logins, and the outcome are those of the row."""
    site = FaultySite(IMAGE, script=row.script, access=row.access)
    row.prepare(site)
    async with (
        site.running() as url,
        open_client(url, trusted_hosts=row.trusted_hosts, patience=PATIENCE) as client,
    ):
        if row.error is None:
            assert await pull(row, client) == row.is_private
        else:
            with pytest.raises(row.error) as caught:
                await pull(row, client)
            text = str(caught.value)
            assert [words for words in row.words if words not in text] == [], text
            assert [words for words in row.absent if words in text] == [], text
            assert text.isprintable()
    assert tuple(site.lines) == row.requests
    assert site.repeated_paths == []
