"""Make manifests of Docker schema 1, and sign them as libtrust did."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from shiftergw.model.images import Digest
from tests.images import json_bytes


def layer_history(number: int, **members: Any) -> dict[str, Any]:
    """Return the v1 document of the layer of a number, counted from the lowest."""
    document: dict[str, Any] = {
        "id": f"{number:064x}",
        "created": f"2015-06-07T08:09:0{number}Z",
        "container_config": {"Cmd": [f"step {number}"]},
        "architecture": "amd64",
        "os": "linux",
    }
    if number:
        document["parent"] = f"{number - 1:064x}"
    return document | members


def schema_1_manifest(
    blobs: Sequence[Digest], histories: Sequence[dict[str, Any]], architecture: str = "amd64"
) -> bytes:
    """Return an unsigned manifest; layers and their v1 documents are given the lowest first."""
    document = {
        "schemaVersion": 1,
        "name": "team/app",
        "tag": "1",
        "architecture": architecture,
        "fsLayers": [{"blobSum": str(blob)} for blob in reversed(blobs)],
        "history": [{"v1Compatibility": json.dumps(entry)} for entry in reversed(histories)],
    }
    return json.dumps(document, indent=3).encode()


def sign(content: bytes) -> bytes:
    """Return a manifest with a signature; only its form is ever verified."""
    assert content.endswith(b"\n}")
    length = len(content) - 2
    fields = {"formatLength": length, "formatTail": _base64(b"\n}"), "time": "2015-06-07"}
    signature = {
        "header": {"jwk": {"kty": "EC"}, "alg": "ES256"},
        "signature": _base64(bytes(64)),
        "protected": _base64(json_bytes(fields)),
    }
    signatures = json.dumps([signature], indent=3).encode()
    return content[:length] + b',\n   "signatures": ' + signatures + b"\n}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
