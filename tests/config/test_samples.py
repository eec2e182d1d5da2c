"""Tests of the samples in conf/, and of those in the original gateway's documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from celery.bin.base import CLIContext
from celery.bin.worker import worker as celery_worker
from twisted.scripts._twistd_unix import ServerOptions

from shiftergw.config import Config
from shiftergw.config.document import Section
from shiftergw.work.celery.app import make_app
from tests.config.test_units import read as read_unit

CONF = Path(__file__).parent.parent.parent / "conf"
DOCS = CONF.parent / "docs"
SAMPLES = sorted(CONF.glob("*.json"))
PAGE_OF_SAMPLE = {
    "local": "running.md",
    "local-mongodb": "takeover.md",
    "remote": "remote.md",
    "workers": "workers.md",
}
"""The page of docs/ that describes each sample."""

# The two samples of the original gateway's documentation, byte for byte.
COMMON = """{
    "DefaultImageLocation": "registry-1.docker.io",
    "DefaultImageFormat": "squashfs",
    "PullUpdateTimeout": 300,
    "ImageExpirationTimeout": "90:00:00:00",
    "MongoDBURI":"mongodb://localhost/",
    "MongoDB":"Shifter",
    "CacheDirectory": "/images/cache/",
    "ExpandDirectory": "/images/expand/",
    "Locations": {
        "registry-1.docker.io": {
            "remotetype": "dockerv2",
            "authentication": "http"
        }
    },
    "Platforms": {
        "mycluster": {
            "mungeSocketPath": "/var/run/munge/munge.socket.2",
"""
LOCAL = (
    COMMON
    + """            "accesstype": "local",
            "admins": ["root"],
            "local": {
                "imageDir": "/images"
            }
        }
    }
}
"""
)
REMOTE = (
    COMMON
    + """            "accesstype": "remote",
            "admins": ["root"],
            "host": [
                "mycluster01"
            ],
            "ssh": {
                "username": "shifter",
                "key": "/home/shifter/.ssh/ssh.key",
                "imageDir": "/images"
            }
        }
    }
}
"""
)


@pytest.mark.parametrize(("name", "text"), [("local-mongodb", LOCAL), ("remote", REMOTE)])
def test_samples_of_the_original(tmp_path: Path, name: str, text: str) -> None:
    """The original's two samples load unchanged and without a warning; conf/ has the same samples.

    Only the user and the key of the remote sample differ: those of our unit, which hides /home.
    """
    (tmp_path / "imagemanager.json").write_text(text)
    result = Config.load(tmp_path / "imagemanager.json", {})
    system = result.config.systems["mycluster"]
    assert result.warnings == ()
    assert (system.name, system.image_dir, system.admins) == (
        "mycluster",
        Path("/images"),
        ("root",),
    )
    assert result.config.image_expiration_timeout == 90 * 86400
    assert result.config.locations["registry-1.docker.io"].url == "https://registry-1.docker.io"
    sample = text.replace('"shifter"', '"shiftergw"')
    sample = sample.replace("/home/shifter/.ssh/ssh.key", "/etc/shiftergw/mycluster.key")
    assert (CONF / f"{name}.json").read_text() == sample
    assert (result.config.mongodb_uri, result.config.mongodb) == ("mongodb://localhost/", "Shifter")
    result.config.check_supported()


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_every_sample_loads(path: Path) -> None:
    """Every sample of conf/ loads without a warning, and loading it creates no file there."""
    files = sorted(CONF.iterdir())
    assert Config.load(path, {}).warnings == ()
    assert sorted(CONF.iterdir()) == files


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_every_sample_is_explained(path: Path) -> None:
    """A page of the manual links to each sample; it and the list of keys explain all its keys."""
    page = (DOCS / PAGE_OF_SAMPLE[path.stem]).read_text()
    assert f"(../conf/{path.name})" in page
    words = set(re.findall(r"\w+", page + (DOCS / "configuration.md").read_text()))

    def keys(value: Any) -> set[str]:
        if not isinstance(value, dict):
            return set()
        return set(value).union(*(keys(inner) for inner in value.values()))

    names = {"registry-1.docker.io", "mycluster"}
    assert keys(json.loads(path.read_text())) - names <= words


def _keys(section: type[Section]) -> Iterator[str]:
    """Yield the keys of a section of the configuration and of its subsections."""
    for field in section.model_fields.values():
        if field.alias is not None:  # fields without an alias are not keys
            yield field.alias
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from _keys(inner)


def test_every_key_is_explained() -> None:
    """The manual names every key of the configuration."""
    text = "".join((DOCS / name).read_text() for name in ("configuration.md", "remote.md"))
    words = set(re.findall(r"\w+", text))
    assert {"sslcacert", "keepSetuid"} <= {*_keys(Config)}
    assert [key for key in _keys(Config) if key not in words] == []


def test_local_sample_starts() -> None:
    """This version runs the sample for one machine."""
    Config.load(CONF / "local.json", {}).config.check_supported()


def test_workers_sample_starts() -> None:
    """This version runs the sample for worker machines."""
    Config.load(CONF / "workers.json", {}).config.check_supported()


def test_celery_understands_the_worker_unit() -> None:
    """Celery accepts the command of the unit, which names the systems of the sample."""
    service = read_unit("shiftergw-worker")["Service"]
    assert (service["User"], service["KillMode"]) == ("shiftergw", "mixed")
    assert service["Environment"] == "GWCONFIG=/etc/shiftergw/imagemanager.json"
    program, *arguments = service["ExecStart"].split()
    assert Path(program).name == "celery"
    assert arguments[:3] == ["-A", "shiftergw.work.celery", "worker"]
    context = CLIContext(make_app("amqp://"), no_color=False, workdir="", quiet=True)
    parameters = celery_worker.make_context("worker", arguments[3:], obj=context).params
    systems = Config.load(CONF / "workers.json", {}).config.systems
    assert set(parameters["queues"]) == set(systems)
    assert 0 < parameters["soft_time_limit"] < parameters["time_limit"]


def test_twistd_understands_the_unit() -> None:
    """Twistd accepts the command of the unit, which runs as its own user with a private state."""
    service = read_unit("shiftergw")["Service"]
    assert service["User"] == "shiftergw"
    assert (service["StateDirectory"], service["StateDirectoryMode"]) == ("shiftergw", "0700")
    program, *arguments = service["ExecStart"].split()
    assert Path(program).name == "twistd"
    arguments[-1] = str(CONF / "local.json")
    options = ServerOptions()
    options.parseOptions(arguments)
    assert (options["nodaemon"], options["pidfile"]) == (1, "")
    assert options.subCommand == "shiftergw"
    assert options.subOptions["config"] == str(CONF / "local.json")
