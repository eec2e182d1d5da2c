"""Floors, and the tools of Debian that make a squashfs file of an image in a registry.

All run `mksquashfs` with the options of our conversions, so that only what comes before differs.
The floor is a download of all blobs at once by `curl`, and then `mksquashfs` alone on trees that
are ready in the page cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.commands import Commands, Cost, NoMeasurement
from tests.bench.figures import Sample
from tests.bench.image_files import ImageOnDisk

_OPTIONS = ["-noappend", "-no-progress", "-quiet", "-all-root", "-no-xattrs", "-no-duplicates"]

_PODMAN_PULL = """
image=$1 && shift
"$@" pull --quiet --tls-verify=false "$image"
"""

_PODMAN_CONVERT = """
image=$1 output=$2 options=$3 && shift 3
"$@" pull --quiet --tls-verify=false "$image" > /dev/null
tree=$("$@" image mount "$image")
mksquashfs "$tree" "$output" $options
"""


@dataclass(frozen=True)
class Compression:
    """A compressor of squashfs and its level."""

    name: str
    level: int

    def __str__(self) -> str:
        return f"{self.name} {self.level}"

    @property
    def options(self) -> list[str]:
        """Return the options of `mksquashfs` for our conversions with this compressor."""
        level = ["-Xcompression-level", str(self.level)]
        return [*_OPTIONS, "-b", "128K", "-mem", "512M", "-comp", self.name, *level]


ZSTD_3 = Compression("zstd", 3)
GZIP_5 = Compression("gzip", 5)
GZIP_9 = Compression("gzip", 9)


def sample(cost: Cost, output: Path | None = None, **figures: float) -> Sample:
    """Return the sample of programs that have written the file `output`."""
    sizes = {"size": float(output.stat().st_size)} if output is not None else {}
    return Sample({"wall": cost.wall, "cpu": cost.cpu, **sizes, **figures})


@dataclass(frozen=True)
class Tools:
    """The tools, for one image in a registry at `host`, converted with one compression.

    `base` is an image whose layers the tools have already, which is not measured.
    """

    commands: Commands
    host: str
    image: ImageOnDisk
    compression: Compression
    base: ImageOnDisk | None = None

    def download(self, where: Path) -> Sample:
        """Download all layers by `curl`."""
        return sample(self._download(where))

    def compress(self, where: Path) -> Sample:
        """Run `mksquashfs` on the trees."""
        output = where / "image.squashfs"
        return sample(self._compress(self.image.trees, output), output)

    def floor(self, where: Path) -> Sample:
        """Download by `curl`, then run `mksquashfs` on the trees."""
        output = where / "image.squashfs"
        download = self._download(where)
        compression = self._compress(self.image.trees, output)
        stages = {"download": download.wall, "mksquashfs": compression.wall}
        return Sample(sample(download + compression, output).figures, stages)

    def skopeo(self, where: Path) -> Sample:
        """Copy by `skopeo` into a layout, unpack by `umoci`, run `mksquashfs`."""
        layout, tree, output = where / "layout", where / "tree", where / "image.squashfs"
        if self.base is not None:
            self._copy(self.base, layout)
        copy = self._copy(self.image, layout)
        argv = ["umoci", "raw", "unpack", *([] if os.geteuid() == 0 else ["--rootless"])]
        unpack = self.commands.run([*argv, "--image", f"{layout}:image", tree])
        compression = self._compress([tree], output)
        stages = {"skopeo": copy.wall, "umoci": unpack.wall, "mksquashfs": compression.wall}
        return Sample(sample(copy + unpack + compression, output).figures, stages)

    def podman(self, where: Path) -> Sample:
        """Pull by `podman`, mount the image, run `mksquashfs`.

        The mounts are in a mount namespace, so that they end with the commands.
        """
        if os.geteuid() != 0:
            raise NoMeasurement("podman's mounts need root here")
        with TemporaryDirectory() as run:  # podman refuses a run root of more than 50 characters
            podman = [
                *["podman", "--root", f"{where}/storage", "--runroot", run],
                *["--tmpdir", f"{where}/tmp", "--storage-driver", "overlay"],
                *["--events-backend", "none"],
            ]
            if self.base is not None:
                self._in_namespace(_PODMAN_PULL, self._name(self.base), *podman)
            output = where / "image.squashfs"
            words = [self._name(self.image), str(output), " ".join(self.compression.options)]
            return sample(self._in_namespace(_PODMAN_CONVERT, *words, *podman), output)

    def _download(self, where: Path) -> Cost:
        argv = ["curl", "--no-progress-meter", "--fail", "--parallel", "--parallel-immediate"]
        repository = self.image.name.rpartition(":")[0]
        for number, layer in enumerate(self.image.layers):
            url = f"http://{self.host}/v2/{repository}/blobs/{layer.digest}"
            argv += ["--output", str(where / f"blob{number}"), url]
        return self.commands.run(argv)

    def _compress(self, trees: Sequence[Path], output: Path) -> Cost:
        return self.commands.run(["mksquashfs", *trees, output, *self.compression.options])

    def _copy(self, image: ImageOnDisk, layout: Path) -> Cost:
        argv = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
        return self.commands.run([*argv, f"docker://{self._name(image)}", f"oci:{layout}:image"])

    def _name(self, image: ImageOnDisk) -> str:
        return f"{self.host}/{image.name}"

    def _in_namespace(self, script: str, *words: str | Path) -> Cost:
        return self.commands.run(["unshare", "--mount", "sh", "-ec", script, "sh", *words])


Run = Callable[[Path], Sample]
"""Runs a variant once in an empty directory. Raises `NoMeasurement`."""
