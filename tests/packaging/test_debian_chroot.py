"""The Debian package in a Debian system of its own: install, pull, upgrade, remove and purge.

Only with `SHIFTERGW_LONG=1`: the test builds the package with all libraries, and installs a system
below a directory, from the package archives of this machine. There is no systemd in it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import children
from tests.images import entry, oci_layout, tar_of
from tests.packaging.thin_package import SCRIPTS, build
from tests.parts import free_port, need, need_root, wait_for_port
from tests.patience import patient
from tests.registries import DockerRegistry

PROGRAMS = "python3,munge,squashfs-tools,ca-certificates"
CONFIGURATION = "etc/shiftergw/imagemanager.json"
_ENTER = (
    'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount -t tmpfs tmpfs "$0/run"'
    ' && install -d -m 0755 -o munge "$0/run/munge" 2>/dev/null; exec chroot "$0" "$@"'
)


def archive_lists() -> list[Path]:
    """Return the files that name the package archives of this machine's distribution."""
    directory = Path("/etc/apt")
    files = [directory / "sources.list", *sorted((directory / "sources.list.d").iterdir())]
    return [
        file
        for file in files
        if file.exists() and re.search("-archive-keyring|^deb http", file.read_text(), re.MULTILINE)
    ]


class System:
    """A Debian system below a directory."""

    def __init__(self, root: Path) -> None:
        """Install it."""
        self.root = root
        need_root()
        (release,) = re.findall(
            r"^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text(), re.MULTILINE
        )
        subprocess.run(
            [need("mmdebstrap"), "--quiet", "--variant=apt", "--skip=cleanup/apt",
             f"--include={PROGRAMS}", release, root, *archive_lists()[:1]],
            check=True,
            timeout=patient(600),
        )  # fmt: skip
        (root / "etc/resolv.conf").write_bytes(Path("/etc/resolv.conf").read_bytes())
        self.run("useradd", "alice")

    def argv(self, *command: str, user: str = "root") -> list[str]:
        """Return a command line that enters the system, with mounts that end with it."""
        change = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}",
                                            "--clear-groups", "--"]  # fmt: skip
        return ["unshare", "--mount", "sh", "-c", _ENTER, str(self.root), *change, *command]

    def run(self, *command: str, user: str = "root", code: int = 0) -> str:
        """Run a command in the system; return what it prints, errors as well."""
        result = subprocess.run(
            self.argv(*command, user=user),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive",
                 "PYTHONPATH": "/nonexistent"}
            | {name: value for name, value in os.environ.items() if name.endswith("_proxy")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=patient(300),
        )  # fmt: skip
        assert result.returncode == code, result.stdout
        return result.stdout

    def owner_and_mode(self, path: str) -> str:
        """Return the owner, group and mode of a file."""
        return self.run("stat", "-c", "%U:%G %a", path).strip()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> System:
    """Return a Debian system without the package."""
    return System(tmp_path_factory.mktemp("system") / "root")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a package of this checkout, and the same as a later version."""
    directory = tmp_path_factory.mktemp("packages")
    result = subprocess.run(
        [SCRIPTS / "build", directory],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"DPKG_DEB_COMPRESSOR_TYPE": "none"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=patient(900),
    )
    package = Path(result.stdout.strip())
    tree, later_package = directory / "later", directory / "later.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^(Version: .*)", r"\1+later", control.read_text()))
    subprocess.run(
        ["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, later_package],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return package, later_package


@contextmanager
def daemon(argv: list[str], log: Path) -> Iterator[None]:
    """Run a program until the end of the context, and stop it by SIGTERM."""
    with log.open("ab") as output:
        process = children.start(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(patient(60))


@contextmanager
def running_site(system: System, port: int, log: Path) -> Iterator[None]:
    """Run a munge daemon and the gateway, by the command of the unit, as the unit's user."""
    (command,) = re.findall(
        r"^ExecStart=(.*)$",
        (system.root / "usr/lib/systemd/system/shiftergw.service").read_text(),
        re.MULTILINE,
    )
    # Both in one command: they share the mounts of /run.
    script = f"""
        setpriv --reuid=munge --regid=munge --clear-groups munged --socket=/srv/munge/socket \
            --pid-file=/srv/munge/pid
        cd /var/lib/shiftergw && umask 077
        exec setpriv --reuid=shiftergw --regid=shiftergw --clear-groups env \
            STATE_DIRECTORY=/var/lib/shiftergw {command}"""
    try:
        with daemon(system.argv("sh", "-ec", script), log):
            wait_for_port(port, 60)
            yield
    finally:
        pid = system.root / "srv/munge/pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)


def configure(system: System, registry: str) -> int:
    """Change the package's configuration as the manual says; return the port of the gateway."""
    system.run("install", "-d", "-o", "shiftergw", "-g", "shiftergw", "-m", "0755", "/images")
    system.run("install", "-d", "-o", "munge", "-g", "munge", "-m", "0755", "/srv/munge")
    port = free_port()
    path = system.root / CONFIGURATION
    document = json.loads(path.read_text())
    document["Listen"] = f"tcp:{port}:interface=127.0.0.1"
    document["Locations"][registry] = {"remotetype": "dockerv2", "url": f"http://{registry}"}
    document["Platforms"]["mycluster"]["mungeSocketPath"] = "/srv/munge/socket"
    document["Platforms"]["mycluster"]["architecture"] = {"aarch64": "arm64"}.get(
        platform.machine(), "amd64"
    )
    path.write_text(json.dumps(document))
    return port


def install(system: System, package: Path) -> str:
    """Install a package and what it depends on; return what apt and the package print."""
    target = system.root / "var" / "tmp" / package.name
    target.write_bytes(package.read_bytes())
    return system.run(
        *("apt-get", "install", "-q", "-y", "--no-install-recommends", "--allow-downgrades"),
        f"/var/tmp/{package.name}",
    )


def test_a_site_from_installation_to_purge(
    system: System, packages: tuple[Path, Path], tmp_path: Path
) -> None:
    """The package serves a pull; upgrade and downgrade keep all, and a purge keeps users' data."""
    package, later_package = packages
    assert "edit /etc/shiftergw/imagemanager.json" in install(system, package)
    assert system.owner_and_mode(f"/{CONFIGURATION}") == "root:shiftergw 640"
    assert system.owner_and_mode("/var/lib/shiftergw") == "shiftergw:shiftergw 700"
    assert system.owner_and_mode("/etc/shiftergw") == "root:root 755"
    system.run("cat", f"/{CONFIGURATION}", user="alice", code=1)
    assert "pull" in system.run("shiftergw", "--help", user="alice")
    assert "--config=" in system.run("/usr/lib/shiftergw/bin/twistd", "shiftergw", "--help")
    assert "celery" in system.run("/usr/lib/shiftergw/bin/celery", "--help")

    with DockerRegistry(tmp_path / "registry") as registry:
        oci_layout(tmp_path / "layout", [tar_of([entry("bin/tool", b"tool\n")])])
        registry.push(tmp_path / "layout", "demo/image:1")
        port = configure(system, registry.host)
        client = ("shiftergw", "--gateway", f"http://127.0.0.1:{port}", "--system", "mycluster",
                  "--munge-socket", "/srv/munge/socket")  # fmt: skip
        with running_site(system, port, tmp_path / "log"):
            image_id = system.run(
                *client, "pull", "-q", f"{registry.host}/demo/image:1", user="alice"
            ).split()[-1]
            listing = system.run("unsquashfs", "-ll", f"/images/{image_id}.squashfs")
            assert "bin/tool" in listing
            assert "demo/image:1" in system.run(*client, "images", user="alice")
    assert "Unable to write" not in (tmp_path / "log").read_text()
    configuration = (system.root / CONFIGURATION).read_bytes()
    database = "/var/lib/shiftergw/shiftergw.sqlite"
    assert system.owner_and_mode(database) == "shiftergw:shiftergw 600"

    install(system, later_package)
    with running_site(system, port, tmp_path / "log"):
        assert "demo/image:1" in system.run(*client, "images", user="alice")
    assert "going back from" in install(system, package)
    assert (system.root / CONFIGURATION).read_bytes() == configuration

    system.run("dpkg", "--remove", "shiftergw")
    assert not (system.root / "usr/lib/shiftergw").exists()
    assert (system.root / CONFIGURATION).read_bytes() == configuration
    key = system.root / "etc/shiftergw/site.key"
    key.touch()
    assert "these stay" in system.run("dpkg", "--purge", "shiftergw")
    assert not (system.root / CONFIGURATION).exists()
    assert key.exists()
    system.run("test", "-e", database)
    assert (system.root / f"images/{image_id}.squashfs").exists()
    assert "shiftergw" not in system.run("dpkg", "--list").replace("libshiftergw", "")


def test_every_library_of_the_package_can_be_imported(
    system: System, packages: tuple[Path, Path]
) -> None:
    """The dependencies of the package suffice for all of its compiled modules."""
    install(system, packages[0])
    program = """
import importlib, importlib.machinery, pathlib, sys
site = pathlib.Path(next(path for path in sys.path if path.endswith("site-packages")))
for file in site.rglob("*.so"):
    name = ".".join([*file.relative_to(site).parts[:-1], file.name.split(".")[0]])
    importlib.import_module(name)
    print(name)
"""
    output = system.run("/usr/lib/shiftergw/bin/python", "-I", "-c", program)
    assert "pydantic_core._pydantic_core" in output
    assert len(output.splitlines()) > 10, shlex.quote(output)


def test_the_same_sources_make_the_same_package(thin_wheel: Path, tmp_path: Path) -> None:
    """With `SOURCE_DATE_EPOCH` two builds are equal, byte for byte."""
    first_package = build(tmp_path / "first", thin_wheel)
    time.sleep(1.1)
    assert build(tmp_path / "second", thin_wheel).read_bytes() == first_package.read_bytes()
