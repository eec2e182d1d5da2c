"""Manifests, indexes, platforms and configurations: valid and invalid documents."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.errors import GatewayError, ManifestInvalid
from shiftergw.oci.manifest import (
    ACCEPT,
    MAX_CONFIG,
    MAX_MANIFEST,
    Index,
    Manifest,
    choose,
    parse_config,
    parse_manifest,
)
from shiftergw.oci.schema1 import Schema1Manifest
from tests.oci.documents import (
    AMD64,
    DOCKER_LIST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    blob,
    digest,
    entry,
    index,
    manifest,
    parse,
)

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


def test_accept_names_every_manifest_and_index_type() -> None:
    """A request names the types of OCI and Docker, because registries serve what they have."""
    assert {OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, SCHEMA_1} < set(ACCEPT)


@pytest.mark.parametrize(
    "layer",
    [
        OCI_LAYER,
        f"{OCI_LAYER}+gzip",
        f"{OCI_LAYER}+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        DOCKER_LAYER,
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ],
)
def test_layers_of_every_known_type(layer: str) -> None:
    """Each type of layer with a file system is accepted, with its digest and size."""
    parsed_document = parse(manifest(layers=[blob(layer, "a"), blob(layer, "b", size=0)]))
    assert isinstance(parsed_document, Manifest)
    assert [str(descriptor.digest) for descriptor in parsed_document.layers] == [
        digest("a"),
        digest("b"),
    ]
    assert [descriptor.size for descriptor in parsed_document.layers] == [7, 0]
    assert parsed_document.config.media_type == OCI_CONFIG


@pytest.mark.parametrize("layers", [[], None])
def test_image_without_layers(layers: object) -> None:
    """An image without layers is valid; Go writes its layers as `null`."""
    parsed_document = parse({**manifest(), "layers": layers}, OCI_MANIFEST)
    assert isinstance(parsed_document, Manifest)
    assert parsed_document.layers == ()


@pytest.mark.parametrize(
    ("header", "document"),
    [
        (OCI_MANIFEST, manifest()),
        (f"{OCI_MANIFEST}; charset=utf-8", manifest(mediaType=None)),
        (OCI_MANIFEST.upper(), manifest()),
        ("", manifest()),
        ("text/plain", manifest(mediaType=None)),
        ("application/json", manifest(schemaVersion=None)),
        (DOCKER_MANIFEST, manifest(mediaType=DOCKER_MANIFEST)),
        # Some registries send a Docker manifest as an OCI manifest.
        (OCI_MANIFEST, manifest(mediaType=DOCKER_MANIFEST)),
        ("", manifest(config=blob("application/octet-stream"))),
    ],
)
def test_kind_of_a_manifest(header: str, document: dict[str, Any]) -> None:
    """Header, `mediaType` and members identify a manifest, separately or together."""
    assert isinstance(parse(document, header), Manifest)


@pytest.mark.parametrize(
    ("header", "document"),
    [
        (OCI_INDEX, index()),
        (DOCKER_LIST, index(mediaType=DOCKER_LIST)),
        ("text/plain", {"manifests": []}),
        (OCI_INDEX, {"manifests": None}),
    ],
)
def test_kind_of_an_index(header: str, document: dict[str, Any]) -> None:
    """Header, `mediaType` and members identify an index, separately or together."""
    assert parse(document, header) == Index(())


@pytest.mark.parametrize(
    ("header", "document"),
    [
        ("", {**manifest(), **index()}),
        (OCI_MANIFEST, {**manifest(), "manifests": []}),
        (OCI_INDEX, {**index(), "layers": []}),
        (OCI_MANIFEST, index(mediaType=OCI_MANIFEST)),
        (OCI_INDEX, index(mediaType=OCI_MANIFEST)),
        ("", {"schemaVersion": 2}),
        ("", {**manifest(), "fsLayers": []}),
    ],
)
def test_ambiguous_documents_are_rejected(header: str, document: dict[str, Any]) -> None:
    """A document that two readers could understand differently is an error (CVE-2021-41190)."""
    with pytest.raises(ManifestInvalid, match="either an index or a manifest"):
        parse(document, header)


@pytest.mark.parametrize(
    ("header", "document"),
    [
        (OCI_INDEX, manifest(mediaType=None)),
        (DOCKER_LIST, manifest(mediaType=None)),
        (SCHEMA_1, manifest(mediaType=None)),
        (OCI_MANIFEST, index(mediaType=None)),
    ],
)
def test_the_header_of_another_kind(header: str, document: dict[str, Any]) -> None:
    """A document that does not declare its kind needs a header of its kind; the error quotes it."""
    with pytest.raises(ManifestInvalid, match="under the media type of another kind") as caught:
        parse(document, header)
    assert header in caught.value.what
    assert "operators of the registry" in caught.value.remedy


def test_the_document_declares_its_kind() -> None:
    """A document whose `mediaType` and members agree is of that kind, whatever its header."""
    for header in (OCI_INDEX, SCHEMA_1, "application/vnd.example.thing"):
        assert isinstance(parse(manifest(), header), Manifest)
    for header in (OCI_MANIFEST, SCHEMA_1, "application/vnd.example.thing"):
        assert isinstance(parse(index(), header), Index)


@pytest.mark.parametrize("version", [1, 3, 0, -2])
def test_other_schema_versions(version: int) -> None:
    """Only schema version 2 is accepted."""
    with pytest.raises(ManifestInvalid):
        parse(manifest(schemaVersion=version))


@pytest.mark.parametrize("header", [SCHEMA_1, "application/json"])
def test_docker_schema_1(header: str) -> None:
    """The old format is recognized by its members; see `test_schema1`."""
    document = {
        "schemaVersion": 1,
        "fsLayers": [{"blobSum": f"sha256:{'0' * 64}"}],
        "history": [{"v1Compatibility": "{}"}],
    }
    manifest_ = parse(document, header)
    assert isinstance(manifest_, Schema1Manifest)
    with pytest.raises(ManifestInvalid, match="no layers"):
        parse(document | {"fsLayers": [], "history": []}, header)


@pytest.mark.parametrize(
    ("document", "shown_type"),
    [
        (manifest(config=blob("application/vnd.cncf.helm.config.v1+json")), "helm"),
        (manifest(layers=[blob("application/vnd.dev.cosign.simplesigning.v1+json")]), "cosign"),
        (manifest(layers=[blob("application/vnd.in-toto+json")]), "in-toto"),
        (manifest(layers=[blob("")]), "''"),
        (manifest(layers=[blob("application/vnd.x\n\x1b[31m" + 1000 * "y")]), r"x0a.*x1b.*…"),
        ({"mediaType": "application/vnd.oci.artifact.manifest.v1+json"}, "artifact"),
    ],
)
def test_artifacts_are_not_images(document: dict[str, Any], shown_type: str) -> None:
    """The error says that the document is not an image, with its type in printable form."""
    with pytest.raises(ManifestInvalid, match=f"not a container image.*{shown_type}") as caught:
        parse(document)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_artifact_by_header_alone() -> None:
    """The error shows a type that only the header has."""
    with pytest.raises(ManifestInvalid, match=r"vnd\.oci\.artifact"):
        parse({}, "application/vnd.oci.artifact.manifest.v1+json")


def test_urls_of_layers_are_never_requested() -> None:
    """The gateway requests no URL in a manifest (CVE-2020-15157).

    It requests the layer from the registry, which usually has it.
    """
    with_urls = parse(manifest(layers=[blob(DOCKER_LAYER, urls=["https://169.254.169.254/"])]))
    plain = parse(manifest(layers=[blob(DOCKER_LAYER, urls=[])]))
    assert isinstance(with_urls, Manifest)
    assert isinstance(plain, Manifest)
    assert with_urls == plain
    assert [layer.has_urls for layer in (*with_urls.layers, *plain.layers)] == [True, False]


def test_encrypted_layers_are_rejected() -> None:
    """The error says that the layer is encrypted."""
    with pytest.raises(ManifestInvalid, match="encrypted"):
        parse(manifest(layers=[blob(f"{OCI_LAYER}+gzip+encrypted")]))


@pytest.mark.parametrize("size", [-1, 1.0, 1e3, True, "7", None, [], {}, 2**63, float("nan")])
def test_sizes_are_whole_numbers(size: object) -> None:
    """A size is a nonnegative integer, neither true nor 1.0."""
    with pytest.raises(ManifestInvalid):
        parse(manifest(layers=[{**blob(OCI_LAYER), "size": size}]))


@pytest.mark.parametrize(
    "text",
    [
        "sha256:../../etc/passwd",
        "sha256:" + 63 * "0",
        "sha256:" + 64 * "A",
        "sha256:" + 64 * "0" + "\n",
        "md5:" + 32 * "0",
        "",
        7,
        None,
        ["sha256:" + 64 * "0"],
    ],
)
def test_digests_are_strict(text: object) -> None:
    """Digests become file names: only their exact grammar is accepted (CVE-2024-3727)."""
    with pytest.raises(ManifestInvalid):
        parse(manifest(config={**blob(OCI_CONFIG), "digest": text}))
    with pytest.raises(ManifestInvalid):
        parse(index({**entry("a"), "digest": text}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"\xff\xfe{}",
        b"[" * 200_000,
        b'{"schemaVersion": ' + b"9" * 5000 + b"}",
        b"<html>",
    ],
)
@pytest.mark.parametrize("parse", [lambda c: parse_manifest(c, OCI_MANIFEST), parse_config])
def test_not_json(content: bytes, parse: Any) -> None:
    """Bytes that are not a JSON object are an error, however deep or long."""
    with pytest.raises(ManifestInvalid):
        parse(content)


def test_sizes_of_documents_are_limited() -> None:
    """A manifest or configuration beyond the limit is not parsed."""
    with pytest.raises(ManifestInvalid, match="4 MiB"):
        parse_manifest(b" " * (MAX_MANIFEST + 1), OCI_MANIFEST)
    with pytest.raises(ManifestInvalid, match="8 MiB"):
        parse_config(b" " * (MAX_CONFIG + 1))


def test_last_of_two_members_counts() -> None:
    """A duplicate member is not an error."""
    text = json.dumps(manifest())[:-1] + ', "schemaVersion": 2}'
    assert isinstance(parse_manifest(text.encode(), ""), Manifest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


PATHS = [
    ("schemaVersion",),
    ("mediaType",),
    ("config",),
    ("config", "size"),
    ("config", "digest"),
    ("layers",),
    ("layers", 0),
    ("layers", 0, "mediaType"),
    ("layers", 0, "urls"),
    ("manifests",),
    ("manifests", 0),
    ("manifests", 0, "platform"),
    ("manifests", 0, "platform", "variant"),
    ("manifests", 0, "annotations"),
    ("manifests", 0, "artifactType"),
    ("config", "Env"),
    ("config", "Entrypoint"),
    ("config", "Labels"),
    ("config", "Labels", "a"),
    ("rootfs",),
    ("rootfs", "diff_ids"),
    ("created",),
]


def put(document: Any, path: tuple[str | int, ...], value: object) -> None:
    """Replace the value at `path`, if it exists."""
    try:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value
    except (KeyError, IndexError, TypeError):
        return


@given(st.sampled_from(PATHS), JSON)
def test_any_value_anywhere_is_parsed_or_rejected(
    path: tuple[str | int, ...], value: object
) -> None:
    """Any value at any place leads to a result or a printable error."""
    documents = [
        manifest(),
        index(entry("a", "linux/amd64", annotations={})),
        {"config": {"Env": [], "Labels": {}}, "rootfs": {"diff_ids": []}},
    ]
    for document in documents:
        put(document, path, value)
        content = json.dumps(document).encode("utf-8", "surrogatepass")
        for parser in (lambda c: parse_manifest(c, ""), parse_config):
            try:
                parsed_document: object = parser(content)
                if isinstance(parsed_document, Index):
                    choose(parsed_document, AMD64)
            except GatewayError as error:
                assert error.what.isprintable()  # noqa: PT017
