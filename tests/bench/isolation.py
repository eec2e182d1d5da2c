"""Measure how much bad registries and images delay other pulls: `python -m tests.bench.isolation`.

One gateway serves two systems. In the quiet phase, healthy users (as many as there are workers)
pull images one after the other from a real registry. In the disturbed phase they pull as many new
images of the same shape, while

* one user pulls from a registry that sends a byte of each manifest in five seconds,
* one user pulls from a registry that answers 429 with `Retry-After: 21600`,
* one user pulls hostile images: `chain` (a path through 39 symbolic links and 1,900 directories,
  20,000 entries), `repeated-blob` (a layer of 100 MB named 200 times), `env-bloat` (260 kB of
  control characters in the environment) and `false-size` (a layer that claims 299 MB).

Each of these users has one pull at a time, as a script has, and starts the next pull as soon as the
last has ended. Another client looks up an image all the time. Phases alternate; the figures of a
phase are those of all its rounds.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from tests.end_to_end.faulty import FaultyRegistry
from tests.images import MadeImage, entry, json_bytes, make_image, tar_of, write_layout
from tests.registries import DockerRegistry
from tests.running_service import ALICE, FINAL, Service
from tests.server_thread import ServerThread

SYSTEMS = ("near", "far")
READY_IMAGE = "lib/ready:1"
WARM_UP = [f"lib/warm{number}:1" for number in range(8)]
BARS = {4: 1.5, 2: 2.2}
"""The allowed ratio of the slowest healthy pulls, by the number of workers."""
LOOKUP_BAR, GATEWAY_BAR, WORKER_BAR = 0.050, 150, 400
"""Seconds of a look-up (p99); MB of memory of the gateway, and of a worker."""
POLL_SECONDS = 0.1


def healthy_image(seed: str) -> MadeImage:
    """Return an image of two layers with about 4 MB, half of it incompressible."""
    chance = random.Random(seed)
    text = b"".join(b"%d line of text\n" % number for number in range(1000))
    layers = [
        tar_of({f"layer{layer}/file{n}": chance.randbytes(20_000) + text for n in range(50)})
        for layer in range(2)
    ]
    return make_image(layers)


def chain_image(number: int) -> MadeImage:
    """Return an image whose entries lie behind a long chain of links; it depends on `number`."""
    deep = "/".join(["d"] * 1900)
    links = [(f"{deep}/s{n}", f"/{deep}/s{n + 1}") for n in range(38)]
    links += [(f"{deep}/s38", "/real"), ("go", f"/{deep}/s0")]
    entries = [entry(name, type=b"2", linkname=target) for name, target in links]
    entries += [
        entry(f"number{number}"),
        entry("real"),
        *(entry(f"go/x{n}/f", b"") for n in range(20_000)),
    ]
    return make_image([tar_of(entries)])


def changed_manifest(image: MadeImage, changes: dict[str, Any]) -> MadeImage:
    """Return the image with changed members of its manifest and the same blobs."""
    manifest = json_bytes(image.document | changes)
    return MadeImage(manifest, image.media_type, image.blobs, image.architecture)


def repeated_image(times: int) -> MadeImage:
    """Return an image that names one layer of 100 MB of zeros many times."""
    return make_image([tar_of({"zeros": bytes(100_000_000)})] * times, compression="zstd")


def false_size_image() -> MadeImage:
    """Return an image whose layer claims 299 MB and has a few hundred bytes."""
    image = make_image([tar_of({"small": b"content"})])
    layers = [layer | {"size": 299_000_000} for layer in image.document["layers"]]
    return changed_manifest(image, {"layers": layers})


def bloated_image(number: int) -> MadeImage:
    """Return an image with an environment of 260 kB of control characters."""
    env = [f"{name}{number}=" + "\x01" * 130_000 for name in "AB"]
    return make_image([tar_of({"small": b"content"})], config={"Env": env})


def hostile_images() -> Mapping[str, MadeImage]:
    """Return the hostile images by their repository."""
    images = {"repeated": repeated_image(200), "false-size": false_size_image()}
    for number in range(10):
        images[f"chain{number}"] = chain_image(number)
        images[f"bloat{number}"] = bloated_image(number)
    return images


class _RateLimited(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(429)
        self.send_header("Retry-After", "21600")
        self.send_header("Content-Length", "0")
        self.end_headers()


class _Dripping(_RateLimited):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
        self.send_header("Content-Length", "1000")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"{")
                self.wfile.flush()
                time.sleep(5)
        except OSError:
            self.close_connection = True


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve requests by a handler on a free port of the loopback; yield its host."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    with ServerThread(server):
        yield f"127.0.0.1:{server.server_address[1]}"


@dataclass
class Phase:
    """The figures of one phase: times in seconds, memory in MB."""

    pulls: list[float] = field(default_factory=list)
    lookups: list[float] = field(default_factory=list)
    gateway_memory: float = 0.0
    worker_memory: float = 0.0
    outcomes: list[str] = field(default_factory=list)


def memory_of(pid: int) -> float:
    """Return the resident memory of a process in MB, or 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(sizes[0]) / 1000 if sizes else 0.0


class Site:
    """The gateway under test, and the pulls of its users."""

    def __init__(self, service: Service) -> None:
        """Use a running service."""
        self.service = service

    def pull(
        self, system: str, image: str, user: int, over: threading.Event | None = None
    ) -> tuple[float, dict[str, Any]]:
        """Pull as a user (uid) until the end, or until `over`; return seconds and last answer."""
        path = f"/api/pull/{system}/docker/{quote(image, safe='')}/"
        credential = f"good:user{user}:users::{user}:2100"
        begin = time.monotonic()
        while True:
            status, answer = self.service.get(path, credential, "POST")
            has_ended = status != 200 or answer["status"] in FINAL
            if has_ended or (over is not None and over.is_set()):
                return time.monotonic() - begin, answer
            time.sleep(POLL_SECONDS)

    def pull_all(self, images: Sequence[str], users: int, phase: Phase) -> None:
        """Pull the images, as `users` users who each pull an equal share one after the other."""

        def pull_share(user: int) -> None:
            for number, image in enumerate(images[user::users]):
                system = SYSTEMS[(user + number) % len(SYSTEMS)]
                seconds, answer = self.pull(system, image, 3000 + user)
                assert answer["status"] == "READY", answer
                phase.pulls.append(seconds)

        with ThreadPoolExecutor(users) as threads:
            list(threads.map(pull_share, range(users)))

    def watch_memory(self, over: threading.Event, phase: Phase) -> None:
        """Record the peak memory of the gateway and its workers until `over`."""
        while not over.wait(0.2):
            phase.gateway_memory = max(phase.gateway_memory, memory_of(self.service.pid))
            workers = [memory_of(pid) for pid in self.service.workers()]
            phase.worker_memory = max(phase.worker_memory, *workers, 0.0)

    def disturb(self, images: Sequence[str], user: int, over: threading.Event, to: Phase) -> None:
        """Pull bad images one after the other, again and again, until `over`."""
        while not over.is_set():
            for number, image in enumerate(images):
                if over.is_set():
                    return
                seconds, answer = self.pull(SYSTEMS[number % len(SYSTEMS)], image, user, over)
                message = answer.get("status_message") or answer.get("error")
                to.outcomes.append(f"{image} {seconds:.1f} s: {answer['status']} {message}")
                time.sleep(POLL_SECONDS)


def look_up(port: int, over: Any, seconds: Any) -> None:
    """Look up an image again and again until `over`; put the list of seconds into a queue.

    It runs in its own process, because the threads of the other clients would delay it.
    """
    path = f"/api/lookup/{SYSTEMS[0]}/docker/{quote(READY_IMAGE, safe='')}/"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    durations = []
    while not over.wait(0.02):
        begin = time.perf_counter()
        connection.request("GET", path, headers={"authentication": ALICE})
        answer = connection.getresponse()
        answer.read()
        durations.append(time.perf_counter() - begin)
        assert answer.status == 200
    connection.close()
    seconds.put(durations)


@contextmanager
def looking_up(port: int, phase: Phase) -> Iterator[None]:
    """Look up an image while the context lives; add the seconds to the phase."""
    context = multiprocessing.get_context("spawn")
    over, seconds = context.Event(), context.Queue()
    process = context.Process(target=look_up, args=(port, over, seconds))
    process.start()
    try:
        yield
    finally:
        over.set()
        phase.lookups += seconds.get(timeout=60)
        process.join()


def measure(site: Site, images: Sequence[str], bad: Sequence[Sequence[str]], users: int) -> Phase:
    """Pull all images; meanwhile one user for each list in `bad` pulls its images."""
    phase, over = Phase(), threading.Event()
    with looking_up(site.service.port, phase), ThreadPoolExecutor(len(bad) + 1) as threads:
        tasks = [threads.submit(site.watch_memory, over, phase)]
        tasks += [
            threads.submit(site.disturb, names, 4000 + number, over, phase)
            for number, names in enumerate(bad)
        ]
        time.sleep(2)  # look-ups and disturbance begin before the first healthy pull
        try:
            site.pull_all(images, users, phase)
        finally:
            over.set()
        for task in tasks:
            task.result()
    return phase


def push_all(root: Path, registry: DockerRegistry, names: Sequence[str]) -> None:
    """Push a healthy image with unique content under each name."""

    def push(name: str) -> None:
        layout, image = root / name.replace("/", "-").replace(":", "-"), healthy_image(name)
        write_layout(layout, image.manifest, image.media_type, image.blobs.values())
        registry.push(layout, name)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(push, names))


@contextmanager
def running(
    root: Path, workers: int, builder: str, names: Sequence[str]
) -> Iterator[tuple[Site, list[Any]]]:
    """Run registries and a gateway; yield the site, and the lists of bad images."""
    hostile = hostile_images()
    with ExitStack() as parts:
        registry = parts.enter_context(DockerRegistry(root / "registry"))
        evil = parts.enter_context(FaultyRegistry())
        hosts = [parts.enter_context(serving(kind)) for kind in (_Dripping, _RateLimited)]
        for name, image in hostile.items():
            evil.add(name, image)
        push_all(root / "layouts", registry, [*names, *WARM_UP, READY_IMAGE])
        urls = {"registry": registry.host, "evil": evil.host}
        urls |= {"drip.test": hosts[0], "limit.test": hosts[1]}
        locations = {
            name: {"remotetype": "dockerv2", "url": f"http://{host}"} for name, host in urls.items()
        }
        platforms = {
            system: {
                "accesstype": "local",
                "squashfs": {"compressor": "gzip", "level": 1},
                "local": {"imageDir": str(root / "service" / system)},
            }
            for system in SYSTEMS
        }
        for system in SYSTEMS:
            (root / "service" / system).mkdir(parents=True)
        changes = {"Platforms": platforms, "WorkerThreads": workers, "Builder": builder}
        service = parts.enter_context(Service(root / "service", locations, changes))
        site = Site(service)
        for name in (READY_IMAGE, *WARM_UP):
            assert site.pull(SYSTEMS[0], name, 3000)[1]["status"] == "READY"
        bad = [
            [f"drip.test/app{n}:1" for n in range(4)],
            [f"limit.test/app{n}:1" for n in range(4)],
            [f"evil/{name}:1" for name in hostile],
        ]
        yield site, bad


def merge_phases(phases: Sequence[Phase]) -> Phase:
    """Return the figures of several phases as one."""
    return Phase(
        [seconds for phase in phases for seconds in phase.pulls],
        [seconds for phase in phases for seconds in phase.lookups],
        max(phase.gateway_memory for phase in phases),
        max(phase.worker_memory for phase in phases),
        [outcome for phase in phases for outcome in phase.outcomes],
    )


def report(workers: int, quiet: Phase, noisy: Phase, *, outcomes: bool) -> None:
    """Print the comparison."""
    console = Console(width=140)
    table = Table(
        "phase", "pulls", "median s", "longest s", "look-up p99 ms", "gateway MB", "worker MB"
    )
    for name, phase in (("quiet", quiet), ("disturbed", noisy)):
        table.add_row(
            name,
            str(len(phase.pulls)),
            f"{statistics.median(phase.pulls):.2f}",
            f"{max(phase.pulls):.2f}",
            f"{1000 * statistics.quantiles(phase.lookups, n=100)[98]:.1f}",
            f"{phase.gateway_memory:.0f}",
            f"{phase.worker_memory:.0f}",
        )
    console.print(table)
    bar = BARS.get(workers)
    longest = max(noisy.pulls) / max(quiet.pulls)
    medians = statistics.median(noisy.pulls) / statistics.median(quiet.pulls)
    verdict = "" if bar is None else f" (bar {bar}: {'met' if longest <= bar else 'missed'})"
    console.print(
        f"{workers} workers: longest {longest:.2f}{verdict}, median {medians:.2f} times as long."
    )
    console.print(
        f"Bars: look-up p99 {1000 * LOOKUP_BAR:g} ms, gateway {GATEWAY_BAR} MB,"
        f" worker {WORKER_BAR} MB."
    )
    console.print(f"{len(noisy.outcomes)} bad pulls ended or were pending at the end.")
    if outcomes:
        for outcome in noisy.outcomes:
            console.print(outcome, markup=False, highlight=False)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--builder", choices=["packs", "whole"], default="packs")
    parser.add_argument("--pulls", type=int, default=100, help="healthy pulls in each phase")
    parser.add_argument("--rounds", type=int, default=2, help="of a quiet and a disturbed phase")
    parser.add_argument(
        "--outcomes", action="store_true", help="print the outcome of each bad pull"
    )
    parser.add_argument("--directory", type=Path, default=None, help="for scratch files")
    options = parser.parse_args()
    share = -(-options.pulls // options.rounds)
    kinds = [(kind, number) for number in range(options.rounds) for kind in ("quiet", "disturbed")]
    names = {kind: [f"lib/{kind[0]}{kind[1]}n{n}:1" for n in range(share)] for kind in kinds}
    phases: dict[str, list[Phase]] = {"quiet": [], "disturbed": []}
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        all_names = [name for group in names.values() for name in group]
        with running(Path(scratch), options.workers, options.builder, all_names) as (site, bad):
            for kind in kinds:
                disturbance = bad if kind[0] == "disturbed" else []
                phases[kind[0]].append(measure(site, names[kind], disturbance, options.workers))
    quiet, noisy = merge_phases(phases["quiet"]), merge_phases(phases["disturbed"])
    report(options.workers, quiet, noisy, outcomes=options.outcomes)


if __name__ == "__main__":
    main()
