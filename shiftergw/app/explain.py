"""Look up what a pull of an image would do, for operators and, by `app/explainer.py`, for users.

The look-ups are those of a worker on this machine: the same sources, mirrors and proxies, the same
circuit breakers, policy, cache, database and image directory. Manifests, the configuration and
signatures are read; no layer is.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred

from shiftergw.app import explain_limits as limits
from shiftergw.app.conversion_parts import ConversionParts
from shiftergw.app.explain_adapters import ExplainAdapters, open_adapters
from shiftergw.app.explain_limits import LookUpPlace, look_up, running
from shiftergw.config import Config
from shiftergw.delivery.disk_calls import MOST_HANGING
from shiftergw.errors import (
    GatewayError,
    ImageBlocked,
    PullError,
    RetryLater,
    TimedOut,
    Unavailable,
)
from shiftergw.job.explain import ImageFacts, explain
from shiftergw.job.recordable import recordable
from shiftergw.model.explanations import ExplainRequest, Explanation, ImagePlace
from shiftergw.model.images import ResolvedImage
from shiftergw.model.records import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import ImageStore, Notify
from shiftergw.rules.waiting import decide_wait
from shiftergw.states import State

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

T = TypeVar("T")


def ignore(_: str) -> None:
    """Do nothing with a line."""


async def explain_image(
    reactor: Reactor, config: Config, request: ExplainRequest, notify: Notify, note: Notify = ignore
) -> Explanation:
    """Return what a pull of an image would do now; `notify` hears what the look-ups wait for.

    `note` gets a line for each obstacle, with details that only operators may see. Errors that a
    pull would meet are part of the explanation, and so is what could not be looked up in time.
    Raises `ConfigurationError` if this process is not of the gateway's user, `Unavailable` if the
    database cannot be opened, `TimedOut` if the directories of the gateway do not answer, and the
    errors of `Config.locate`.
    """
    config.locate(request.reference)
    end = reactor.seconds() + limits.SECONDS
    parts = ConversionParts(reactor, config)
    disks = Threads(reactor, MOST_HANGING + 2, "images")
    async with running(reactor, [parts.threads, parts.layouts, disks]):
        opening = open_adapters(reactor, config, request, parts, disks)
        adapters = await look_up(limits.GATEWAY_FILES, reactor, opening)
        store = [] if adapters.store is None else [adapters.store]
        async with running(reactor, [*store, *adapters.closing]):
            facts = await _LookUps(reactor, config, request, adapters, notify, end).run()
    for error in facts.obstacles:
        note(f"{error.code}: {error.what} {error.detail}".strip())
    return explain(facts)


class _Listener:
    """The `Watcher` of the look-ups: it passes on what they wait for."""

    def __init__(self, notify: Notify) -> None:
        self.notify = notify

    def enter_stage(self, state: State, message: str) -> None:
        """Do nothing."""

    def report(self, progress: Progress) -> None:
        """Do nothing."""

    def report_reading(self, progress: Progress) -> None:
        """Do nothing."""


class _LookUps:
    """Looks up the facts of one image; an error of one look-up does not keep the others."""

    def __init__(
        self,
        reactor: Reactor,
        config: Config,
        request: ExplainRequest,
        adapters: ExplainAdapters,
        notify: Notify,
        end: float,
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._request = request
        self._adapters = adapters
        self._target = adapters.target
        self._watcher = _Listener(notify)
        self._end = end
        self._failures: list[GatewayError] = []
        self._silent_places: set[LookUpPlace] = set()

    async def run(self) -> ImageFacts:
        """Return all facts."""
        request, target, adapters = self._request, self._target, self._adapters
        login, store = request.login, adapters.store
        facts = ImageFacts(
            request.system,
            request.reference,
            target.platform,
            target.name,
            "" if login is None else login.user,
            reader=request.reader,
        )
        if store is not None:
            facts = await self._attempt(self._tag(facts, store), facts, limits.DATABASE)
        await self._attempt(target.directory.reach(), None, limits.DIRECTORY)
        image = await self._attempt(self._resolve(), None, limits.REGISTRY)
        if image is not None:
            facts = await self._look_into_cache(replace(facts, image=image), image)
            if store is not None:
                facts = await self._attempt(
                    self._blocks(facts, image, store), facts, limits.DATABASE
                )
                facts = await self._attempt(self._file(facts, image), facts, limits.DIRECTORY)
            verdict = await self._attempt(self._judge(image), None, limits.POLICY)
            facts = replace(facts, verdict=verdict)
            if explain(facts).action == "build":
                fit = adapters.pipeline.check_space(image, target.options)
                await self._attempt(fit, None, limits.CACHE)
                await self._attempt(target.check_space(image), None, limits.DIRECTORY)
        return replace(facts, places=self._places(), failures=tuple(self._failures))

    async def _attempt(
        self, work: Coroutine[Deferred[Any], Any, T], default: T, place: LookUpPlace
    ) -> T:
        """Return the result of a look-up; after an error note it, and return `default`.

        A wait that would be too long for a pull is the error that the pull would end with.
        """
        if place in self._silent_places:
            work.close()
            return default
        try:
            return await self._look_up(work, place)
        except CancelledError:
            raise
        except RetryLater as delay:
            try:
                decide_wait(0.0, delay, self._reactor.seconds(), self._config.wait_limits())
            except PullError as error:
                self._failures.append(error)
            else:
                self._failures.append(delay)
        except GatewayError as error:
            self._failures.append(error)
        return default

    async def _look_up(self, work: Coroutine[Deferred[Any], Any, T], place: LookUpPlace) -> T:
        """Return the result of a look-up; raise a `GatewayError`, also if a file cannot be read."""
        seconds = self._end - self._reactor.seconds()
        try:
            return await look_up(place, self._reactor, work, seconds)
        except OSError as error:
            raise Unavailable(f"{place.name} cannot be read.", detail=str(error)) from error
        except TimedOut:
            self._silent_places.add(place)
            raise

    async def _look_into_cache(self, facts: ImageFacts, image: ResolvedImage) -> ImageFacts:
        """Add what of an image the cache has; after an error note it."""
        parts, options = self._adapters.parts, self._target.options
        try:
            return replace(
                facts,
                layer_sizes=await self._look_up(self._layer_sizes(image), limits.CACHE),
                is_converted=await self._look_up(
                    parts.builder.has(image.id, options), limits.CACHE
                ),
            )
        except GatewayError as error:
            return replace(facts, cache_failure=error)

    async def _layer_sizes(self, image: ResolvedImage) -> list[int]:
        """Return how many bytes of each layer need not be downloaded; packs stand for layers."""
        sizes = await self._adapters.parts.caches.sizes_of(image)
        packed_layers = await self._adapters.pipeline.find_packs(image, self._target.options)
        return [
            layer.size if layer.digest in packed_layers else size
            for layer, size in zip(image.layers, sizes, strict=True)
        ]

    async def _tag(self, facts: ImageFacts, store: ImageStore) -> ImageFacts:
        """Add what the tag means on the system now, and a pull of it that is under way."""
        system, tag = facts.system, str(facts.reference)
        work = await store.find_work(system, "docker", tag)
        return replace(
            facts,
            tag_record=await store.find(system, "docker", [tag]),
            work=next((record for record in work if record.in_flight), None),
        )

    async def _resolve(self) -> ResolvedImage:
        request, config = self._request, self._config
        image, image_config = await self._adapters.pipeline.resolve(
            request.reference, self._target.platform, request.login, self._watcher
        )
        try:
            recordable(image_config, config.max_record_size)
        except PullError as error:
            self._failures.append(error)
        return image

    async def _blocks(
        self, facts: ImageFacts, image: ResolvedImage, store: ImageStore
    ) -> ImageFacts:
        """Add the records of the image's file; raise `ImageBlocked`."""
        if await store.is_blocked(self._target.name, {image.id, image.source_digest.hex}):
            raise ImageBlocked("The admins of this system have taken this image down.")
        return replace(facts, records=await store.find_id(self._target.systems, image.id))

    async def _file(self, facts: ImageFacts, image: ResolvedImage) -> ImageFacts:
        """Add whether the image's file is as its records say."""
        if not facts.records:
            return facts
        file = await self._target.directory.exists(f"{image.id}.squashfs")
        sizes = {record.size for record in facts.records} - {None}
        return replace(facts, has_file=file is not None and (not sizes or file.size in sizes))

    async def _judge(self, image: ResolvedImage) -> Any:
        """Return the verdict of the system's policy; note a refusal."""
        request = self._request
        subject = request.system, request.reference, image
        verdict = await self._adapters.policies.judge(*subject, request.login, self._watcher)
        if verdict is not None and not verdict.is_accepted:
            self._failures.append(self._adapters.policies.refusal(*subject, verdict))
        return verdict

    def _places(self) -> tuple[ImagePlace, ...]:
        """Return where the image is looked for, with what the last requests have shown."""
        reference = self._request.reference
        name, repository = self._config.locate(reference)
        section = self._config.locations.get(name)
        if section is not None and not section.is_registry:
            path = str(section.directory or section.url)
            return (ImagePlace("directory", name, path, repository),)
        places = self._adapters.registry.places(reference, self._request.login)
        return tuple(
            replace(place, failure=self._adapters.mirror_failures.get(place.name, ""))
            if place.kind == "mirror"
            else place
            for place in places
        )
