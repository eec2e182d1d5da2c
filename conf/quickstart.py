"""Start a gateway on this machine and pull one image through it.

conf/quickstart calls this script with the Python of its virtual environment.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from shiftergw.auth.munge_client import encode
from shiftergw.errors import Unavailable

CHECKOUT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("SHIFTERGW_QUICKSTART", CHECKOUT.parent / "shiftergw-quickstart"))
BIN = Path(sys.executable).parent
SYSTEM = "quickstart"
PIDS = {name: HOME / f"{name}.pid" for name in ("gateway", "registry", "munged")}
MUNGE = Path(
    f"/tmp/shiftergw-{os.getuid()}-{hashlib.sha256(bytes(HOME)).hexdigest()[:12]}"  # noqa: S108
)
"""The directory of the munge daemon's files; `start_munged` says why it is not in HOME."""

START_SECONDS = 30.0


def say(text: str) -> None:
    """Print the next step on standard error."""
    sys.stderr.write(f"\033[1m==>\033[0m {text}\n")


def free_port() -> int:
    """Return a free TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_ready(url: str) -> bool:
    """Return whether a URL answers with status 200."""
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310
        return bool(response.status == 200)  # noqa: PLR2004
    return False


def wait_for(url: str, name: str, log: Path) -> None:
    """Wait until a URL answers; exit with the last lines of the log after `START_SECONDS`."""
    deadline = time.monotonic() + START_SECONDS
    while not is_ready(url):
        if time.monotonic() > deadline:
            tail = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
            sys.exit("\n".join([*tail, f"{name} did not start; its log is {log}"]))
        time.sleep(0.1)


def stop(name: str) -> None:
    """Stop a program of an earlier run and wait for its end.

    The process id in the file may belong to another program by now; that one is left alone.
    """
    pid_file = PIDS[name]
    with suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if bytes(HOME) in command or bytes(MUNGE) in command:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + START_SECONDS
            while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
    pid_file.unlink(missing_ok=True)


def start_munged() -> Path:
    """Start a munge daemon with a key of its own and return its socket.

    Its files are in a directory of /tmp: munged requires a socket that every user can reach, below
    directories that only their owner can write to, and the kernel limits the length of a socket's
    path. HOME may fail any of these.
    """
    remove_munge_directory()
    MUNGE.mkdir(mode=0o711)
    MUNGE.chmod(0o711)  # the umask may have removed bits
    key = MUNGE / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    program = shutil.which("munged", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    files = ("socket", "key-file", "log-file", "pid-file", "seed-file")
    options = [f"--{name}={MUNGE / name.removesuffix('-file')}" for name in files]
    socket_path, log = MUNGE / "socket", HOME / "munged.log"
    say(f"starting a munge daemon on {socket_path}")
    with log.open("ab") as out:
        process = subprocess.Popen(
            [program or sys.exit("munged is not installed"), "--foreground", *options],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    PIDS["munged"].write_text(str(process.pid))
    deadline = time.monotonic() + START_SECONDS
    while True:
        with suppress(Unavailable):
            encode(b"", socket_path)
            return socket_path
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{log.read_text()}\nthe munge daemon did not start; its log is {log}")
        time.sleep(0.1)


def remove_munge_directory() -> None:
    """Remove the munge directory of an earlier run; exit if it belongs to another user."""
    with suppress(FileNotFoundError):
        status = MUNGE.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            sys.exit(
                f"{MUNGE} is not a directory of this user: remove it, or set SHIFTERGW_QUICKSTART"
                " to another place"
            )
        shutil.rmtree(MUNGE)


def layer(*entries: tuple[str, bytes | str | None]) -> bytes:
    """Return a tar archive of (name, content).

    Bytes make a file, `->TARGET` a symlink, `=TARGET` a hard link, None a directory.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, bytes):
                info.size = len(content)
            else:
                info.type = tarfile.SYMTYPE if content.startswith("->") else tarfile.LNKTYPE
                info.linkname = content.removeprefix("->").removeprefix("=")
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def demonstration_layers() -> list[bytes]:
    """Return three layers with busybox, links and whiteouts."""
    busybox = shutil.which("busybox") or sys.exit("busybox-static is not installed")
    return [
        layer(
            ("bin", None),
            ("bin/busybox", Path(busybox).read_bytes()),
            ("bin/sh", "=bin/busybox"),
            ("bin/ls", "->busybox"),
            ("etc", None),
            ("etc/motd", b"made by the first layer\n"),
            ("etc/obsolete", b"a later layer removes this file\n"),
            ("opt", None),
            ("opt/old", None),
            ("opt/old/file", b"a later layer empties this directory\n"),
        ),
        layer(("etc/.wh.obsolete", b""), ("opt/old/.wh..wh..opq", b""), ("opt/old/new", b"new\n")),
        layer(("etc/motd", b"Converted by shiftergw.\n"), ("etc/issue", "=etc/motd")),
    ]


def write_layout(directory: Path) -> None:
    """Write the demonstration image as an OCI layout (image-spec, "Image Layout")."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        kind = f"application/vnd.oci.image.{media_type}"
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    layers = [put(content, "layer.v1.tar") for content in demonstration_layers()]
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {
        "architecture": machine,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Entrypoint": ["/bin/sh"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [descriptor["digest"] for descriptor in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": layers,
    }
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def start_registry() -> str:
    """Start a registry on the loopback, push the demonstration image, and return its reference."""
    port = free_port()
    root = HOME / "registry"
    root.mkdir(exist_ok=True)
    settings = root / "config.yml"
    settings.write_text(
        "version: 0.1\n"
        "log: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {json.dumps(str(root / 'data'))}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    log = HOME / "registry.log"
    say(f"starting a registry on 127.0.0.1:{port}")
    with log.open("ab") as out:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(settings)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    PIDS["registry"].write_text(str(process.pid))
    wait_for(f"http://127.0.0.1:{port}/v2/", "the registry", log)
    layout = HOME / "layout"
    write_layout(layout)
    reference = f"127.0.0.1:{port}/demo/busybox:1"
    say(f"pushing a small image of three layers as {reference}")
    subprocess.run(
        ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:1",
         f"docker://{reference}"],
        check=True,
    )  # fmt: skip
    return reference


def host_of(image: str) -> str | None:
    """Return the registry that an image's name begins with, by docker's rule, or None."""
    first, slash, _ = image.partition("/")
    is_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
    return first if is_host else None


def write_configuration(image: str, port: int, munge_socket: Path) -> Path:
    """Write an `imagemanager.json` for this machine and return its path."""
    locations: dict[str, Any] = {"registry-1.docker.io": {"remotetype": "dockerv2"}}
    host = host_of(image)
    if host is not None:
        locations[host] = {"remotetype": "dockerv2"}
        if host.split(":")[0] in {"127.0.0.1", "localhost"}:
            locations[host]["url"] = f"http://{host}"
    (HOME / "images").mkdir(exist_ok=True)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    path = HOME / "imagemanager.json"
    path.write_text(
        json.dumps(
            {
                "DefaultImageLocation": "registry-1.docker.io",
                "DefaultImageFormat": "squashfs",
                "ImageExpirationTimeout": "90:00:00:00",
                "StateDirectory": str(HOME / "state"),
                "CacheDirectory": str(HOME / "cache"),
                "ExpandDirectory": str(HOME / "expand"),
                "Authentication": "munge",
                "Listen": f"tcp:{port}:interface=127.0.0.1",
                "Locations": locations,
                "Platforms": {
                    SYSTEM: {
                        "mungeSocketPath": str(munge_socket),
                        "accesstype": "local",
                        "admins": [getpass.getuser()],
                        "architecture": machine,
                        "local": {"imageDir": str(HOME / "images")},
                    }
                },
            },
            indent=4,
        )
        + "\n"
    )
    return path


def start_gateway(configuration: Path, port: int) -> str:
    """Start the gateway as a daemon and return its URL."""
    url = f"http://127.0.0.1:{port}"
    say(f"starting the gateway on {url} (twistd shiftergw --config {configuration})")
    log = HOME / "gateway.log"
    subprocess.run(
        [BIN / "twistd", "--pidfile", PIDS["gateway"], "--logfile", log, "--rundir", HOME,
         "shiftergw", "--config", configuration],
        check=True,
    )  # fmt: skip
    wait_for(f"{url}/readyz", "the gateway", log)
    return url


def pull_and_show(url: str, image: str, munge_socket: Path) -> int:
    """Pull the image, print the result, and return an exit code."""
    client = [
        str(BIN / "shiftergw"), "--gateway", url, "--system", SYSTEM,
        "--munge-socket", str(munge_socket),
    ]  # fmt: skip
    say(f"pulling {image}")
    pull = subprocess.run([*client, "pull", image], check=False, stdout=subprocess.PIPE, text=True)
    if pull.returncode != 0:
        sys.stdout.write(
            f"\nThe gateway keeps running at {url}; its log is {HOME / 'gateway.log'}.\n"
            "Stop it with:\n  conf/quickstart --stop\n"
        )
        return pull.returncode
    image_id = pull.stdout.strip()
    path = HOME / "images" / f"{image_id}.squashfs"
    listing = subprocess.run(
        ["unsquashfs", "-lln", path],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout.decode(errors="replace")
    entries = [line for line in listing.splitlines() if "squashfs-root" in line]
    sys.stdout.write(
        f"state    READY\nid       {image_id}\nfile     {path}\n"
        f"size     {path.stat().st_size} bytes\nentries  {len(entries)}, the first of them:\n"
        + "".join(f"         {line}\n" for line in entries[:8])
    )
    command = " ".join(client)
    sys.stdout.write(
        f"\nThe gateway keeps running at {url}. Try:\n"
        f"  {command} images\n  {command} pull {image}\n"
        f'  curl -X POST -H "authentication: $(munge -n -S {munge_socket})"'
        f" {url}/api/pull/{SYSTEM}/docker/{image.replace('/', '%2F')}/\n"
        "Stop it with:\n  conf/quickstart --stop\n"
    )
    return 0


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="conf/quickstart", description="Pull one image through a gateway on this machine."
    )
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="default: a small local image")
    parser.add_argument("--stop", action="store_true", help="stop the programs of an earlier run")
    arguments = parser.parse_args()
    for name in PIDS:
        stop(name)
    if arguments.stop:
        remove_munge_directory()
        say("stopped")
        return 0
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    image = arguments.image or start_registry()
    port = free_port()
    munge_socket = start_munged()
    url = start_gateway(write_configuration(image, port, munge_socket), port)
    return pull_and_show(url, image, munge_socket)


if __name__ == "__main__":
    sys.exit(main())
