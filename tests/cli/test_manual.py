"""Every command of the manual does at a site what the manual says, or cannot run in a test."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import command, manual
from tests.cli.homes import Home
from tests.cli.manual import block_lines
from tests.cli.terminals import Terminal
from tests.images import entry, oci_layout, tar_of
from tests.matrices import LONG
from tests.munged import MungeDaemon
from tests.parts import need
from tests.patience import patient
from tests.running_service import SYSTEM, Service
from tests.sources.saved_images import config_bytes, docker_25, sif, sif_object, sif_partition

REASONS = {
    "conf/quickstart": "installs packages, and is tried by conf/quickstart itself",
    "tests/run": "runs all tests",
    "python3 -m venv /opt/shiftergw": "tests/packaging installs the program",
    "useradd --system --home-dir /var/lib/shiftergw --shell /usr/sbin/nologin shiftergw":
        "would change the users of the machine",
    "systemctl daemon-reload": "needs systemd as the machine's first process",
    "systemctl disable --now shiftergw": "needs systemd as the machine's first process",
    "sudo -H -u shiftergw shiftergw check --database --config /etc/shiftergw/imagemanager.json":
        "needs a database of the original: tests/end_to_end/test_takeover_manual.py",
    "systemctl enable --now shiftergw": "needs systemd as the machine's first process",
    "systemctl enable --now shiftergw-worker": "needs systemd as the machine's first process",
    "twistd --nodaemon --pidfile= shiftergw --config /etc/shiftergw/imagemanager.json":
        "tests/running_service.py starts the gateway so",
    "sudo -H -u shiftergw shiftergw ssh-trust mycluster --config /etc/shiftergw/imagemanager.json":
        "needs a remote system: tests/cli/test_ssh_trust.py",
    "ssh -t -L 5000:127.0.0.1:5000 gateway 'shiftergw --gateway http://127.0.0.1:5000 page; exec"
    " sleep 4h'": "needs another machine",
    "ssh -N -L 127.0.0.1:9190:/run/shiftergw/admin.sock monitoring@gateway":
        "needs another machine",
    "curl http://127.0.0.1:9190/readyz": "needs the line before it",
    "munged --key-file=/etc/munge/mycluster.key --socket=/run/munge/mycluster.socket"
    " --pid-file=/run/munge/mycluster.pid --log-file=/var/log/munge/mycluster.log"
    " --seed-file=/var/lib/munge/mycluster.seed": "tests/munged.py starts the daemon so",
    "rabbitmqctl add_vhost shiftergw": "needs the broker of a site",
    "rabbitmqctl add_user shiftergw": "needs the broker of a site, and asks for a password",
    "rabbitmqctl set_permissions -p shiftergw shiftergw '.*' '.*' '.*'":
        "needs the broker of a site",
    "GWCONFIG=/etc/shiftergw/imagemanager.json celery -A shiftergw.work.celery worker -Q near,far":
        "needs a broker: tests/end_to_end/test_celery.py",
    "srun --container-image=ghcr.io#org/app:1 hostname": "needs Slurm with pyxis",
}  # fmt: skip
"""The lines that run in no test, and why."""

PACKAGES = re.compile(r"conf/packaging/|apt install|rpmbuild|buildah|\S*/pip install|\S* -m build")
"""The beginning of lines that build and install packages, which is what `tests/packaging` does."""

CODES = {
    "shiftergw pull -q ubuntu:24.04 alpine:none": 1,
    # Of curl, after a second of events.
    'curl -N -H "authentication: $(munge -n)"'
    " http://127.0.0.1:5000/api/events/mycluster/docker/ubuntu%3A24.04/": 28,
}
"""Exit codes that are not 0."""

LONG_LINES = {
    "shiftergw pull --user bob,2005 --group lab ghcr.io/us/private:1",
    "shiftergw pull --user bob --group lab ./app.sif app:1",
    "shiftergw login --from-docker",
}
"""Lines for the long form: with other users they need processes of their own, not forks."""

USER_CHANGES = ("login", "--user")
"""Words in lines that need the users `bob` and `lab`, or a home directory."""

LINES = [line for page in manual.PAGES for line in block_lines(page)]


class ManualSite:
    """A site with the names of the manual: its systems, registries, files and users."""

    def __init__(self, root: Path, munged: MungeDaemon) -> None:
        """Write the images and files; the gateway starts when the context is entered."""
        self.root = root
        self.munged = munged
        self.work = root / "work"
        for name in ("etc/shiftergw", "units", "scratch", "bin", "images-of-test"):
            (root / name).mkdir(parents=True)
        layers = [tar_of([entry("etc"), entry("etc/name", b"app")])]
        locations = {"*": {"remotetype": "dockerv2"}}
        for host, names in (
            ("docker.io", ("ubuntu:24.04", "alpine:3")),
            ("ghcr.io", ("us/app:1", "us/private:1", "team/app:1")),
        ):
            place = root / "registries" / host
            locations[host] = {"remotetype": "oci-layout", "url": place.as_uri()}
            for number, name in enumerate(names):
                repository, _, tag = name.partition(":")
                files = [entry("etc"), entry("etc/name", f"{host}{number}".encode())]
                oci_layout(place / repository, [tar_of(files)], tag=tag)
        platforms = {
            name: {
                "accesstype": "local",
                "mungeSocketPath": str(munged.socket),
                "admins": [os.getuid()],
                "squashfs": {"compressor": "gzip", "level": 1},
                "local": {"imageDir": str(root / "service" / "images" / name)},
            }
            for name in (SYSTEM, "one", "two")
        }
        changes = {
            "Authentication": "munge",
            "DefaultImageLocation": "docker.io",
            "Platforms": platforms,
            "UploadDirectory": str(root / "uploads"),
        }
        for name in platforms:
            (root / "service" / "images" / name).mkdir(parents=True)
        self.service = Service(root / "service", locations, changes)
        self._write_files(layers)
        self.env = {
            "SHIFTERGW_GATEWAY": self.service.url,
            "SHIFTERGW_SYSTEM": SYSTEM,
            "SHIFTERGW_MUNGE_SOCKET": str(munged.socket),
        }
        self.home = Home(root, munged, self.env)
        self._write_users()

    def _write_files(self, layers: list[bytes]) -> None:
        self.work.mkdir()
        oci_layout(self.work / "layout", layers, tag="v1")
        archive = tar_of(docker_25(layers, config_bytes(layers), ["team/app:1"]))
        (self.work / "app.tar").write_bytes(archive)
        (self.work / "conf").symlink_to(manual.ROOT / "conf")

    def _write_users(self) -> None:
        """Add bob and lab to the users of commands, and a login of Docker to the home."""
        passwd = Path(self.home.env["NSS_WRAPPER_PASSWD"])
        passwd.write_text(f"{passwd.read_text()}bob:x:2004:2300::/:/bin/sh\n")
        group = self.root / "group"
        group.write_text(f"{Path('/etc/group').read_text()}\nlab:x:2300:\n")
        helper = self.root / "bin" / "docker-credential-pass"
        helper.write_text(
            '#!/bin/sh\ncat >/dev/null\necho \'{"Username": "ann", "Secret": "x"}\'\n'
        )
        helper.chmod(0o755)
        docker = self.root / "docker"
        docker.mkdir()
        (docker / "config.json").write_text(json.dumps({"credHelpers": {"ghcr.io": "pass"}}))
        self.home.env = {
            **self.home.env,
            "NSS_WRAPPER_GROUP": str(group),
            "DOCKER_CONFIG": str(docker),
            "PATH": f"{helper.parent}:{os.environ['PATH']}",
        }

    def prepare(self, text: str) -> None:
        """Do before a line what it takes for granted: images and files that are there."""
        if text.startswith(("shiftergw rm", "shiftergw expire", "shiftergw pin")):
            assert self.shiftergw("pull", "-q", "ubuntu:24.04", "alpine:3").returncode == 0
        images = self.root / "service" / "images" / SYSTEM
        if text.endswith(("app.sif app:1", "app.sif app.squashfs", "app.squashfs app:1")):
            file_system = next(images.glob("*.squashfs")).read_bytes()
            (self.work / "app.squashfs").write_bytes(file_system)
            (self.work / "app.sif").write_bytes(
                sif(sif_object(0x4003, b"{}"), sif_partition(file_system))
            )
        if text.startswith("shiftergw convert"):
            for path in self.work.glob("*.squashfs"):
                path.unlink()

    def localize(self, text: str) -> str:
        """Return a line with the places of this site, and with the user who runs the tests."""
        user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
        if " 3f2a" in text:
            image_id = self.shiftergw("lookup", "alpine:3").stdout.decode()
            text = text.replace(" 3f2a", f" {image_id[:12]}")
        for word, replacement in {
            "sudo -H -u shiftergw ": "",
            "ssh NODE ": "",
            "munge -n": f"munge -n --socket={self.munged.socket}",
            "--socket=/run/munge/mycluster.socket": f"--socket={self.munged.socket}",
            "--config /etc/shiftergw/imagemanager.json": f"--config {self.service.config}",
            "/etc/shiftergw": str(self.root / "etc" / "shiftergw"),
            "/etc/systemd/system/": str(self.root / "units"),
            "/var/lib/shiftergw/admin.sock": str(self.service.root / "state" / "admin.sock"),
            "http://127.0.0.1:5000": self.service.url,
            "/scratch/shiftergw": str(self.root / "scratch" / "shiftergw"),
            "/images": str(self.root / "images-of-test"),
            "-o shiftergw": f"-o {user}",
            "-g shiftergw": f"-g {group}",
            "chown root:shiftergw": f"chown {user}:{group}",
            "chown shiftergw": f"chown {user}",
            "curl -N": "curl -N -m 1",
        }.items():
            text = text.replace(word, replacement)
        return text

    def shiftergw(
        self, *arguments: str, stdin: bytes = b"", at_home: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the program; `at_home` with the users and the home of the site."""
        env = {**(self.home.env if at_home else self.env), "TMPDIR": str(self.root)}
        return command.run(*arguments, env=env, stdin=stdin, cwd=self.work, start_new_session=True)

    def _log_in(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run `login` on a terminal, which asks for user and password."""
        terminal = Terminal(self.home.env, *arguments)
        try:
            terminal.expect(b"ser")
            terminal.type(b"ann\n")
            terminal.expect(b"assword")
            terminal.type(b"secret\n")
            code = terminal.process.wait(patient(30))
        finally:
            terminal.close()
        return subprocess.CompletedProcess(arguments, code, b"", terminal.output)

    def run(self, text: str) -> subprocess.CompletedProcess[bytes]:
        """Run a line."""
        stdin = b""
        if text == "shiftergw login ghcr.io":
            return self._log_in("login", "ghcr.io")
        if text.startswith("docker save "):
            stdin = (self.work / "app.tar").read_bytes()
            text = text.partition(" | ")[2]
        if text.startswith("shiftergw "):
            at_home = any(word in text.split() for word in USER_CHANGES)
            words = shlex.split(text)[1:]
            if words[0] == "convert":  # it has no gateway, and the machine no registry
                words[1:1] = ["--config", str(self.service.config), "--system", SYSTEM]
            return self.shiftergw(*words, stdin=stdin, at_home=at_home)
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", text],
            cwd=self.work,
            env={**os.environ, **self.env},
            capture_output=True,
            timeout=patient(30),
            check=False,
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, munged: MungeDaemon) -> Iterator[ManualSite]:
    """Run the gateway of the site."""
    for program in ("mksquashfs", "sqfs2tar", "munge", "curl", "openssl", "ssh-keygen"):
        need(program)
    site = ManualSite(tmp_path_factory.mktemp("site"), munged)
    with site.service:
        yield site


@pytest.mark.slow
@pytest.mark.parametrize("page", [*dict.fromkeys(line.page for line in LINES)])
def test_the_commands_of_a_page(site: ManualSite, page: str) -> None:
    """The lines of a page succeed one after the other."""
    omitted_lines = {*REASONS} if LONG else {*REASONS, *LONG_LINES}
    for line in LINES:
        if line.page == page and line.text not in omitted_lines and not PACKAGES.match(line.text):
            site.prepare(line.text)
            done = site.run(site.localize(line.text))
            assert done.returncode == CODES.get(line.text, 0), (line.text, done)


def test_no_reason_is_left_over() -> None:
    """Each line that runs in no test is in the manual, and so is each with an exit code."""
    texts = {line.text for line in LINES}
    assert {*REASONS, *CODES, *LONG_LINES} - texts == set()
