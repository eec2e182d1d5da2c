"""`POST /api/pull/…` brings a real image from a real registry into the image directory."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftergw.oci.meta import read_meta
from tests.images import entry, oci_index_layout, oci_layout, tar_of
from tests.parts import need
from tests.registries import DockerRegistry
from tests.running_service import ALICE, BOB, POLL_PAUSE, Service, until


def simple_layers(seed: bytes = b"") -> list[bytes]:
    """Return two layers whose content depends on `seed`."""
    return [
        tar_of([entry("etc"), entry("etc/motd", b"one" + seed), entry("bin", None, mode=0o700)]),
        tar_of([entry("etc/.wh.motd", b""), entry("etc/issue", b"two" + seed)]),
    ]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Run a registry with a few images."""
    root = tmp_path_factory.mktemp("registry")
    with DockerRegistry(root / "data") as running:
        oci_layout(
            root / "plain",
            simple_layers(),
            config={
                "Env": ["A=1", "PATH=/bin"],
                "Entrypoint": ["/bin/sh", "-c"],
                "WorkingDir": "/",
            },
        )
        running.push(root / "plain", "lib/plain:1")
        running.push(root / "plain", "lib/plain:same")
        oci_index_layout(
            root / "index", {"amd64": simple_layers(b"amd64"), "arm64": simple_layers(b"arm64")}
        )
        running.push(root / "index", "lib/index:1")
        noise = [
            tar_of([entry(f"data/{n}", os.urandom(2_400_000)) for n in range(5)]) for _ in range(3)
        ]
        oci_layout(root / "big", noise, compression="plain")
        running.push(root / "big", "lib/big:1")
        yield running


@pytest.fixture(scope="module")
def service(
    registry: DockerRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a gateway that several tests share."""
    need("mksquashfs")
    root = tmp_path_factory.mktemp("service")
    locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
    with Service(root, locations, {"HeartbeatLimit": 5}) as running:
        yield running


def listing(path: Path) -> list[str]:
    """Return the paths inside a squashfs file."""
    out = subprocess.run(["unsquashfs", "-l", path], check=True, capture_output=True, text=True)
    lines = out.stdout.splitlines()
    return sorted(line.removeprefix("squashfs-root/") for line in lines if "squashfs-root/" in line)


def test_an_image_becomes_a_squashfs_and_its_metadata(service: Service) -> None:
    """A pull ends READY, and the image directory has the files that the runtime reads."""
    answer = service.pull("lib/plain:1")
    assert answer["status"] == "READY"
    image = service.images / f"{answer['id']}.squashfs"
    assert listing(image) == ["bin", "etc", "etc/issue"]
    assert image.stat().st_mode & 0o777 == 0o600
    meta = service.images / f"{answer['id']}.meta"
    assert meta.stat().st_mode & 0o777 == 0o600
    read = read_meta(meta.read_bytes())
    assert read.env == ("A=1", "PATH=/bin")
    assert read.entry == ("/bin/sh", "-c")
    assert answer["ENV"] == ["A=1", "PATH=/bin"]
    assert answer["tag"] == ["lib/plain:1"]
    assert isinstance(answer["last_pull"], float)
    assert service.leftovers() == []


def test_the_admin_socket_has_what_workers_measure(service: Service) -> None:
    """A scrape shows the pull, its bytes and its requests, once the worker has reported them."""
    service.pull("lib/plain:same")
    path = str(service.root / "state" / "admin.sock")
    ready = (
        r'shiftergw_attempts_total\{cause="",kind="pull",outcome="READY",system="mycluster"\} (\S+)'
    )

    def scrape() -> re.Match[str] | None:
        command = ["curl", "-sS", "--unix-socket", path, "http://gateway/metrics"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert 'shiftergw_request_seconds_count{route="pull",status="2xx"}' in text
        assert 'shiftergw_store_seconds_count{call="claim"}' in text
        assert "shiftergw_work_known 1.0" in text
        return re.search(ready, text)

    match = until(scrape, 10, "the report of the worker")
    assert float(match[1]) >= 1
    assert service.get("/metrics")[0] == 404


def test_the_first_answer_says_init_and_polls_find_the_same_pull(service: Service) -> None:
    """The first request starts the pull; later requests report that pull, to its end."""
    first = service.poll("lib/big:1")
    assert first["status"] == "INIT"
    assert first["id"] == "MISSING"
    states = {service.poll("lib/big:1")["status"] for _ in range(3)}
    assert states <= {
        "INIT",
        "PENDING",
        "PULLING",
        "EXAMINATION",
        "CONVERSION",
        "TRANSFER",
        "READY",
    }
    done = service.pull("lib/big:1")
    assert done["status"] == "READY"
    assert service.poll("lib/big:1")["id"] == done["id"]
    assert service.queue() == []


def test_lookup_and_list_find_a_pulled_image(service: Service) -> None:
    """A READY image is found by any form of its name, and is in the list."""
    done = service.pull("lib/plain:1")
    status, record = service.lookup("lib/plain:1")
    assert status == 200
    assert record["id"] == done["id"]
    _, body = service.get("/api/list/mycluster/")
    assert done["id"] in [record["id"] for record in body["list"]]
    assert service.lookup("lib/absent:1")[0] == 404


def test_an_index_gives_the_system_s_architecture(service: Service) -> None:
    """The image for the system's architecture is converted."""
    done = service.pull("lib/index:1")
    content = subprocess.run(
        ["unsquashfs", "-cat", service.images / f"{done['id']}.squashfs", "etc/issue"],
        check=True,
        capture_output=True,
    ).stdout
    assert content == b"twoamd64"


def test_two_hundred_callers_start_one_job(
    registry: DockerRegistry, service: Service, tmp_path: Path
) -> None:
    """Two hundred requests for the same image at once start a single conversion."""
    oci_layout(tmp_path, simple_layers(b"crowd"))
    registry.push(tmp_path, "lib/crowd:1")
    credentials = [f"good:user{n}:users::{3000 + n}:2100" for n in range(200)]
    with concurrent.futures.ThreadPoolExecutor(50) as callers:
        answers = list(
            callers.map(lambda credential: service.poll("lib/crowd:1", credential), credentials)
        )
        assert {answer["status"] for answer in answers} <= {
            "INIT", "PENDING", "PULLING", "EXAMINATION", "CONVERSION", "TRANSFER", "READY",
        }  # fmt: skip
        ends = list(
            callers.map(lambda credential: service.pull("lib/crowd:1", credential), credentials)
        )
    assert {end["status"] for end in ends} == {"READY"}
    assert len({end["id"] for end in ends}) == 1
    line = "begins: docker:lib/crowd:1 on mycluster"
    assert service.log_with(line).count(line) == 1


def test_the_log_has_a_line_for_each_pull(registry: DockerRegistry, tmp_path: Path) -> None:
    """The line has user, image, system, bytes, seconds by stage, outcome and request.

    No line of the log is Twisted's own.
    """
    locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
    with Service(tmp_path, locations) as service:
        answer = service.pull("lib/big:1")
        assert answer["status"] == "READY"
        failure = service.pull("lib/absent:1", BOB)
        assert failure["status"] == "FAILURE"
        # A worker logs an end after it has written it into the store.
        end = re.compile(r"worker \d+: shiftergw\.job\.worker\.Worker: (pull finished .*)\n")
        until(lambda: len(end.findall(service.log.read_text())) == 2, 30, "the ends in the log")
    text = service.log.read_text()
    ends = end.findall(text)
    trace = r"request=[0-9a-f]{8} job=[0-9a-f]{24} attempt=1 deaths=0 seconds=\S+ waited=\S+"
    amounts = r"bytes_layers=(\d+) bytes_downloaded=\1 bytes_image=\d+ bytes_sent=\d+"
    ready_line = (
        "pull finished outcome=READY user=alice uid=2001 system=mycluster image=docker:lib/big:1"
        rf" id={answer['id']} {trace} stages=\S*PULLING:\d+\.\d\S* steps=\S+ {amounts}"
    )
    assert re.fullmatch(ready_line, ends[0]), ends[0]
    failure_line = (
        "pull finished outcome=FAILURE user=bob uid=2002 system=mycluster image=docker:lib/absent:1"
        rf" id=- {trace} stages=\S+ steps=- bytes_layers=0 bytes_downloaded=0 bytes_image=-"
        r' bytes_sent=0 cause=".*no image.*"'
    )
    assert re.fullmatch(failure_line, ends[1]), ends[1]
    for result, line in ((answer, ends[0]), (failure, ends[1])):
        (trace,) = re.findall("request=([0-9a-f]{8})", line)
        assert f" {trace} " in text, "the same id begins the line of the request"
        assert result.get("request_id", trace) == trace
    assert "actory" not in text
    assert " at 0x" not in text


def test_a_second_tag_of_an_image_needs_no_second_file(
    registry: DockerRegistry, service: Service, tmp_path: Path
) -> None:
    """A pull of another tag of a delivered image adds the tag and converts nothing."""
    oci_layout(tmp_path, simple_layers(b"twice"))
    registry.push(tmp_path, "lib/twice:1")
    registry.push(tmp_path, "lib/twice:2")
    first = service.pull("lib/twice:1")
    mtime = (service.images / f"{first['id']}.squashfs").stat().st_mtime_ns
    two = service.pull("lib/twice:2")
    assert two["id"] == first["id"]
    assert sorted(two["tag"]) == ["lib/twice:1", "lib/twice:2"]
    assert (service.images / f"{first['id']}.squashfs").stat().st_mtime_ns == mtime


@pytest.mark.slow
def test_a_moved_tag_is_followed(registry: DockerRegistry, tmp_path: Path) -> None:
    """A pull of an image that is older than `PullUpdateTimeout` asks the registry again."""
    locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
    oci_layout(tmp_path / "old", simple_layers(b"old"))
    oci_layout(tmp_path / "new", simple_layers(b"new"))
    registry.push(tmp_path / "old", "lib/moving:1")
    with Service(tmp_path / "service", locations, {"PullUpdateTimeout": 1}) as service:
        old = service.pull("lib/moving:1")
        time.sleep(1.1)
        answer = service.pull("lib/moving:1")
        assert answer["id"] == old["id"]
        registry.push(tmp_path / "new", "lib/moving:1")

        def has_moved() -> bool:
            return bool(service.pull("lib/moving:1")["id"] != old["id"])

        until(has_moved, 20, "the new image", POLL_PAUSE)
        _, record = service.lookup("lib/moving:1")
        assert record["id"] != old["id"]
        assert record["tag"] == ["lib/moving:1"]


def test_a_killed_worker_s_work_is_taken_up_again(
    registry: DockerRegistry, service: Service, tmp_path: Path
) -> None:
    """After SIGKILL of a worker another worker finishes its pull, and the gateway goes on."""
    noise = [tar_of([entry(f"d/{n}", os.urandom(10_000_000)) for n in range(3)])]
    oci_layout(tmp_path, noise, compression="plain")
    registry.push(tmp_path, "lib/killed:1")
    service.poll("lib/killed:1")

    def is_busy() -> bool:
        return service.poll("lib/killed:1")["status"] in {"EXAMINATION", "CONVERSION"}

    until(is_busy, 30, "the conversion")
    for worker in service.workers():
        os.kill(worker, signal.SIGKILL)
    assert service.get("/livez")[0] == 200
    done = service.pull("lib/killed:1", seconds=60)
    assert done["status"] == "READY"
    image = service.images / f"{done['id']}.squashfs"
    assert "d/2" in listing(image)
    service.log_with("begins: docker:lib/killed:1 on mycluster", 2)
    until(lambda: not service.leftovers(), 5, "the clean-up")


def test_a_restarted_gateway_finishes_pulls(registry: DockerRegistry, tmp_path: Path) -> None:
    """SIGKILL of the gateway loses no pull: the restarted gateway finishes it."""
    locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
    service = Service(tmp_path, locations, {"HeartbeatLimit": 3})
    service.start()
    service.poll("lib/big:1")
    service.stop(signal.SIGKILL)
    service.start()
    try:
        assert service.pull("lib/big:1")["status"] == "READY"
    finally:
        service.stop()


def test_two_workers_share_a_download(registry: DockerRegistry, tmp_path: Path) -> None:
    """Two systems with different options need two conversions and one download."""
    platform = {"accesstype": "local", "local": {"imageDir": str(tmp_path / "images")}}
    second_system = {
        "accesstype": "local",
        "squashfs": {"compressor": "gzip", "level": 1},
        "local": {"imageDir": str(tmp_path / "other")},
    }
    (tmp_path / "other").mkdir()
    locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
    changes = {"Platforms": {"mycluster": platform, "othercluster": second_system}}
    with Service(tmp_path, locations, changes) as service:
        before = registry.blob_requests()
        service.poll("lib/big:1")
        service.get("/api/pull/othercluster/docker/lib%2Fbig:1/", ALICE, "POST")
        done = service.pull("lib/big:1")

        def is_second_ready() -> bool:
            _, body = service.get("/api/pull/othercluster/docker/lib%2Fbig:1/", BOB, "POST")
            assert body["status"] != "FAILURE", body
            return bool(body["status"] == "READY")

        until(is_second_ready, 60, "the second system's pull", POLL_PAUSE)
        name = f"{done['id']}.squashfs"
        assert listing(service.images / name) == listing(tmp_path / "other" / name)
        # Three layers, and the configuration twice: it is read, not cached.
        assert registry.blob_requests() - before <= 3 + 2


def test_delivered_bytes_are_those_of_the_record(service: Service) -> None:
    """The delivered image has the bytes of the converted file, as a hard link to it."""
    done = service.pull("lib/plain:1")
    path = service.images / f"{done['id']}.squashfs"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    files = list((service.root / "expand").glob(f"{done['id']}*.squashfs"))
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == [digest]
    # On a single file system the gateway delivers a hard link instead of a copy.
    assert path.stat().st_nlink == 2


def flip(path: Path, *, swap: bool = False) -> None:
    """Change a byte of a file, or with `swap` of a copy that replaces it; keep its size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if swap:
        path.unlink()
    path.write_bytes(content)
    path.chmod(0o600)
    # Times are compared in whole seconds, and the present second may be that of the record.
    os.utime(path, (1, 1))


@pytest.mark.slow
def test_a_damaged_image_is_delivered_again(registry: DockerRegistry, tmp_path: Path) -> None:
    """The next pull that asks the registry replaces the image, from the converted file if intact.

    A byte that is changed in place is changed in the converted file, too: it is the same inode. A
    pull by another tag of the image asks the registry, however recent the first pull is.
    """
    locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
    with Service(tmp_path, locations, {"PullUpdateTimeout": 1}) as service:
        done = service.pull("lib/plain:1")
        image = service.images / f"{done['id']}.squashfs"
        (file,) = (tmp_path / "expand").glob(f"{done['id']}*.squashfs")
        content, inode = image.read_bytes(), file.stat().st_ino
        requests = registry.blob_requests()

        def is_intact() -> bool:
            assert service.pull("lib/plain:1")["status"] == "READY"
            return image.read_bytes() == content

        flip(image, swap=True)
        until(is_intact, 30, "the delivery after the swap", POLL_PAUSE)
        assert file.stat().st_ino == inode
        flip(image)
        assert service.pull("lib/plain:same")["id"] == done["id"]
        assert image.read_bytes() == content
        # The configuration is read each time.
        assert registry.blob_requests() - requests <= 2
        line = "is not the file that was delivered"
        assert service.log_with(line, 2).count(line) == 2
