"""The images and the settings that the scenarios of the bench share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.bench import contents
from tests.bench.commands import Commands
from tests.bench.contents import Size
from tests.bench.gateway import WARM_UP, Pulls
from tests.bench.image_files import ImageOnDisk, LayerOnDisk, make_layer, push
from tests.bench.tools import Compression, Tools
from tests.registries import DockerRegistry

_REPLACED_SHARE = 0.3


@dataclass
class Workshop:
    """What scenarios share: settings, a registry, and layers, each of which is made once."""

    where: Path
    size: Size
    builders: Sequence[str]
    commands: Commands
    registry: DockerRegistry
    _layers: dict[str, LayerOnDisk] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def image(self, name: str, **fills: Callable[[Path], None]) -> ImageOnDisk:
        """Return the image `name` in the registry, with a layer for each function that fills it.

        Layers of one name are the same layer.
        """
        for layer, fill in fills.items():
            if layer not in self._layers:
                self._layers[layer] = make_layer(self.where, layer, fill)
        image = ImageOnDisk(name, [self._layers[layer] for layer in fills])
        if name not in self._names:
            push(self.registry, self.where, image)
            self._names.add(name)
        return image

    def real_image(self) -> ImageOnDisk:
        """Return the image of three layers of real files."""
        return self.image("bench/real:1", **self._real_layers())

    def updated_image(self) -> ImageOnDisk:
        """Return the same image with a fourth, small layer."""
        limit = self.size.update_bytes
        fill = partial(contents.copy_real_files, contents.UPDATE, limit)
        return self.image("bench/real:2", **self._real_layers(), update=fill)

    def small_files_image(self) -> ImageOnDisk:
        """Return the image of three layers of small files."""
        return self.image("bench/files:1", **self._small_files_layers())

    def changed_image(self) -> ImageOnDisk:
        """Return the same image with a layer that replaces a share of these files."""

        def fill(tree: Path) -> None:
            contents.replace_small_files(self._layers["files0"].tree, _REPLACED_SHARE, tree)

        return self.image("bench/files:2", **self._small_files_layers(), changes=fill)

    def directory_image(self, entries: int) -> ImageOnDisk:
        """Return the image with one directory of `entries` files."""
        fill = partial(contents.big_directory, entries)
        return self.image(f"bench/directory{entries}:1", **{f"directory{entries}": fill})

    def links_image(self, count: int) -> ImageOnDisk:
        """Return the image with `count` hard links."""
        fill = partial(contents.hard_links, count)
        return self.image(f"bench/links{count}:1", **{f"links{count}": fill})

    def same_size_image(self, count: int) -> ImageOnDisk:
        """Return the image with `count` files of one size."""
        fill = partial(contents.same_size_files, count)
        return self.image(f"bench/same-size{count}:1", **{f"same-size{count}": fill})

    def warm_up_image(self) -> ImageOnDisk:
        """Return the image that gateways pull before they are measured."""
        return self.image(WARM_UP, warm_up=_fill_warm_up)

    def tools(
        self, image: ImageOnDisk, compression: Compression, base: ImageOnDisk | None = None
    ) -> Tools:
        """Return the tools for an image, on the loopback."""
        return Tools(self.commands, self.registry.host, image, compression, base)

    def pulls(
        self, image: ImageOnDisk, compression: Compression, base: ImageOnDisk | None = None
    ) -> dict[str, Pulls]:
        """Return our pulls of an image, on the loopback, by builder."""
        self.warm_up_image()
        return {
            builder: Pulls(
                builder, self.registry, self.registry.host, image, compression,
                self.commands.limit, base,
            )
            for builder in self.builders
        }  # fmt: skip

    def _real_layers(self) -> dict[str, Callable[[Path], None]]:
        parts = {
            "libraries": contents.LIBRARIES,
            "share": contents.SHARE,
            "programs": contents.PROGRAMS,
        }
        limit = self.size.layer_bytes
        return {
            name: partial(contents.copy_real_files, part, limit) for name, part in parts.items()
        }

    def _small_files_layers(self) -> dict[str, Callable[[Path], None]]:
        count = self.size.small_files // 3
        return {
            f"files{number}": partial(_fill_small_files, count, number * count)
            for number in range(3)
        }


def _fill_small_files(count: int, first: int, tree: Path) -> None:
    contents.small_files(count, tree, first)


def _fill_warm_up(tree: Path) -> None:
    (tree / "file").write_bytes(b"content")
