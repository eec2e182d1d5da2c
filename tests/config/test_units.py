"""Tests that the units and the samples of conf/ agree with each other and with the manual."""

from __future__ import annotations

import configparser
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftergw.config import Config
from tests.parts import need
from tests.patience import patient

CONF = Path(__file__).parent.parent.parent / "conf"
DOCS = CONF.parent / "docs"
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
"""The directories that `ProtectHome=true` hides (systemd.exec(5))."""
PRIVATE = (Path("/tmp"), Path("/var/tmp"))
"""The directories that `PrivateTmp=true` replaces."""

PAIRS = [
    ("shiftergw", "local"),
    ("shiftergw", "local-mongodb"),
    ("shiftergw", "remote"),
    ("shiftergw", "workers"),
    ("shiftergw-worker", "workers"),
]
PAGES = {
    "shiftergw": ("running",),
    "shiftergw-worker": ("workers",),
    "local": ("running",),
    "local-mongodb": ("takeover",),
    "remote": ("remote",),
    "workers": ("workers", "remote"),
}
"""The pages of the manual that describe a unit, or a sample."""
COMMANDS = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""The blocks of commands on a page."""

pairs = pytest.mark.parametrize(("unit", "sample"), PAIRS)


def read(unit: str) -> configparser.ConfigParser:
    """Return the sections of a unit file."""
    # systemd adds up the lines of one name; the tests read names that occur once.
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(CONF / f"{unit}.service")
    return parser


def text_of(name: str) -> str:
    """Return what the manual says about a unit, or a sample."""
    return "\n".join((DOCS / f"{page}.md").read_text() for page in PAGES[name])


def state_of(unit: str) -> Path:
    """Return the state directory that systemd makes for a unit."""
    return Path("/var/lib") / read(unit)["Service"]["StateDirectory"]


def config_of(unit: str, sample: str) -> Config:
    """Return a sample as the service of a unit loads it."""
    environ = {"STATE_DIRECTORY": str(state_of(unit))}
    return Config.load(CONF / f"{sample}.json", environ).config


def written_directories(config: Config) -> Iterator[Path]:
    """Yield the directories in which the program writes."""
    yield from (config.state_directory, config.cache_directory, config.expand_directory)
    for system in config.systems.values():
        if system.delivery.is_mounted:
            yield system.image_dir


def secret_files(config: Config) -> Iterator[Path]:
    """Yield the files that the gateway's user must be able to read."""
    yield config.secret_key_file
    for system in config.systems.values():
        if (ssh := system.ssh_delivery) is not None:
            files = (ssh.key, ssh.known_hosts, ssh.passphrase_file)
            yield from (path for path in files if path is not None)


def is_within(path: Path, directories: tuple[Path, ...]) -> bool:
    """Return whether a path is one of the directories, or below one."""
    return any(path.is_relative_to(directory) for directory in directories)


@pairs
def test_the_service_may_write(unit: str, sample: str) -> None:
    """The unit lets the service write into every directory of its sample."""
    service = read(unit)["Service"]
    writable = [Path(text.removeprefix("-")) for text in service["ReadWritePaths"].split()]
    mounts = [Path(text) for text in read(unit)["Unit"]["RequiresMountsFor"].split()]
    assert service["ProtectSystem"] == "strict"
    assert set(writable) == set(mounts), "every writable directory is mounted before the start"
    for path in written_directories(config_of(unit, sample)):
        assert is_within(path, (state_of(unit), *writable)), path


@pairs
def test_the_service_sees_its_files(unit: str, sample: str) -> None:
    """The unit hides no file of its sample."""
    service, config = read(unit)["Service"], config_of(unit, sample)
    assert (service["ProtectHome"], service["PrivateTmp"]) == ("true", "true")
    sockets = [system.munge_socket_path for system in config.systems.values()]
    paths = [*written_directories(config), *secret_files(config), *filter(None, sockets)]
    assert [path for path in paths if is_within(path, (*HOMES, *PRIVATE))] == []


@pairs
def test_secret_files_are_made(unit: str, sample: str) -> None:
    """The pages of a sample have a command for each secret that the gateway cannot make itself."""
    user = read(unit)["Service"]["User"]
    commands = [line for block in COMMANDS.findall(text_of(sample)) for line in block.splitlines()]
    for path in secret_files(config_of(unit, sample)):
        if is_within(path, (state_of(unit),)):
            continue
        name = str(path).replace("/far.", "/mycluster.")  # remote.md makes a key with this name
        assert any(name in line and user in line for line in commands), path


@pairs
def test_they_name_one_user(unit: str, sample: str) -> None:
    """A unit, its sample and the manual name the same user."""
    service = read(unit)["Service"]
    user = service["User"]
    assert service["Group"] == user
    for system in config_of(unit, sample).systems.values():
        assert system.ssh is None or system.ssh.username == user
    names = re.compile(
        r"(?:sudo (?:-H )?-u|install -d -o|0600 -o|chown(?: root:)?|useradd [^\n]*nologin) ?(\w+)"
    )
    text = text_of(unit) + text_of(sample) + text_of("remote")
    users = {name for name in names.findall(text) if name != "root"}
    assert users == {user}


def test_directories_of_the_samples_are_made() -> None:
    """The manual makes every directory that systemd does not make, for the user of the unit."""
    text = "".join(page.read_text() for page in DOCS.glob("*.md"))
    for unit in {name for name, _ in PAIRS}:
        for path in read(unit)["Service"]["ReadWritePaths"].split():
            command = rf"install -d -o shiftergw -g shiftergw -m 07[05]{{2}} {path.strip('-')}\n"
            assert re.search(command, text), path


@pytest.mark.parametrize("unit", ["shiftergw", "shiftergw-worker"])
def test_systemd_accepts_the_unit(unit: str, tmp_path: Path) -> None:
    """Systemd reports no unknown line of a unit."""
    text = (CONF / f"{unit}.service").read_text()
    copy = tmp_path / f"{unit}.service"
    # The program is not installed where the tests run.
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    argv = [need("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", str(copy)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=patient(60))
    complaints = [line for line in done.stderr.splitlines() if f"{unit}.service" in line]
    assert complaints == []


@pytest.mark.parametrize("unit", ["shiftergw", "shiftergw-worker"])
def test_systemd_rates_the_unit_as_safe(unit: str) -> None:
    """The exposure of a unit is at most 2.0 of 10, as `systemd-analyze security` measures it."""
    file = str(CONF / f"{unit}.service")
    argv = [need("systemd-analyze"), "security", "--no-pager", "--offline=true", "--threshold=20"]
    done = subprocess.run(
        [*argv, file], capture_output=True, text=True, check=False, timeout=patient(60)
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", ["shiftergw", "shiftergw-worker"])
def test_a_start_may_take_long(unit: str) -> None:
    """A service that reports when it is ready may wait for a database, or a broker, before."""
    service = read(unit)["Service"]
    assert (service["Type"], service["TimeoutStartSec"]) == ("notify", "infinity")
    assert int(service["WatchdogSec"]) >= 60
