"""Docker schema 1: the signed payload, the order of layers, the history as a configuration."""

from __future__ import annotations

import base64
import json
import tracemalloc
from typing import Any

import pytest

from shiftergw.errors import ManifestInvalid
from shiftergw.model.images import Digest
from shiftergw.oci.manifest import parse_config, parse_manifest
from shiftergw.oci.schema1 import MOST_LAYERS, Schema1Manifest, payload_of
from tests.images import json_bytes
from tests.oci.schema1_manifests import layer_history, schema_1_manifest, sign
from tests.tracing import without_tracing

BLOBS = [Digest.of(f"layer {number}".encode()) for number in range(3)]
TYPE = "application/vnd.docker.distribution.manifest.v1+json"


def parse(content: bytes, media_type: str = TYPE) -> Schema1Manifest:
    """Parse a manifest of schema 1."""
    manifest = parse_manifest(content, media_type)
    assert isinstance(manifest, Schema1Manifest)
    return manifest


def histories(**newest: Any) -> list[dict[str, Any]]:
    """Return the v1 documents of `BLOBS`, the oldest first."""
    return [layer_history(number, **(newest if number == 2 else {})) for number in range(3)]


def test_layers_are_listed_newest_first() -> None:
    """The lowest layer of the image is the last one of the document."""
    content = schema_1_manifest(BLOBS, histories())
    assert json.loads(content)["fsLayers"][0]["blobSum"] == str(BLOBS[2])
    assert parse(content).layers == tuple(BLOBS)


@pytest.mark.parametrize(
    "media_type",
    [TYPE, "application/vnd.docker.distribution.manifest.v1+prettyjws", "application/json", ""],
)
def test_every_media_type_of_old_registries(media_type: str) -> None:
    """The document declares schema 1, so its media type does not matter."""
    assert len(parse(schema_1_manifest(BLOBS, histories()), media_type).layers) == 3


def test_the_configuration_is_that_of_the_newest_layer() -> None:
    """Environment, command, directory, labels, date and architecture are read for the runtime."""
    runtime = {
        "Env": ["A=b"],
        "Entrypoint": ["/run"],
        "Cmd": ["sh", "-c", "x"],
        "WorkingDir": "/work",
        "Labels": {"a": "b"},
    }
    content = schema_1_manifest(
        BLOBS, histories(config=runtime, created="2015-06-07T08:09:10.123456789Z", os="linux")
    )
    config = parse_config(parse(content).config)
    assert (config.env, config.entrypoint, config.cmd) == (("A=b",), ("/run",), ("sh", "-c", "x"))
    assert (config.workdir, config.labels) == ("/work", {"a": "b"})
    assert (config.architecture, config.os, config.created) == ("amd64", "linux", 1433664550)
    assert config.diff_ids == ()


def test_the_history_is_kept() -> None:
    """The configuration has the history, the oldest layer first, without the ids."""
    document = json.loads(parse(schema_1_manifest(BLOBS, histories())).config)
    assert [entry["created_by"] for entry in document["history"]] == ["step 0", "step 1", "step 2"]
    assert "id" not in document
    assert "rootfs" not in document


def test_layers_without_files_are_left_out() -> None:
    """A `throwaway` layer is in the history alone."""
    documents = histories()
    documents[1]["throwaway"] = True
    manifest = parse(schema_1_manifest(BLOBS, documents))
    assert manifest.layers == (BLOBS[0], BLOBS[2])
    assert json.loads(manifest.config)["history"][1]["empty_layer"] is True


def test_a_layer_that_is_repeated_by_mistake() -> None:
    """A layer with the id of the one below is the same one; the same bytes alone are not."""
    documents = histories()
    documents[1]["id"] = documents[0]["id"]
    assert len(parse(schema_1_manifest([BLOBS[0], *BLOBS[:1], BLOBS[2]], documents)).layers) == 2
    assert len(parse(schema_1_manifest([BLOBS[0]] * 3, histories())).layers) == 3


def test_the_architecture_of_the_manifest() -> None:
    """If the newest layer names no architecture, that of the manifest counts."""
    documents = histories()
    del documents[2]["architecture"]
    content = schema_1_manifest(BLOBS, documents, architecture="arm64")
    assert parse_config(parse(content).config).architecture == "arm64"


def test_the_payload_of_a_signed_manifest() -> None:
    """The digest does not cover the signatures, which are removed."""
    content = schema_1_manifest(BLOBS, histories())
    signed_content = sign(content)
    assert signed_content != content
    assert b"signatures" in signed_content
    assert payload_of(signed_content) == content
    assert payload_of(content) == content


@without_tracing
def test_many_signatures() -> None:
    """Very many signatures that contradict each other take no more memory than the document."""
    headers = [{"formatLength": length, "formatTail": "fQ"} for length in range(1, 20_000)]
    content = _with_protected(*headers)
    tracemalloc.start()
    try:
        with pytest.raises(ManifestInvalid, match="contradict each other"):
            payload_of(content)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(content)
    finally:
        tracemalloc.stop()


def test_other_documents_have_no_payload() -> None:
    """A manifest of a later schema stays unchanged."""
    content = json_bytes({"schemaVersion": 2, "layers": [], "signatures": [{"protected": ""}]})
    assert payload_of(content) == content


def _with_protected(*headers: object) -> bytes:
    content = json.loads(schema_1_manifest(BLOBS, histories()))
    encoded_headers = [base64.urlsafe_b64encode(json_bytes(header)).decode() for header in headers]
    content["signatures"] = [{"protected": header} for header in encoded_headers]
    return json_bytes(content)


@pytest.mark.parametrize(
    "headers",
    [
        [[]],
        [{}],
        [{"formatLength": -1, "formatTail": "fQ"}],
        [{"formatLength": True, "formatTail": "fQ"}],
        [{"formatLength": 10**9, "formatTail": "fQ"}],
        [{"formatLength": 1, "formatTail": 1}],
        [{"formatLength": 1, "formatTail": "fQ"}, {"formatLength": 2, "formatTail": "fQ"}],
    ],
)
def test_damaged_signatures(headers: list[object]) -> None:
    """A manifest without a recognizable payload, or with two payloads, is refused."""
    with pytest.raises(ManifestInvalid, match="signatures of the image's manifest"):
        payload_of(_with_protected(*headers))


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"history": []}, "history of 0"),
        ({"fsLayers": [{"blobSum": "sha256:../../x"}] * 3}, "names a blob wrongly"),
        ({"fsLayers": [{}] * 3}, "names a blob wrongly"),
        ({"fsLayers": "x"}, "wrong type"),
        ({"history": [{"v1Compatibility": "["}] * 3}, "not JSON"),
        ({"history": [{"v1Compatibility": "[]"}] * 3}, "not a JSON object"),
        ({"fsLayers": [], "history": []}, "no layers"),
        (
            {
                "fsLayers": [{"blobSum": str(BLOBS[0])}] * (MOST_LAYERS + 1),
                "history": [{"v1Compatibility": "{}"}] * (MOST_LAYERS + 1),
            },
            f"more than {MOST_LAYERS} layers",
        ),
    ],
)
def test_malformed_manifests(members: dict[str, Any], why: str) -> None:
    """Each violation is an error that names it."""
    document = json.loads(schema_1_manifest(BLOBS, histories())) | members
    with pytest.raises(ManifestInvalid, match=why):
        parse(json_bytes(document))
