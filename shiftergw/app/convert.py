"""Convert one image to a file without any service, behind `shiftergw convert`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.app import compose
from shiftergw.app.conversion_parts import ConversionParts
from shiftergw.app.waiting import run_with_waits
from shiftergw.build import mksquashfs
from shiftergw.config import Config, System
from shiftergw.delivery.placement import place
from shiftergw.job.pipeline import Pipeline
from shiftergw.job.policy import read_policy
from shiftergw.job.watcher import Watcher
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.images import BuiltImage, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.signatures import PolicyVerdict
from shiftergw.model.source_names import LocalSourceName
from shiftergw.plumbing.files import private_directory
from shiftergw.plumbing.services import ClosedAtStop, run_services
from shiftergw.ports import ImageSource
from shiftergw.signatures.gpg import GpgVerifier
from shiftergw.sources.local.opening import open_source
from shiftergw.states import State

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert, for a system of the configuration, into the file `out`.

    `source` is in a registry, or it is a file, a directory or standard input. Temporary files of
    such a source are written to the directory `scratch`, which is the caller's. With `link`, the
    converted file itself may become `out`. Without, `out` is a copy, because the site may still
    deliver the converted file to its systems.
    """

    source: ImageReference | LocalSourceName
    system: str
    out: Path
    scratch: Path
    options: SquashOptions
    link: bool


async def convert(
    reactor: Reactor, config: Config, conversion: Conversion, watcher: Watcher
) -> dict[str, object]:
    """Convert one image; temporary files lie in the directories of `config`.

    Returns what the command prints: id, bytes, entries, dropped, and the seconds of each stage.
    Stages overlap: layers are indexed while they are fetched. If the system has a policy, it is
    asked before any layer is fetched: raises `ImageRefused`, and `PolicyInvalid` for the policy.
    """
    parts = ConversionParts(reactor, config)
    registry = compose.registry(reactor, config)
    lookasides = compose.lookasides(reactor, config)
    policies = compose.policies(reactor, config, registry, lookasides, parts.threads)
    clients = [ClosedAtStop(registry.close), ClosedAtStop(lookasides.close)]
    async with run_services([parts.threads, parts.readers, parts.layouts, *clients]):
        await _check_policy(config.systems[conversion.system], parts.threads, reactor)
        mksquashfs.check_version(await mksquashfs.version(config.mksquashfs, reactor, reactor))
        for directory in (config.cache_directory, config.expand_directory):
            await parts.threads.run(private_directory, directory)
        start = time.monotonic()
        limits = config.build_limits()
        locations = compose.image_source(registry, config, parts.layouts)
        source, reference = await _open_source(
            conversion, locations, limits, parts.threads, reactor, watcher
        )
        pipeline = Pipeline(source, parts.caches.of, parts.builder, limits, reactor)

        async def build() -> dict[str, object]:
            system = conversion.system
            platform = config.systems[system].architecture
            image, image_config = await pipeline.resolve(reference, platform, None, watcher)
            verdict = await policies.judge(system, reference, image, None, watcher)
            if verdict is not None and not verdict.is_accepted:
                raise policies.refusal(system, reference, image, verdict)
            resolve_seconds = time.monotonic() - start
            await pipeline.check_space(image, conversion.options)
            async with pipeline.convert(
                image, image_config, None, conversion.options, watcher
            ) as squashfs:
                await place(
                    squashfs.path,
                    conversion.out,
                    squashfs.sha256,
                    parts.threads,
                    watcher.report,
                    link=conversion.link,
                )
            total_seconds = time.monotonic() - start
            return _result(image, squashfs, verdict, resolve_seconds, total_seconds)

        return await run_with_waits(build, reactor, config.wait_limits(), watcher.notify)


async def _open_source(
    conversion: Conversion,
    locations: ImageSource,
    limits: BuildLimits,
    threads: Threads,
    reactor: Reactor,
    watcher: Watcher,
) -> tuple[ImageSource, ImageReference]:
    """Return what the image is read from, and its reference there.

    That is one of the configured `locations`, or a file, a directory or standard input.
    """
    name = conversion.source
    if isinstance(name, ImageReference):
        return locations, name
    source = await open_source(
        name,
        conversion.scratch,
        limits,
        threads,
        reactor,
        partial(watcher.enter_stage, State.PULLING),
        watcher.report,
    )
    return source, ImageReference(name.kind)


async def _check_policy(system: System, threads: Threads, reactor: Reactor) -> None:
    """Raise `PolicyInvalid`, or `ConfigurationError` without `gpgv`, for an unusable policy."""
    if system.policy_file is not None:
        policy = await threads.run(read_policy, system.policy_file)
        if policy.needs_gpg:
            await GpgVerifier(reactor, reactor).check_program()


def _result(
    image: ResolvedImage,
    squashfs: BuiltImage,
    verdict: PolicyVerdict | None,
    resolve_seconds: float,
    total: float,
) -> dict[str, object]:
    """Return the JSON object that the command prints; times are in seconds."""
    report = squashfs.report.to_document()
    return {
        "id": image.id,
        "bytes": squashfs.size,
        "entries": report.pop("entries"),
        "dropped": {name: count for name, count in report.items() if name != "size" and count},
        "seconds": {
            "resolve": round(resolve_seconds, 3),
            **{stage: round(seconds, 3) for stage, seconds in squashfs.seconds.items()},
            "total": round(total, 3),
        },
        **({} if verdict is None else {"policy": verdict.to_answer()}),
    }
