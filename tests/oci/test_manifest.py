"""Manifests, indexes, platforms and configurations: valid and invalid documents."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.errors import GatewayError, ManifestInvalid, NoMatchingPlatform
from shiftergw.model.images import Digest, ImageConfig, Platform
from shiftergw.oci.manifest import (
    ACCEPT,
    MAX_CONFIG,
    MAX_MANIFEST,
    Index,
    Manifest,
    check_layers,
    check_platform,
    choose,
    parse_config,
    parse_manifest,
)
from shiftergw.oci.schema1 import Schema1Manifest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

AMD64 = Platform("amd64")


def digest(content: str) -> str:
    """Return a digest that is unique to `content`."""
    return str(Digest.of(content.encode()))


def blob(media_type: str, content: str = "x", **changes: Any) -> dict[str, Any]:
    """Return the descriptor of a blob as JSON values."""
    return {"mediaType": media_type, "digest": digest(content), "size": 7, **changes}


def manifest(**changes: Any) -> dict[str, Any]:
    """Return an OCI manifest of one layer, with changes; a change to None removes a member."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": blob(OCI_CONFIG, "config"),
        "layers": [blob(f"{OCI_LAYER}+gzip", "layer")],
        **changes,
    }
    return {name: value for name, value in document.items() if value is not None}


def entry(name: str, platform: object = None, **changes: Any) -> dict[str, Any]:
    """Return an entry of an index; `platform` is `os/architecture/variant`."""
    line = {**blob(OCI_MANIFEST, name), **changes}
    if isinstance(platform, str):
        os, architecture, variant = (*platform.split("/"), "")[:3]
        line["platform"] = {"os": os, "architecture": architecture, "variant": variant}
    return line


def index(*lines: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return an OCI index."""
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(lines), **changes}


def parse(document: object, media_type: str = "") -> Index | Manifest | Schema1Manifest:
    """Parse a document of JSON values."""
    return parse_manifest(json.dumps(document).encode(), media_type)


def choose_digests(platform: str, *lines: dict[str, Any]) -> list[str]:
    """Return the digests that an index offers a system, best first."""
    parsed_document = parse(index(*lines), OCI_INDEX)
    assert isinstance(parsed_document, Index)
    return [
        str(descriptor.digest) for descriptor in choose(parsed_document, Platform.parse(platform))
    ]


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
        for parse in (lambda c: parse_manifest(c, ""), parse_config):
            try:
                parsed_document: object = parse(content)
                if isinstance(parsed_document, Index):
                    choose(parsed_document, AMD64)
            except GatewayError as error:
                assert error.what.isprintable()  # noqa: PT017


# Platforms.


def test_exact_platform_is_chosen() -> None:
    """Of many platforms only the system's own is a candidate."""
    lines = [entry(p, p) for p in ("linux/arm64/v8", "linux/amd64", "linux/ppc64le", "linux/386")]
    assert choose_digests("amd64", *lines) == [digest("linux/amd64")]
    assert choose_digests("ppc64le", *lines) == [digest("linux/ppc64le")]


@pytest.mark.parametrize(
    ("system", "order"),
    [
        ("amd64", ["", "v1"]),
        ("amd64/v1", ["", "v1"]),
        ("amd64/v2", ["v2", "", "v1"]),
        ("amd64/v4", ["v4", "v3", "v2", "", "v1"]),
        ("arm64", ["", "v8"]),
        ("arm64/v8", ["", "v8"]),
        ("arm64/v9", ["v9", "v8.2", "", "v8"]),
        ("arm/v8", ["v8", "", "v7", "v6", "v5"]),
        ("arm/v7", ["", "v7", "v6", "v5"]),
        ("arm", ["", "v7", "v6", "v5"]),
        ("arm/v6", ["v6", "v5"]),
        ("riscv64", [""]),
        ("s390x/v3", ["v3", ""]),
    ],
)
def test_variants(system: str, order: list[str]) -> None:
    """A system runs its own variant and lower ones, highest first, but no higher one."""
    architecture = system.partition("/")[0]
    variants = ["", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v8.2", "v9", "v10", "odd"]
    if architecture == "arm64":
        variants = ["", "v8", "v8.2", "v9", "v10", "odd"]
    lines = [entry(f"{architecture}{v}", f"linux/{architecture}/{v}") for v in variants]
    assert choose_digests(system, *lines) == [digest(f"{architecture}{v}") for v in order]


@pytest.mark.parametrize(
    ("platform_text", "system"),
    [
        ("linux/x86_64", "amd64"),
        ("Linux/AMD64", "amd64"),
        ("linux/aarch64", "arm64"),
        ("linux/armhf", "arm/v7"),
        ("linux/armel", "arm/v6"),
        ("linux/i386", "386"),
        ("/amd64", "amd64"),
    ],
)
def test_other_names_of_platforms(platform_text: str, system: str) -> None:
    """Common other names are equivalent; a missing `os` means Linux."""
    assert choose_digests(system, entry("a", platform_text)) == [digest("a")]


def test_hard_float_is_not_for_lower_arm() -> None:
    """`armhf` means v7: a v6 system does not get it."""
    with pytest.raises(NoMatchingPlatform):
        choose_digests("arm/v6", entry("a", "linux/armhf"))


def test_nested_indexes_are_candidates() -> None:
    """An index in an index is a candidate; entries without a platform come last."""
    lines = [
        entry("unknown-platform"),
        entry("nested", "linux/amd64", mediaType=OCI_INDEX),
        entry("docker", "linux/amd64/v1", mediaType=DOCKER_LIST),
        entry("nested-anywhere", mediaType=OCI_INDEX),
        entry("other", "linux/arm64", mediaType=OCI_INDEX),
    ]
    expected = ["nested", "docker", "unknown-platform", "nested-anywhere"]
    assert choose_digests("amd64", *lines) == [digest(name) for name in expected]


NOT_IMAGES = [
    entry("attestation", "unknown/unknown"),
    entry("reference", "linux/amd64", annotations={"vnd.docker.reference.type": "attestation"}),
    entry("artifact", "linux/amd64", artifactType="application/vnd.example.sbom"),
    entry("blob", "linux/amd64", mediaType=f"{OCI_LAYER}+gzip"),
]


def test_attestations_and_artifacts_are_skipped() -> None:
    """An entry without a file system is never a candidate, whatever its platform."""
    image = entry("image", "linux/amd64", artifactType=OCI_CONFIG)
    assert choose_digests("amd64", *NOT_IMAGES, image) == [digest("image")]


@pytest.mark.parametrize("lines", [[], NOT_IMAGES])
def test_index_without_images(lines: list[dict[str, Any]]) -> None:
    """An index of attestations and artifacts only is not a container image."""
    with pytest.raises(ManifestInvalid, match="not a container image"):
        choose_digests("amd64", *lines)


def test_error_lists_the_platforms_of_the_image() -> None:
    """The error for a missing architecture names the existing ones, each once."""
    offered_platforms = [
        "linux/arm64/v8",
        "windows/amd64",
        "linux/s390x",
        "linux/s390x",
        "linux/amd64/v3",
    ]
    with pytest.raises(NoMatchingPlatform) as caught:
        choose_digests(
            "amd64/v2", *NOT_IMAGES, *(entry(str(i), p) for i, p in enumerate(offered_platforms))
        )
    assert caught.value.what == (
        "The image has no variant for linux/amd64/v2; it is made for"
        " linux/arm64/v8, windows/amd64, linux/s390x, linux/amd64/v3."
    )


def test_error_lists_at_most_a_line() -> None:
    """A hostile index cannot flood the log."""
    with pytest.raises(NoMatchingPlatform) as caught:
        choose_digests("amd64", *(entry(str(i), f"linux/odd\n{i}{'x' * 500}") for i in range(100)))
    assert caught.value.what.isprintable()
    assert caught.value.what.endswith("….")
    assert len(caught.value.what) < 1000


def test_same_manifest_twice_is_one_candidate() -> None:
    """A repeated entry causes no second request."""
    assert choose_digests("amd64", entry("a", "linux/amd64"), entry("a", "linux/amd64")) == [
        digest("a")
    ]


# Configurations.


def config(**changes: Any) -> bytes:
    """Return a configuration with changes."""
    return json.dumps({"architecture": "amd64", "os": "linux", **changes}).encode()


def test_configuration_is_read() -> None:
    """The settings for the runtime are returned unchanged."""
    parsed_document = parse_config(
        config(
            created="2024-02-29T12:00:00.123456789+01:00",
            config={
                "Env": ["PATH=/bin", "A=ü", "B=x\ny"],
                "Entrypoint": ["/bin/sh", "-c"],
                "Cmd": ["echo 'hi'"],
                "WorkingDir": "/srv",
                "Labels": {"a": "b", "n": None},
                "User": "nobody",
            },
            rootfs={"type": "layers", "diff_ids": [digest("a"), digest("b")]},
        )
    )
    assert parsed_document == ImageConfig(
        architecture="amd64",
        os="linux",
        created=1709204400,
        env=("PATH=/bin", "A=ü", "B=x\ny"),
        entrypoint=("/bin/sh", "-c"),
        cmd=("echo 'hi'",),
        workdir="/srv",
        labels={"a": "b", "n": ""},
        diff_ids=(Digest.parse(digest("a")), Digest.parse(digest("b"))),
    )


@pytest.mark.parametrize("empty", ["{}", '{"config": null, "rootfs": null}', '{"config": {}}'])
def test_empty_configuration(empty: str) -> None:
    """Every member may be missing or null."""
    assert parse_config(empty.encode()) == ImageConfig()


@pytest.mark.parametrize(
    ("platform_text", "read"),
    [(None, ()), ([], ()), ("", ()), ("/bin/sh", ("/bin/sh",)), (["a", ""], ("a", ""))],
)
def test_entrypoint_forms(platform_text: object, read: tuple[str, ...]) -> None:
    """`Entrypoint` and `Cmd` are a list, one string, or null."""
    parsed_document = parse_config(
        config(config={"Entrypoint": platform_text, "Cmd": platform_text})
    )
    assert (parsed_document.entrypoint, parsed_document.cmd) == (read, read)


@pytest.mark.parametrize(
    ("created", "seconds"),
    [
        ("1970-01-01T00:00:01Z", 1),
        ("1970-01-01t00:00:01z", 1),
        ("2024-01-01T00:00:00Z", 1704067200),
        ("0001-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00+14:00", 0),
        ("2024-01-01T00:00:00", 0),
        ("2024-01-01", 0),
        ("20240101T000000Z", 0),
        ("2024-13-01T00:00:00Z", 0),
        ("yesterday", 0),
        (1704067200, 0),
        (None, 0),
    ],
)
def test_dates(created: object, seconds: int) -> None:
    """An RFC 3339 date becomes seconds since 1970; any other date is 0, never an error."""
    assert parse_config(config(created=created)).created == seconds


def test_values_of_other_builders() -> None:
    """Labels may be numbers, and lists may hold null, which counts as an empty string."""
    runtime = {
        "Env": [None, "A=1", ""],
        "Cmd": ["a", None],
        "Labels": {"one": 1, "half": 0.5, "yes": True, "null": None},
    }
    config = parse_config(json.dumps({"config": runtime}).encode())
    assert config.env == ("A=1",)
    assert config.cmd == ("a", "")
    assert config.labels == {"one": "1", "half": "0.5", "yes": "true", "null": ""}


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": 1},
        {"os": []},
        {"config": []},
        {"config": {"Env": "A=1", "Cmd": 7}},
        {"config": {"Env": [1]}},
        {"config": {"Env": [None, True]}},
        {"config": {"Env": {"A": "1"}}},
        {"config": {"Entrypoint": {"a": 1}}},
        {"config": {"Cmd": [["a"]]}},
        {"config": {"WorkingDir": ["/"]}},
        {"config": {"Labels": ["a"]}},
        {"config": {"Labels": {"a": {}}}},
        {"rootfs": "layers"},
        {"rootfs": {"type": "tarball"}},
        {"rootfs": {"diff_ids": "sha256:" + 64 * "0"}},
        {"rootfs": {"diff_ids": ["sha256:0"]}},
        {"rootfs": {"diff_ids": [None]}},
    ],
)
def test_wrong_types_in_a_configuration(changes: dict[str, Any]) -> None:
    """The error names the member with the wrong type."""
    with pytest.raises(ManifestInvalid):
        parse_config(config(**changes))


def test_lone_surrogates_become_replacement_characters() -> None:
    """Text that UTF-8 cannot encode is replaced; a proper pair is one character."""
    parsed_document = parse_config(
        b'{"config": {"Env": ["A=\\ud800"], "WorkingDir": "/\\udfff", "Cmd": "\\ud83d\\ude00",'
        b' "Labels": {"\\ud800": "\\udc00"}}}'
    )
    assert parsed_document.env == ("A=\ufffd",)
    assert parsed_document.workdir == "/\ufffd"
    assert parsed_document.cmd == ("😀",)
    assert parsed_document.labels == {"\ufffd": "\ufffd"}


def test_layers_need_as_many_diff_ids() -> None:
    """Each layer needs a `diff_id`, and each `diff_id` a layer."""
    parsed_document = parse(manifest())
    assert isinstance(parsed_document, Manifest)
    check_layers(parsed_document, ImageConfig(diff_ids=(Digest.of(b"a"),)))
    for diff_ids in ((), (Digest.of(b"a"), Digest.of(b"b"))):
        with pytest.raises(ManifestInvalid, match="diff_ids"):
            check_layers(parsed_document, ImageConfig(diff_ids=diff_ids))


def test_configuration_for_another_platform() -> None:
    """An image without an index is an error if its configuration names another platform."""
    check_platform(ImageConfig(), AMD64)
    check_platform(parse_config(config(architecture="x86_64")), AMD64)
    with pytest.raises(NoMatchingPlatform, match="made for linux/arm64"):
        check_platform(parse_config(config(architecture="arm64")), AMD64)
    with pytest.raises(NoMatchingPlatform, match="made for windows/amd64"):
        check_platform(parse_config(config(os="Windows")), AMD64)
