"""The scenarios of the bench, as values: a name, and what prepares its variants.

Each scenario has an image, and variants that make a squashfs file of it: the floor, our pulls with
each builder, and the tools of other projects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.bench import bars
from tests.bench.commands import NoMeasurement
from tests.bench.contents import Size
from tests.bench.figures import Sample
from tests.bench.gateway import Pulls, RemoteSystem
from tests.bench.image_files import ImageOnDisk
from tests.bench.tools import GZIP_5, GZIP_9, ZSTD_3, Compression, Run, Tools, sample
from tests.bench.workshop import Workshop
from tests.distance import RATE, ROUND_TRIP, Distance
from tests.sshd import Sshd

NEAR_ROUND_TRIP = 0.001
"""The round trip of the scenario `line`, in seconds."""

_WHOLE_DIRECTORY = 20_000
"""Entries of one directory that the whole-image builder converts within a minute."""

Variants = Mapping[str, Run]


@dataclass(frozen=True)
class Scenario:
    """A comparison of variants that make the same squashfs file, or nearly so.

    `prepare` returns the image and the variants; what it starts is stopped with the stack.
    """

    name: str
    title: str
    prepare: Callable[[Workshop, ExitStack], tuple[ImageOnDisk, Variants]]


def _pull_runs(pulls: Mapping[str, Pulls], name: str = bars.PULL) -> dict[str, Run]:
    return {name.format(builder=builder): pull.run for builder, pull in pulls.items()}


def _cold(
    compression: Compression, make: Callable[[Workshop], ImageOnDisk], workshop: Workshop, _: object
) -> tuple[ImageOnDisk, Variants]:
    """Compare everything, with empty caches."""
    image = make(workshop)
    tools = workshop.tools(image, compression)
    return image, {
        bars.FLOOR: tools.floor,
        **_pull_runs(workshop.pulls(image, compression)),
        bars.SKOPEO: tools.skopeo,
        bars.PODMAN: tools.podman,
    }


def _gzip_9(workshop: Workshop, _: object) -> tuple[ImageOnDisk, Variants]:
    """Compare our pull with the original's way, both with their defaults."""
    image = workshop.real_image()
    tools = workshop.tools(image, GZIP_9)
    return image, {
        bars.FLOOR: tools.floor,
        **_pull_runs(workshop.pulls(image, GZIP_9)),
        **_pull_runs(workshop.pulls(image, ZSTD_3), bars.PULL_ZSTD),
        bars.ORIGINAL: tools.skopeo,
    }


def _line(workshop: Workshop, stack: ExitStack) -> tuple[ImageOnDisk, Variants]:
    """Compare our pull over a line with the line alone, and with the compression alone."""
    image = workshop.real_image()
    host = workshop.registry.host
    # Each connection gets its share of the line.
    rate = RATE / len(image.layers)
    link = stack.enter_context(Distance(_port(host), NEAR_ROUND_TRIP, rate))
    host = f"127.0.0.1:{link.port}"
    tools = replace(workshop.tools(image, ZSTD_3), host=host)
    pulls = {
        builder: replace(pull, host=host) for builder, pull in workshop.pulls(image, ZSTD_3).items()
    }
    return image, {
        bars.DOWNLOAD: tools.download,
        bars.RAW_FLOOR: tools.compress,
        **_pull_runs(pulls),
        bars.SKOPEO: tools.skopeo,
        bars.PODMAN: tools.podman,
    }


def _base(workshop: Workshop, _: object) -> tuple[ImageOnDisk, Variants]:
    """Compare everything where the base of the image is there already."""
    base, image = workshop.real_image(), workshop.updated_image()
    tools = workshop.tools(image, ZSTD_3, base)
    return image, {
        bars.FLOOR: tools.floor,
        **_pull_runs(workshop.pulls(image, ZSTD_3, base)),
        bars.SKOPEO: tools.skopeo,
        bars.PODMAN: tools.podman,
    }


def _changes(workshop: Workshop, _: object) -> tuple[ImageOnDisk, Variants]:
    """Compare the sizes of images whose upper layer replaces files of a lower one."""
    image = workshop.changed_image()
    tools = workshop.tools(image, ZSTD_3)
    return image, {**_pull_runs(workshop.pulls(image, ZSTD_3)), bars.SKOPEO: tools.skopeo}


def _directory(workshop: Workshop, _: object) -> tuple[ImageOnDisk, Variants]:
    """Compare everything for one directory of many entries, and our pull of a tenth of it."""
    entries = workshop.size.directory_entries
    image, tenth = (workshop.directory_image(count) for count in (entries, entries // 10))
    tools = workshop.tools(image, ZSTD_3)
    runs = _pull_runs(workshop.pulls(image, ZSTD_3))
    if entries > _WHOLE_DIRECTORY and bars.WHOLE in workshop.builders:
        runs[bars.PULL.format(builder=bars.WHOLE)] = _quadratic
    return image, {
        bars.FLOOR: tools.floor,
        **runs,
        **_pull_runs(workshop.pulls(tenth, ZSTD_3), bars.PULL_TENTH),
        bars.SKOPEO: tools.skopeo,
        bars.PODMAN: tools.podman,
    }


def _growth(
    make: Callable[[Workshop, int], ImageOnDisk],
    count: Callable[[Size], int],
    workshop: Workshop,
    _: object,
) -> tuple[ImageOnDisk, Variants]:
    """Compare our pull of an image with that of a tenth of it, and with the floor."""
    total = count(workshop.size)
    image, tenth = make(workshop, total), make(workshop, total // 10)
    return image, {
        bars.FLOOR: workshop.tools(image, ZSTD_3).floor,
        **_pull_runs(workshop.pulls(image, ZSTD_3)),
        **_pull_runs(workshop.pulls(tenth, ZSTD_3), bars.PULL_TENTH),
    }


def _quadratic(_: Path) -> Sample:
    raise NoMeasurement("mksquashfs -tar takes quadratic time for a large directory")


def _remote(workshop: Workshop, stack: ExitStack) -> tuple[ImageOnDisk, Variants]:
    """Compare our pulls to a remote system with the parts of which they consist."""
    base, image = workshop.real_image(), workshop.updated_image()
    sshd = stack.enter_context(Sshd())
    link = stack.enter_context(Distance(sshd.port, ROUND_TRIP, RATE))
    sshd.trust_port(link.port)
    remote = RemoteSystem(sshd, link)
    tools = workshop.tools(image, ZSTD_3)
    local = workshop.pulls(image, ZSTD_3)
    known_base = workshop.pulls(image, ZSTD_3, base)
    return image, {
        bars.DOWNLOAD: tools.download,
        bars.UPLOAD: partial(_upload, tools, remote),
        **_pull_runs(local, bars.PULL_LOCAL),
        **_pull_runs({name: replace(pull, remote=remote) for name, pull in local.items()}),
        **_pull_runs(
            {name: replace(pull, remote=remote) for name, pull in known_base.items()},
            bars.PULL_KNOWN_BASE,
        ),
    }


def _upload(tools: Tools, remote: RemoteSystem, where: Path) -> Sample:
    """Upload what the floor makes, which is not measured, by OpenSSH's `sftp`."""
    tools.compress(where)
    source, target, batch = where / "image.squashfs", where / "remote", where / "batch"
    batch.write_text(f"put {source} {target}\n")
    sshd = remote.sshd
    settings = [f"IdentityFile={sshd.key}", f"UserKnownHostsFile={sshd.known_hosts}"]
    options = [word for setting in settings for word in ("-o", setting)]
    argv = ["sftp", "-F", "none", *options, "-P", str(remote.link.port), "-b", str(batch)]
    return sample(tools.commands.run([*argv, f"{sshd.user}@127.0.0.1"]), target)


def _port(host: str) -> int:
    return int(host.rpartition(":")[2])


SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("zstd", "cold, zstd 3", partial(_cold, ZSTD_3, Workshop.real_image)),
        Scenario("gzip-5", "cold, gzip 5", partial(_cold, GZIP_5, Workshop.real_image)),
        Scenario("gzip-9", "cold, gzip 9", _gzip_9),
        Scenario("line", "cold, zstd 3, over 1 Gbit/s", _line),
        Scenario("base", "a small layer on a known base, zstd 3", _base),
        Scenario(
            "files", "many small files, zstd 3", partial(_cold, ZSTD_3, Workshop.small_files_image)
        ),
        Scenario("changes", "30 % of the small files of a layer replaced, zstd 3", _changes),
        Scenario("directory", "one big directory, zstd 3", _directory),
        Scenario(
            "links",
            "many hard links, zstd 3",
            partial(_growth, Workshop.links_image, lambda size: size.hard_links),
        ),
        Scenario(
            "same-size",
            "many files of one size, zstd 3",
            partial(_growth, Workshop.same_size_image, lambda size: size.same_size_files),
        ),
        Scenario("remote", "to a system behind 1 Gbit/s and 50 ms, zstd 3", _remote),
    )
}
