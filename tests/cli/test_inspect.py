"""inspect: as a process against a gateway, and its lines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted

from shiftergw.cli.inspection_text import lines_of
from shiftergw.web.inspection import inspected_image
from tests.cli.command import ask
from tests.web.fakes import IMAGE_ID, FakeGateway
from tests.web.test_inspection import DIGEST, IMAGE

RECORD: dict[str, Any] = {
    "id": IMAGE_ID,
    "itype": "docker",
    "tag": ["ubuntu:24.04", "ubuntu:latest"],
    "systems": ["mycluster", "other"],
    "origin": {"location": "docker.io", "repository": "library/ubuntu", "digest": DIGEST},
    "os": "linux",
    "architecture": "amd64",
    "size": 4096,
    "sha256": "34" * 32,
    "layers": [{"digest": DIGEST, "size": 300}],
    "layer_count": 3,
    "layer_bytes": 5300,
    "report": {"entries": 7123, "size": 5000, "devices": 1, "setuid": 2, "modes": 9},
    "omitted_settings": ["CMD", "ENV NL"],
    "ENTRY": ["/bin/sh", "-c"],
    "CMD": ["ls"],
    "WORKDIR": "/app",
    "ENV": ["PATH=/bin", "A=\x1b[2J"],
    "LABELS": {"vendor": "x"},
    "private": True,
    "userACL": [0, 4294967290],
    "groupACL": [0, 4294967290],
    "owner": 0,
    "last_pull": 86400.0,
    "expiration": 300000.0,
    "policy": {"requirement": "signedBy", "reason": "A key fits.", "identity": "ann"},
    "seconds": {"PULLING": 1.5, "TRANSFER": 2.0},
    "copied_bytes": 1000,
    "sent_bytes": 3096,
}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Show times in UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_all_that_a_gateway_says() -> None:
    """Each fact has a line in the words of users; foreign text cannot steer the terminal."""
    assert list(lines_of(RECORD, 90000.0)) == [
        "image      docker:ubuntu:24.04",
        "           docker:ubuntu:latest",
        f"id         {IMAGE_ID}",
        "systems    mycluster",
        "           other",
        "origin     library/ubuntu at docker.io",
        f"           {DIGEST} is what the name meant: an index",
        "platform   linux/amd64",
        f"file       4.1 kB, sha256:{'34' * 32}",
        "layers     3, 5.3 kB",
        f"           {DIGEST} 300 bytes",
        "           and 2 more",
        "content    7,123 files and directories, 5 kB",
        "dropped    1 devices, pipes and sockets, 2 setuid and setgid bits",
        "           9 entries were made readable for all users",
        "not stored CMD, ENV NL: jobs do without these settings",
        'entrypoint ["/bin/sh", "-c"]',
        'command    ["ls"]',
        "workdir    /app",
        "env        PATH=/bin",
        "           A=\\x1b[2J",
        "labels     vendor=x",
        "readers    users root, 4294967290; groups root, 4294967290",
        "owner      root",
        "pulled     1 hour ago, 1970-01-02 00:00",
        "expires    in 2.4 days, 1970-01-04 11:20",
        "policy     accepted by signedBy: A key fits.",
        "           signed by ann",
        "delivery   took 3.5 s (PULLING 1.5 s, TRANSFER 2 s)",
        "           the system copied 1 kB of the file, 3.1 kB were sent",
    ]


def test_a_gateway_that_says_little() -> None:
    """What is not known, or has another form, is left out; an image without readers is public."""
    lines = ["image      custom:app:1", f"id         {IMAGE_ID}", "readers    everybody"]
    record: dict[str, Any] = {"id": IMAGE_ID, "itype": "custom", "tag": ["app:1"]}
    assert list(lines_of(record, 0)) == lines
    odd = dict.fromkeys(RECORD.keys() - record.keys() - {"private", "sha256", "os"}, "MISSING")
    odd.pop("architecture")
    assert list(lines_of(record | odd, 0)) == lines
    policy = {"requirement": "reject", "reason": "None."}
    members = {"expiration": 5.0, "report": {"entries": 1}, "policy": policy}
    expired_lines = lines_of({**record, **members}, 10.0)
    assert list(expired_lines)[2:] == [
        "content    1 files and directories, 0 bytes",
        "dropped    nothing",
        "readers    everybody",
        "expires    now, 1970-01-01 00:00",
        "policy     accepted by reject: None.",
    ]


@pytest_twisted.ensureDeferred
async def test_inspect() -> None:
    """There are lines, or the answer of the gateway; an unknown image is exit code 4."""
    fake = FakeGateway(images=[IMAGE])
    result = await ask(fake, "inspect", "ubuntu:24.04")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[:2] == [
        "image      docker:ubuntu:24.04",
        f"id         {IMAGE_ID}",
    ]
    answer = json.loads((await ask(fake, "inspect", "--json", "ubuntu:24.04")).stdout)
    assert answer == json.loads(json.dumps(inspected_image(IMAGE, ["mycluster", "other"])))
    result = await ask(fake, "inspect", "custom:none:1")
    assert (result.returncode, result.stdout) == (4, "")
    assert "There is no image none:1." in result.stderr
