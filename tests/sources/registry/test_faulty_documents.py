"""Registries that break rules: for each behavior the outcome, the words, and every request.

A row has the behavior of a server and its effects: the requests in order, each with the credential
that it carried, and the error with its words. In no row are correct bytes requested twice.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted

from shiftergw.errors import (
    BlobCorrupt,
    ImageNotFound,
    ManifestInvalid,
    RegistryUnavailable,
    RetryLater,
)
from shiftergw.model.images import Digest
from tests.images import INDEX, MANIFEST, descriptor, json_bytes, make_image, tar_of
from tests.sources.registry.behavior_rows import (
    IMAGE,
    LIMIT,
    PAGE,
    TOKEN_PULL,
    Row,
    as_served,
    check,
    encode,
    first_of,
    on,
)
from tests.sources.registry.faulty import (
    ALICE,
    HANG_UP,
    FaultySite,
    Framing,
    Reply,
    Script,
)

JSON = {"Content-Type": "application/json"}


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


def reframe(framing: Framing) -> Script:
    """Return a script that ends all documents and tokens with this framing."""
    return first_of(
        as_served("manifest", lambda reply: replace(reply, framing=framing)),
        as_served("blob", lambda reply: replace(reply, framing=framing)),
        as_served("token", lambda reply: replace(reply, framing=framing)),
    )


def header(name: str, value: str) -> Callable[[Reply], Reply]:
    """Return a function that adds a header field to a reply."""
    return lambda reply: replace(reply, fields={**reply.fields, name: value})


MANIFEST_AND_CONFIG = ("GET manifest", "GET blob")
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


@pytest.mark.parametrize("row", [*HEAD_ROWS, *DOCUMENT_ROWS], ids=lambda row: row.name)
@pytest_twisted.ensureDeferred
async def test_faulty_documents(row: Row) -> None:
    """A pull reads what can be read, with few requests, and names what cannot."""
    await check(row)
