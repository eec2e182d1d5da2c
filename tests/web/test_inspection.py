"""What is known of an image, as JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shiftergw.model.records import Origin
from shiftergw.web import render
from shiftergw.web.inspection import inspected_image
from tests.web.fakes import READY, FakeGateway, Wire, site_of

DIGEST = "sha256:" + "12" * 32
REPORT: dict[str, Any] = {
    "entries": 7,
    "size": 5000,
    "devices": 1,
    "xattrs": 0,
    "layers": f"{DIGEST}=300",
    "layer_count": 1,
    "layer_bytes": 300,
    "metadata": ["CMD"],
    "seconds": {"PULLING": 1.5},
    "copied_bytes": 0,
    "sent_bytes": 4096,
    "verification": {"method": "sha256"},
}
IMAGE = replace(
    READY,
    cmd=("sh",),
    arch="amd64",
    os="linux",
    size=4096,
    sha256="34" * 32,
    origin=Origin("docker.io", "library/ubuntu", DIGEST),
    report=REPORT,
)


def test_all_that_is_known() -> None:
    """The answer is the row of a list with members for all that a record knows."""
    answer = inspected_image(IMAGE, ["mycluster"])
    row = render.image_row(IMAGE)
    assert {name: value for name, value in answer.items() if name not in row} == {
        "CMD": ("sh",),
        "architecture": "amd64",
        "os": "linux",
        "sha256": "34" * 32,
        "origin": {"location": "docker.io", "repository": "library/ubuntu", "digest": DIGEST},
        "layers": [{"digest": DIGEST, "size": 300}],
        "layer_count": 1,
        "layer_bytes": 300,
        "report": {"entries": 7, "size": 5000, "devices": 1, "xattrs": 0},
        "omitted_settings": ["CMD"],
        "seconds": {"PULLING": 1.5},
        "copied_bytes": 0,
        "sent_bytes": 4096,
        "systems": ["mycluster"],
    }


def test_records_that_know_less() -> None:
    """What a record does not say, or not in the right form, is left out."""
    odd_reports: list[dict[str, Any] | None] = [
        None,
        {"layers": "x", "entries": -1, "metadata": {}, "seconds": 5, "layer_count": True},
    ]
    for report in odd_reports:
        answer = inspected_image(replace(READY, report=report), ["a"])
        assert answer == {**render.image_row(READY), "systems": ["a"]}
    answer = inspected_image(replace(READY, report={"layers": 5, "seconds": {"a": "b"}}), ["a"])
    assert answer["seconds"] == {}
    assert "layers" not in answer


def test_the_route() -> None:
    """The route answers for the image of its path, and refuses a path without one."""
    wire = Wire(site_of(FakeGateway(images=[IMAGE])))
    reply = wire.ask("/api/inspect/mycluster/docker/ubuntu%3A24.04/")
    assert (reply.status, reply.json["systems"]) == (200, ["mycluster", "other"])
    assert wire.ask("/api/inspect/mycluster/docker/none:1").status == 404
    assert wire.ask("/api/inspect/mycluster/").status == 404
