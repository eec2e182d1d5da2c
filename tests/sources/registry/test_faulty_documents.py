"""Registries that break rules: for each behavior the outcome, the words, and every request.

A row has the behavior of a server and its effects: the requests in order, each with the credential
that it carried, and the error with its words. In no row are correct bytes requested twice.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote_plus

import pytest
import pytest_twisted

from shiftergw.errors import (
    BlobCorrupt,
    ImageNotFound,
    ManifestInvalid,
    PullError,
    RegistryDenied,
    RegistryUnavailable,
    RegistryUntrusted,
    RetryLater,
)
from shiftergw.model.images import Digest, Platform
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.sources.registry.admission import Admission
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.quotas import Quotas
from shiftergw.sources.registry.repository import Repository
from shiftergw.sources.registry.retry import Patience
from shiftergw.sources.registry.shared_breakers import SharedBreakers
from shiftergw.sources.registry.tokens import Tokens
from shiftergw.sources.registry.transport import Transport
from tests.images import INDEX, MANIFEST, descriptor, json_bytes, make_image, tar_of
from tests.sources.registry.faulty import (
    ALICE,
    HANG_UP,
    Access,
    FaultySite,
    Framing,
    Reply,
    Request,
    Script,
)
from tests.sources.registry.network import REACTOR, SHORT, Sink, a_client, quiet

IMAGE = make_image([tar_of({"a": b"a" * 500})], config={"Cmd": ["/bin/sh"]})
PATIENCE = Patience(first=0.005, quick=0.5)
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html><html><head><title>Sign in &amp; \x1b[1m pay</title></head>"
JSON = {"Content-Type": "application/json"}
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


def config(runtime: dict[str, Any]) -> Callable[[FaultySite], object]:
    """Return a function that serves an image as `latest`; `runtime` is in its configuration."""

    def prepare(site: FaultySite) -> None:
        image = make_image([tar_of({"a": b"a"})], config=runtime)
        site.blobs.update({str(digest): blob for digest, blob in image.blobs.items()})
        site.add(image.manifest, image.media_type, "latest")

    return prepare


def index(**changes: object) -> Callable[[FaultySite], object]:
    """Return a function that serves an index as `latest`; `changes` are those of its entry."""

    def prepare(site: FaultySite) -> None:
        entry = {**descriptor(IMAGE.manifest, MANIFEST), **changes}
        site.add(json_bytes({"schemaVersion": 2, "manifests": [entry]}), INDEX, "latest")

    return prepare


def schema_1(site: FaultySite) -> None:
    """Serve the image as `latest` in the format of Docker schema 1, which has no sizes."""
    layer = IMAGE.document["layers"][0]["digest"]
    v1_image = json.dumps({"id": "1" * 64, "architecture": "amd64", "os": "linux"})
    document = {
        "schemaVersion": 1,
        "name": "team/app",
        "tag": "latest",
        "architecture": "amd64",
        "fsLayers": [{"blobSum": layer}],
        "history": [{"v1Compatibility": v1_image}],
    }
    site.add(json_bytes(document), "application/json", "latest")


def as_served(kind: str, change: Callable[[Reply], Reply], method: str = "GET") -> Script:
    """Return a script that changes the correct replies to requests of a kind."""

    def script(request: Request) -> Reply | None:
        if request.kind != kind or request.method != method:
            return None
        return change(request.site.respond_well(request))

    return script


def hide_images(status: int, challenge: str) -> Script:
    """Return a script of a registry that hides images, and challenges at its root alone."""

    def script(request: Request) -> Reply | None:
        if request.kind == "manifest" and not request.caller:
            return Reply(status, b'{"errors":[{"message":"no such thing"}]}')
        if request.kind == "/v2/":
            realm = f"http://{request.site.hosts['tokens']}/token"
            fields = {"WWW-Authenticate": challenge.format(realm=realm)} if challenge else {}
            return Reply(401 if challenge else 200, fields=fields)
        return None

    return script


def bearer_and_basic(token: Reply) -> Script:
    """Return a script of a registry that takes both schemes, with this reply of its tokens."""

    def script(request: Request) -> Reply | None:
        if request.server == "tokens":
            return token
        if request.caller != "alice":
            realm = f"http://{request.site.hosts['tokens']}/token"
            return Reply(
                401, fields={"WWW-Authenticate": f'Bearer realm="{realm}", Basic realm="x"'}
            )
        return None

    return script


def reframe(framing: Framing) -> Script:
    """Return a script that ends all documents and tokens with this framing."""
    return first_of(
        as_served("manifest", lambda reply: replace(reply, framing=framing)),
        as_served("blob", lambda reply: replace(reply, framing=framing)),
        as_served("token", lambda reply: replace(reply, framing=framing)),
    )


def encode(coding: str, change: Callable[[bytes], bytes]) -> Callable[[Reply], Reply]:
    """Return a function that adds a content coding to a reply."""
    return lambda reply: replace(
        reply,
        body=change(reply.body) if reply.status == 200 else reply.body,
        fields={**reply.fields, "Content-Encoding": coding}
        if reply.status == 200
        else reply.fields,
    )


def header(name: str, value: str) -> Callable[[Reply], Reply]:
    """Return a function that adds a header field to a reply."""
    return lambda reply: replace(reply, fields={**reply.fields, name: value})


def lead_away(status: int, *kinds: str) -> Script:
    """Return a script of a registry that redirects to another one, unless it has seen the login.

    The other registry refuses, and names a token service, which would get the credential.
    """

    def script(request: Request) -> Reply | None:
        if request.kind not in kinds or request.caller == "alice token":
            return None
        if request.server == "registry":
            target = f"http://{request.site.hosts['store']}{request.path}"
            return Reply(307, fields={"Location": target})
        return Reply(status, b'{"errors":[{"message":"log in here"}]}', request.site.challenge)

    return script


MANIFEST_AND_CONFIG = ("GET manifest", "GET blob")
TOKEN_PULL = ("GET manifest", "GET token", "GET manifest as anonymous token")
OTHER_DIGEST = str(Digest.of(b"other"))

HEAD_ROWS = [
    *(
        Row(
            f"HEAD of a manifest is answered {status}",
            ("HEAD manifest", *MANIFEST_AND_CONFIG),
            on("manifest", Reply(status), method="HEAD"),
            steps=("head", "resolve"),
        )
        for status in (400, 401, 403, 404, 405, 418, 500, 501, 502, 503, 520)
    ),
    *(
        Row(
            f"HEAD of a private manifest is answered {status}",
            (
                *("HEAD manifest", "HEAD manifest", "GET /v2/", "HEAD manifest as alice"),
                *("GET manifest", "GET manifest as alice", "GET blob as alice"),
            ),
            on("manifest", Reply(status), method="HEAD"),
            access="basic",
            login=ALICE,
            steps=("head", "resolve"),
            is_private=True,
        )
        for status in (403, 404)
    ),
    Row(
        "HEAD of a manifest drops the connection",
        ("HEAD manifest", *MANIFEST_AND_CONFIG),
        on("manifest", HANG_UP, method="HEAD"),
        steps=("head", "resolve"),
    ),
    Row(
        "HEAD names no digest",
        ("HEAD manifest", *MANIFEST_AND_CONFIG),
        on("manifest", Reply(200, PAGE), method="HEAD"),
        steps=("head", "resolve"),
    ),
    Row(
        "HEAD of a manifest is limited for hours: no costlier GET follows",
        ("HEAD manifest",),
        on("manifest", replace(LIMIT, fields={"Retry-After": "3600"})),
        steps=("head", "resolve"),
        error=RetryLater,
        words=("asked to slow down",),
    ),
    Row(
        "HEAD of a manifest is limited for hours for anonymous users alone",
        ("HEAD manifest", "GET /v2/", "HEAD manifest as alice"),
        on("manifest", replace(LIMIT, fields={"Retry-After": "3600"}), caller=""),
        access="basic",
        login=ALICE,
        steps=("head",),
    ),
    *(
        Row(
            f"HEAD of a layer is answered {status}",
            (*MANIFEST_AND_CONFIG, "HEAD blob", "GET blob"),
            on("blob", Reply(status), method="HEAD"),
            steps=("resolve", "prove"),
        )
        for status in (400, 401, 403, 404, 405, 500)
    ),
    Row(
        "HEAD of a layer in a store is refused, whose URLs are signed for GET",
        (
            *MANIFEST_AND_CONFIG,
            "GET stored blob",
            *("HEAD blob", "HEAD stored blob") * 2,
            "GET blob",
            "GET stored blob",
        ),
        lambda request: (
            Reply(403) if request.server == "store" and request.method == "HEAD" else None
        ),
        steps=("resolve", "prove"),
        prepare=lambda site: setattr(site, "uses_store", True),
    ),
    *(
        Row(
            f"HEAD of a layer of schema 1 is refused, and GET sends {name}",
            ("GET manifest", "HEAD blob", "GET blob"),
            first_of(on("blob", Reply(405), method="HEAD"), on("blob", reply)),
            prepare=schema_1,
        )
        for name, reply in (
            ("all of it", None),
            ("a part of it", Reply(206, b"x", {"Content-Range": "bytes 0-0/1000"})),
        )
    ),
    Row(
        "no request tells the size of a layer of schema 1",
        ("GET manifest", "HEAD blob", "GET blob"),
        first_of(
            on("blob", Reply(405), method="HEAD"),
            on("blob", Reply(206, b"x", {"Content-Range": "bytes 0-0/*"})),
        ),
        prepare=schema_1,
        error=RegistryUnavailable,
        words=("does not tell the size of a layer",),
    ),
    Row(
        "a layer is missing",
        (*MANIFEST_AND_CONFIG, "HEAD blob", "GET blob"),
        steps=("resolve", "prove"),
        prepare=lambda site: site.blobs.pop(IMAGE.document["layers"][0]["digest"]),
        error=ImageNotFound,
        words=("lacks a part",),
    ),
]

ROOT_CHALLENGES: tuple[tuple[str, Access, str, tuple[str, ...]], ...] = (
    ("Basic", "basic", 'Basic realm="x"', ("GET manifest as alice", "GET blob as alice")),
    (
        "Bearer, with the scope of another repository",
        "login token",
        'Bearer realm="{realm}",scope="repository:user/image:pull"',
        ("GET token as alice", "GET manifest as alice token", "GET blob as alice token"),
    ),
)

LOGIN_ROWS = [
    *(
        Row(
            f"a private image is hidden by {status}, and the root challenges for {scheme}",
            ("GET manifest", "GET manifest", "GET /v2/", *requests),
            hide_images(status, challenge),
            access=access,
            login=ALICE,
            is_private=True,
        )
        for status in (403, 404)
        for scheme, access, challenge, requests in ROOT_CHALLENGES
    ),
    *(
        Row(
            f"an image is refused by {status} without any challenge",
            ("GET manifest", "GET manifest", "GET /v2/"),
            hide_images(status, ""),
            login=ALICE,
            error=error,
            words=(*words, "no such thing"),
            absent=("to your login", "Log in", "log in"),
        )
        for status, error, words in (
            (403, RegistryDenied, ("without asking for your login",)),
            (404, ImageNotFound, ("has no image team/app:latest",)),
        )
    ),
    Row(
        "an image is hidden from users without a login, whose root is not asked",
        ("GET manifest",),
        hide_images(403, 'Basic realm="x"'),
        error=RegistryDenied,
        words=("to a user without a login", "shiftergw login test"),
    ),
    Row(
        "a hidden image, and a login that the token service refuses in its own words",
        ("GET manifest", "GET manifest", "GET /v2/", "GET token as alice"),
        first_of(
            hide_images(404, 'Bearer realm="{realm}"'),
            on("token", Reply(401, DENIAL), caller="alice"),
        ),
        access="login token",
        login=ALICE,
        error=ImageNotFound,
        words=("has no image", "refused your login (use a token, you have 2FA)"),
    ),
    *(
        Row(
            f"a redirect leads to another registry, which answers {status}, as does its root",
            ("GET manifest", "GET stored manifest") * 2 + ("GET /v2/", "GET stored /v2/"),
            lead_away(status, "manifest", "/v2/"),
            access="login token",
            login=ALICE,
            error=RegistryDenied,
            words=(
                "'test' sends the gateway to http://127.0.0.1:",
                f"{status}: log in here",
                "the `url` of the location should be http://127.0.0.1:",
            ),
            absent=("your login",),
        )
        for status in (401, 403)
    ),
    Row(
        "a redirect leads to another registry, and the root of the first asks for the login",
        (
            *("GET manifest", "GET stored manifest") * 2,
            *("GET /v2/", "GET token as alice", "GET manifest as alice token"),
            "GET blob as alice token",
        ),
        first_of(
            lead_away(401, "manifest"),
            hide_images(404, 'Bearer realm="{realm}"'),
        ),
        access="login token",
        login=ALICE,
        is_private=True,
    ),
    Row(
        "anonymous requests are limited before any challenge",
        (
            "GET manifest",
            "GET /v2/",
            "GET manifest as alice",
            "GET blob as alice",
        ),
        on("manifest", LIMIT, caller=""),
        access="basic",
        login=ALICE,
        is_private=True,
    ),
    Row(
        "anonymous tokens are limited",
        (
            *TOKEN_PULL,
            "GET token as alice",
            "GET manifest as alice token",
            "GET blob as alice token",
        ),
        on("manifest", LIMIT, caller="anonymous token"),
        access="login token",
        login=ALICE,
        is_private=True,
    ),
    Row(
        "anonymous requests are limited, and the registry does not challenge",
        ("GET manifest", "GET /v2/"),
        on("manifest", LIMIT),
        login=ALICE,
        error=RetryLater,
        words=("slow down",),
    ),
    Row(
        "anonymous requests are limited, and so is the root",
        ("GET manifest", "GET /v2/"),
        first_of(on("manifest", LIMIT), on("/v2/", LIMIT)),
        login=ALICE,
        error=RetryLater,
        words=("slow down",),
    ),
    Row(
        "anonymous requests are limited for users without a login",
        ("GET manifest",),
        on("manifest", replace(LIMIT, fields={"Retry-After": "900"})),
        error=RetryLater,
        words=("slow down",),
    ),
]

TOKEN_ROWS = [
    *(
        Row(
            f"the token service says {body!r}",
            ("GET manifest", "GET token", "GET token as alice"),
            on("token", Reply(status, body)),
            access="login token",
            login=ALICE,
            error=RegistryDenied,
            words=("to your login", words),
            absent=(ALICE.password,),
        )
        for status, body, words in (
            (401, DENIAL, "(use a token, you have 2FA)"),
            (403, b'{"errors":[{"code":"DENIED","message":"blocked"}]}', "(blocked)"),
            (400, b'{"error":"invalid_grant","error_description":"bad login"}', "(bad login)"),
            (401, b'{"message":"a\\u001b[31mb\\nc"}', r"(a\x1b[31mb c)"),
            (
                401,
                json.dumps({"message": f"{ALICE.password} is wrong"}).encode(),
                "(*** is wrong)",
            ),
            (
                401,
                json.dumps({"message": f"?password={quote_plus(ALICE.password)}&a=b"}).encode(),
                "(?password=***&a=b)",
            ),
            (
                401,
                json.dumps({"message": "-" * 290 + ALICE.password}).encode(),
                "(" + "-" * 290 + "***)",
            ),
        )
    ),
    Row(
        "the token service is down, and says so",
        ("GET manifest", "GET token") * 3,
        on("token", Reply(503, b'{"message":"maintenance"}')),
        access="token",
        error=RetryLater,
        words=("The token service of the registry 'test' answered with status 503: maintenance",),
    ),
    Row(
        "the registry repeats the token that it refuses",
        (*TOKEN_PULL, "GET token as alice", "GET manifest as alice token"),
        on("manifest", Reply(403, b'{"message":"alice-token is bad"}'), caller="alice token"),
        access="login token",
        login=ALICE,
        error=RegistryDenied,
        words=("to your login (*** is bad)",),
    ),
    Row(
        "the token service is down for the login, and repeats it",
        ("GET manifest", "GET token", "GET token as alice") * 3,
        first_of(
            on("token", Reply(401), caller=""),
            on("token", Reply(503, json.dumps({"message": ALICE.password}).encode())),
        ),
        access="login token",
        login=ALICE,
        error=RetryLater,
        words=("answered with status 503: ***",),
        absent=(ALICE.password,),
    ),
    Row(
        "the token service makes no sense",
        ("GET manifest", "GET token"),
        on("token", Reply(599, b'{"message":"what?"}')),
        access="token",
        error=RegistryUnavailable,
        words=("The token service of the registry 'test' answered with status 599: what?",),
    ),
    Row(
        "the token service sends a log-in page",
        ("GET manifest", "GET token") * 3,
        on("token", Reply(200, PAGE)),
        access="token",
        error=RegistryUnavailable,
        words=("The token service of the registry 'test' sent a web page", "of a token"),
    ),
    Row(
        "tokens are compressed",
        (*TOKEN_PULL, "GET blob as anonymous token"),
        as_served("token", encode("gzip", gzip.compress)),
        access="token",
    ),
    *(
        Row(
            f"Basic is offered, too, and the token service {name}",
            ("GET manifest", *anonymous, *own, "GET manifest as alice", "GET blob as alice"),
            bearer_and_basic(reply),
            login=ALICE,
            is_private=True,
        )
        for name, reply, anonymous, own in (
            ("is down", Reply(502), ("GET token",), ("GET token as alice",)),
            ("sends a page", Reply(200, PAGE), ("GET token",), ("GET token as alice",)),
            (
                "does not exist",
                Reply(404),
                ("GET token",),
                ("GET token as alice", "POST token as alice"),
            ),
            (
                "drops connections",
                HANG_UP,
                ("GET token",),
                ("GET token as alice",),
            ),
        )
    ),
    Row(
        "Basic is offered, too, and the user without a login learns that tokens are down",
        ("GET manifest", "GET token") * 3,
        bearer_and_basic(Reply(500, DENIAL)),
        error=RetryLater,
        words=("token service", "status 500"),
        absent=("refused",),
    ),
    Row(
        "Basic is offered, too, and the token service refuses the login: once is enough",
        ("GET manifest", "GET token", "GET token as alice"),
        bearer_and_basic(Reply(401, DENIAL)),
        login=ALICE,
        error=RegistryDenied,
        words=("to your login (use a token, you have 2FA)",),
    ),
    Row(
        "the token service has another http port that the configuration does not list",
        ("GET manifest",),
        access="token",
        trusted_hosts=(),
        error=RegistryUntrusted,
        words=("another place without TLS", "`trustedHosts`"),
    ),
    Row(
        "the store has another http port that the configuration does not list",
        ("GET manifest", "GET blob"),
        trusted_hosts=(),
        prepare=lambda site: setattr(site, "uses_store", True),
        error=RegistryUntrusted,
        words=("another place without TLS", "`trustedHosts`"),
    ),
    Row(
        "the store has another http port that the configuration lists",
        ("GET manifest", "GET manifest as alice", "GET blob as alice", "GET stored blob"),
        prepare=lambda site: setattr(site, "uses_store", True),
        access="basic",
        login=ALICE,
        is_private=True,
    ),
]

DOCUMENT_ROWS = [
    *(
        Row(
            f"the ends of documents are marked by {framing}",
            (*TOKEN_PULL, "GET blob as anonymous token"),
            reframe(framing),
            access="token",
        )
        for framing in ("chunks", "close", "http/1.0")
    ),
    *(
        Row(
            f"the end of a {what} may be missing, and is",
            requests,
            on(kind, *[Reply(200, body, JSON, framing="close")] * times, None),
        )
        for what, kind, body, times, requests in (
            (
                "manifest",
                "manifest",
                IMAGE.manifest[:-1],
                1,
                ("GET manifest", *MANIFEST_AND_CONFIG),
            ),
            ("configuration", "blob", b'{"architecture"', 2, ("GET manifest", *["GET blob"] * 3)),
        )
    ),
    Row(
        "the end of a manifest may be missing, and its header names another digest",
        ("GET manifest",) * 3,
        on(
            "manifest",
            Reply(200, IMAGE.manifest, {"Docker-Content-Digest": OTHER_DIGEST}, framing="close"),
        ),
        error=RetryLater,
        words=("closed the connection",),
    ),
    Row(
        "a tag has the header of another digest",
        MANIFEST_AND_CONFIG,
        as_served("manifest", header("Docker-Content-Digest", OTHER_DIGEST)),
    ),
    Row(
        "a configuration is wrong once",
        ("GET manifest", "GET blob", "GET blob"),
        on("blob", Reply(200, b"{}"), None),
    ),
    Row(
        "a manifest of an index is wrong once",
        ("GET manifest", "GET child", "GET child", "GET blob"),
        on("child", Reply(200, b'{"layers":[]}'), None),
        prepare=index(),
    ),
    Row(
        "a configuration is always wrong",
        ("GET manifest", *["GET blob"] * 3),
        on("blob", Reply(200, b"{}")),
        error=BlobCorrupt,
        words=("a configuration that is not sha256:",),
    ),
    Row(
        "a log-in page stands for a manifest, with status 200",
        ("GET manifest",) * 3,
        on(
            "manifest",
            Reply(200, PAGE, {"Content-Type": "text/html", "Server": "portal/1\x7f\x01"}),
        ),
        error=RegistryUnavailable,
        words=(
            r"sent a web page titled 'Sign in & \\x1b[1m pay' instead of a manifest",
            "log-in page of the network",
            "portal/1",
        ),
    ),
    Row(
        "a page of a CDN stands for a manifest once",
        ("GET manifest", *MANIFEST_AND_CONFIG),
        on("manifest", Reply(200, b"<html>busy"), None),
    ),
    Row(
        "a page stands for a configuration",
        ("GET manifest", *["GET blob"] * 3),
        on("blob", Reply(200, b"<HTML>")),
        error=RegistryUnavailable,
        words=("sent a web page instead of a configuration",),
    ),
    *(
        Row(
            f"documents have the content coding {coding} although none was asked for",
            MANIFEST_AND_CONFIG,
            first_of(
                as_served("manifest", encode(coding, change)),
                as_served("blob", encode(coding, change)),
            ),
        )
        for coding, change in (("gzip", gzip.compress), ("gzip, identity", gzip.compress))
    ),
    Row(
        "a manifest has a content coding that nobody knows",
        ("GET manifest",) * 3,
        as_served("manifest", encode("br", bytes)),
        error=RegistryUnavailable,
        words=("sent a manifest that has the content coding 'br'",),
    ),
    Row(
        "a manifest is a bomb of gzip",
        ("GET manifest",),
        on(
            "manifest",
            Reply(200, gzip.compress(b" " * (64 << 20), 9), {"Content-Encoding": "gzip"}),
        ),
        error=ManifestInvalid,
        words=("larger than 4 MiB",),
    ),
    *(
        Row(
            f"an entry of an index has the size {size}",
            ("GET manifest", "GET child", "GET blob"),
            prepare=index(size=size),
        )
        for size in (0, 1, len(IMAGE.manifest) - 1, 2**62)
    ),
    Row(
        "an index has the header of a manifest",
        ("GET manifest", "GET child", "GET blob"),
        as_served("manifest", header("Content-Type", MANIFEST)),
        prepare=lambda site: site.add(
            json_bytes(
                {
                    "schemaVersion": 2,
                    "mediaType": INDEX,
                    "manifests": [descriptor(IMAGE.manifest, MANIFEST)],
                }
            ),
            INDEX,
            "latest",
        ),
    ),
    Row(
        "a manifest has the header of an index",
        MANIFEST_AND_CONFIG,
        as_served("manifest", header("Content-Type", INDEX)),
    ),
    Row(
        "an index that does not say what it is has the header of a manifest",
        ("GET manifest",),
        as_served("manifest", header("Content-Type", MANIFEST)),
        prepare=index(),
        error=ManifestInvalid,
        words=("sends the image's index under the media type of another kind", MANIFEST),
    ),
    Row(
        "labels are numbers and the environment has null",
        MANIFEST_AND_CONFIG,
        prepare=config({"Labels": {"a": 1, "b": True}, "Env": [None, "A=1"]}),
    ),
]


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


@pytest.mark.parametrize(
    "row", [*HEAD_ROWS, *LOGIN_ROWS, *TOKEN_ROWS, *DOCUMENT_ROWS], ids=lambda row: row.name
)
@pytest_twisted.ensureDeferred
async def test_behavior(row: Row) -> None:
    """The requests, their logins, and the outcome are those of the row."""
    site = FaultySite(IMAGE, script=row.script, access=row.access)
    row.prepare(site)
    async with (
        site.running() as url,
        a_client(url, trusted_hosts=row.trusted_hosts, patience=PATIENCE) as client,
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


@pytest_twisted.ensureDeferred
async def test_the_root_of_an_extension() -> None:
    """An extension has a prefix of its path; the challenge is requested at the registry's root."""
    script = hide_images(404, 'Basic realm="x"')
    site = FaultySite(IMAGE, script=script, access="basic")
    async with site.running() as url:
        admission = Admission("test", SharedBreakers(), PATIENCE, REACTOR, lambda: 0.5)
        transport = Transport(REACTOR, Location("test", url), Proxies({}), SHORT, admission)
        tokens, quotas = Tokens(transport, REACTOR), Quotas("test")
        base = f"{url}/extensions"
        repository = Repository(transport, tokens, base, "team/app", ALICE, admission, quotas)
        response = await repository.ask("GET", "manifests/latest", {})
        transport.discard(response)
        await transport.close()
    manifest = "/extensions/v2/team/app/manifests/latest"
    assert [request.path for request in site.requests] == [manifest, manifest, "/v2/", manifest]
    assert repository.private
