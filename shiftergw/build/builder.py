"""From layers to one squashfs file that was checked against its plan, shared by all deliveries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.build.by_packs import PackConverter
from shiftergw.build.converted import ConvertedFiles, converted_groups, disk_errors
from shiftergw.build.converter import BuildRequest, LayerConverter
from shiftergw.build.image_build import ImageBuild
from shiftergw.build.pack_search import find_packs
from shiftergw.build.tools import BuildTools
from shiftergw.build.whole import WholeConverter
from shiftergw.errors import NoSpace, amount
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.images import BuiltImage, Digest
from shiftergw.plumbing.disk_budget import DiskBudget
from shiftergw.plumbing.files import private_directory

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads
    from shiftergw.ports import Layer, Report


class SquashBuilder:
    """Keeps the port `ImageBuilder`: layers in, a converted and checked squashfs file out.

    The options choose whether `mksquashfs` converts an image as a whole, or the packs of its layers
    are composed.
    """

    def __init__(
        self,
        directory: Path,
        binary: str,
        threads: Threads,
        readers: Threads,
        reactor: Reactor,
        clock: IReactorTime,
        budget: DiskBudget | None = None,
    ) -> None:
        """Build with the arguments of `BuildTools`; the directory is made at the first build.

        Without a `budget`, unused converted files make room for new ones.
        """
        self._files = converted_groups(directory)
        budget = budget or DiskBudget((self._files,))
        self._tools = BuildTools(directory, binary, threads, readers, reactor, clock, budget)
        self._directory = directory
        self._threads = threads

    @asynccontextmanager
    async def build(
        self,
        image_id: str,
        created: int,
        layers: Sequence[Layer],
        options: SquashOptions,
        limits: BuildLimits,
        report: Report,
        on_stage: Callable[[str], None],
        pack_directory: Path,
    ) -> AsyncIterator[BuiltImage]:
        """See the port. One build at a time runs for each (id, options); the others wait for it."""
        files = ConvertedFiles(self._directory, image_id, options.key)
        request = BuildRequest(created, layers, options, limits, report, on_stage, pack_directory)
        converter: LayerConverter = (
            PackConverter(self._tools, request)
            if options.uses_packs
            else WholeConverter(self._tools, request)
        )
        build = ImageBuild(self._tools, files, request, converter)
        async with AsyncExitStack() as use:
            with disk_errors():
                await self._threads.run(private_directory, self._directory)
                image = await build.run(use)
            yield image

    async def has(self, image_id: str, options: SquashOptions) -> bool:
        """Return whether the converted file of (image id, options) is here, unverified."""
        files = ConvertedFiles(self._directory, image_id, options.key)
        return await self._threads.run(files.exist)

    async def find_packs(
        self,
        pack_directory: Path,
        claims: Iterable[tuple[Digest, Digest | None]],
        options: SquashOptions,
        use: AsyncExitStack | None = None,
    ) -> AbstractSet[Digest]:
        """See the port."""
        return await find_packs(self._tools, pack_directory, claims, options, use)

    async def check_space(self, size: int) -> None:
        """Refuse layers whose squashfs cannot fit, even if all unused files were removed.

        The squashfs is about as large as the layers. Half of that is required: a later layer may
        delete much of an earlier one.
        """
        with disk_errors():
            room = await self._threads.run(
                self._tools.budget.room, self._directory, enough=size // 2
            )
        if room < size // 2:
            raise NoSpace(
                f"The converted image needs about {amount(size)} and the gateway has"
                f" {amount(room)} for it."
            )

    async def sweep(self, before: float) -> int:
        """Remove the files that were last used before this time; return how many were removed.

        Files that are locked or in use stay, and so do packs. The time is compared with the files'
        own (seconds since 1970).
        """
        with disk_errors():
            return await self._threads.run(self._files.sweep, before)
