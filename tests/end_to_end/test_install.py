"""The service is found by `twistd` and `twist`, from a wheel and from an editable install."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shiftergw.store.sqlite.database import open_database
from tests.patience import patient

CHECKOUT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a virtual environment with a wheel of this checkout.

    The libraries come from the environment of the tests; a `.pth` file in there is not followed,
    so its editable install of this checkout is out of sight.
    """
    root = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "--wheel-dir", root, CHECKOUT],
        check=True,
    )  # fmt: skip
    (wheel,) = root.glob("*.whl")
    venv.create(root / "venv", with_pip=False, symlinks=True)
    (site,) = (root / "venv").glob("lib/python3*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel],
        check=True,
    )
    return root / "venv" / "bin" / "python"


def plugins_of(python: Path, tmp_path: Path, program: str) -> tuple[str, str]:
    """Return the help text of `twist` or `twistd`, and where `shiftergw` was imported from."""
    run = (
        "import sys; from twisted.{0} import run; sys.argv = ['{1}', '--help']; run()"
        if program == "twistd"
        else "from twisted.application.twist._twist import Twist; Twist.main(['twist', '--help'])"
    ).format("scripts.twistd", program)
    text = subprocess.run(
        [python, "-c", run], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    where = subprocess.run(
        [python, "-c", "import shiftergw; print(shiftergw.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    return text.stdout + text.stderr, where.stdout


@pytest.mark.parametrize("program", ["twistd", "twist"])
def test_a_wheel_brings_the_plugin(wheel_environment: Path, tmp_path: Path, program: str) -> None:
    """Installed from a wheel, the service is listed, and comes from the wheel."""
    text, where = plugins_of(wheel_environment, tmp_path, program)
    assert "shiftergw" in text
    assert str(wheel_environment.parent.parent) in where


@pytest.mark.parametrize("program", ["twistd", "twist"])
def test_an_editable_install_brings_the_plugin(tmp_path: Path, program: str) -> None:
    """Installed editable, as the README's commands do, the service is listed."""
    text, _ = plugins_of(Path(sys.executable), tmp_path, program)
    assert "shiftergw" in text


def test_a_faulty_configuration_ends_the_start_with_a_text(tmp_path: Path) -> None:
    """`twistd shiftergw` with a fault in its configuration says which, and exits with an error."""
    config = tmp_path / "imagemanager.json"
    config.write_text('{"Platforms": 3}')
    twistd = Path(sys.executable).parent / "twistd"
    ended = subprocess.run(
        [twistd, "--nodaemon", "--pidfile=", "shiftergw", "--config", config],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(60),
    )
    assert ended.returncode != 0
    assert "Platforms" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "--help" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "program", [["twistd", "--nodaemon", "--pidfile="], ["twist", "--log-format", "text"]]
)
def test_the_log_level_counts(tmp_path: Path, program: list[str]) -> None:
    """Whichever starts the service: of the start, a request and the end only warnings are told."""
    place = tmp_path / "socket"
    changes = {"Listen": f"unix:{place}", "LogLevel": "warn", "Oddity": 1}
    name, *options = program
    running = subprocess.Popen(
        [Path(sys.executable).parent / name, *options, "shiftergw",
         "--config", configuration(tmp_path, **changes)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        for path in ("/livez", "/nowhere"):
            ask(place, path)
        running.terminate()
        said, _ = running.communicate(timeout=patient(60))
    finally:
        running.kill()
    ours = [line for line in said.splitlines() if "[shiftergw" in line]
    assert len(ours) == 1
    assert "#warn] configuration: Oddity: unknown key" in ours[0]
    assert "[-]" not in said


def ask(place: Path, path: str) -> None:
    """Ask a gateway, as soon as it listens."""
    deadline = time.monotonic() + patient(60)
    while True:
        with socket.socket(socket.AF_UNIX) as asking:
            with suppress(OSError):
                asking.connect(str(place))
                asking.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                if asking.recv(1):
                    return
            assert time.monotonic() < deadline
            time.sleep(0.05)


def configuration(root: Path, **changes: Any) -> Path:
    """Write a configuration with mock authentication, and return where."""
    (root / "images").mkdir()
    document = {
        "Authentication": "mock",
        "StateDirectory": str(root / "state"),
        "CacheDirectory": str(root / "cache"),
        "ExpandDirectory": str(root / "expand"),
        "DefaultImageLocation": "r",
        "Locations": {"r": {"remotetype": "dockerv2", "url": "http://127.0.0.1:9"}},
        "Platforms": {"s": {"accesstype": "local", "local": {"imageDir": str(root / "images")}}},
    }
    config = root / "imagemanager.json"
    config.write_text(json.dumps(document | changes))
    return config


def start(root: Path, listen: str, **changes: Any) -> str:
    """Start a gateway that cannot start; return what it says, once it has ended with code 1."""
    config = configuration(root, **{"Listen": listen, **changes})
    ended = subprocess.run(
        [Path(sys.executable).parent / "twistd", "--nodaemon", "--pidfile=", "shiftergw",
         "--config", config],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(60),
    )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1, said
    assert "shiftergw cannot start: " in said
    assert "Traceback" not in said
    return said


def test_a_port_in_use_ends_the_start_with_an_error(tmp_path: Path) -> None:
    """A gateway that cannot listen does not live on, deaf, and says what stands in its way."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = start(tmp_path, f"tcp:{port}:interface=127.0.0.1")
    assert "Address already in use" in said
    assert "change Listen" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Listen": "unix"}, ("Listen", "unix", "tcp:5000:interface=127.0.0.1")),
        ({"CacheDirectory": "/proc/version/cache"}, ("/proc/version/cache", "CacheDirectory")),
        (
            {"Locations": {"r": {"remotetype": "dockerv2", "sslcacert": "/nosuch.pem"}}},
            ("/nosuch.pem",),
        ),
    ],
)
def test_a_start_that_cannot_be_names_what_is_wrong(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    """What only the start finds wrong is told in words, once, and no worker dies of it."""
    said = start(tmp_path, **({"listen": "tcp:0:interface=127.0.0.1", **changes}))
    for word in words:
        assert word in said
    assert "worker" not in said


def test_a_damaged_database_ends_the_start_with_an_error(tmp_path: Path) -> None:
    """The start is refused before any request is answered, and `shiftergw check` says why."""
    database = tmp_path / "state" / "shiftergw.sqlite"
    database.parent.mkdir()
    open_database(database).close()
    content = database.read_bytes()
    database.write_bytes(content[:4096] + bytes(len(content) - 4096))
    said = start(tmp_path, "tcp:0:interface=127.0.0.1")
    assert f"The database {database} is damaged." in said
    assert "restore the backup" in said
    checked = subprocess.run(
        [
            Path(sys.executable).parent / "shiftergw",
            "check",
            "--config",
            tmp_path / "imagemanager.json",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert checked.returncode == 1
    assert "is damaged" in checked.stdout
