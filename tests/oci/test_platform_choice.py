"""The manifests that an index offers a system: by platform, best first."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.errors import ManifestInvalid, NoMatchingPlatform
from shiftergw.model.images import Platform
from shiftergw.oci.manifest import (
    Index,
    choose,
)
from tests.oci.documents import (
    DOCKER_LIST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    digest,
    entry,
    index,
    parse,
)


def choose_digests(platform: str, *lines: dict[str, Any]) -> list[str]:
    """Return the digests that an index offers a system, best first."""
    parsed_document = parse(index(*lines), OCI_INDEX)
    assert isinstance(parsed_document, Index)
    return [
        str(descriptor.digest) for descriptor in choose(parsed_document, Platform.parse(platform))
    ]


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
