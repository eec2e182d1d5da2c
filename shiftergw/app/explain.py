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

from shiftergw.app import compose
from shiftergw.app.explain_adapters import ExplainAdapters, open_adapters
from shiftergw.config import Config
from shiftergw.delivery.disk_calls import MOST_HANGING
from shiftergw.errors import GatewayError, ImageBlocked, PullError, RetryLater, TimedOut
from shiftergw.image import ResolvedImage
from shiftergw.job.explain import ImageFacts, explain
from shiftergw.job.recordable import recordable
from shiftergw.model import Progress
from shiftergw.model.explanations import ExplainRequest, Explanation, ImagePlace
from shiftergw.plumbing.services import run_services
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within
from shiftergw.ports import ImageStore, Say
from shiftergw.rules.waiting import decide_wait
from shiftergw.states import State

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

T = TypeVar("T")

SECONDS = 60.0
"""The time limit of all requests to the registry and the system together."""


async def explain_image(
    reactor: Reactor, config: Config, request: ExplainRequest, say: Say
) -> Explanation:
    """Return what a pull of an image would do now; `say` hears what the look-ups wait for.

    Errors that a pull would meet are part of the explanation. Raises `ConfigurationError` if this
    process is not of the gateway's user, `Unavailable` if the database cannot be opened, and the
    errors of `Config.locate`.
    """
    config.locate(request.reference)
    parts = compose.ConversionParts(reactor, config)
    disks = Threads(reactor, MOST_HANGING + 2, "images")
    async with run_services([parts.threads, parts.layouts, disks]):
        adapters = await open_adapters(reactor, config, request, parts, disks)
        store = [] if adapters.store is None else [adapters.store]
        async with run_services([*store, *adapters.closing]):
            return explain(await _LookUps(reactor, config, request, adapters, say).run())


class _Listener:
    """The `Watcher` of the look-ups: it passes on what they wait for."""

    def __init__(self, say: Say) -> None:
        self.notify = say

    def enter_stage(self, state: State, message: str) -> None:
        """Do nothing."""

    def report(self, progress: Progress) -> None:
        """Do nothing."""


class _LookUps:
    """Looks up the facts of one image; an error of one look-up does not keep the others."""

    def __init__(
        self,
        reactor: Reactor,
        config: Config,
        request: ExplainRequest,
        adapters: ExplainAdapters,
        say: Say,
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._request = request
        self._adapters = adapters
        self._target = adapters.target
        self._watcher = _Listener(say)
        self._end = reactor.seconds() + SECONDS
        self._failures: list[GatewayError] = []

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
            facts = await self._attempt(self._tag(facts, store), facts)
        await self._attempt(target.directory.reach(), None)
        image = await self._attempt(self._resolve(), None)
        if image is not None:
            facts = replace(
                facts,
                image=image,
                layer_sizes=await adapters.parts.caches.sizes_of(image),
                is_converted=await adapters.parts.builder.has(image.id, target.options),
            )
            if store is not None:
                facts = await self._attempt(self._delivery(facts, image, store), facts)
            verdict = await self._attempt(self._judge(image), None)
            facts = replace(facts, verdict=verdict)
            if explain(facts).action == "build":
                await self._attempt(adapters.pipeline.check_space(image), None)
                await self._attempt(target.check_space(image), None)
        return replace(facts, places=self._places(), failures=tuple(self._failures))

    async def _attempt(self, work: Coroutine[Deferred[Any], Any, T], default: T) -> T:
        """Return the result of a look-up; after an error note it, and return `default`.

        A wait that would be too long for a pull is the error that the pull would end with.
        """
        seconds = max(0.0, self._end - self._reactor.seconds())
        try:
            return await within(seconds, self._reactor, work, _too_long)
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

    async def _delivery(
        self, facts: ImageFacts, image: ResolvedImage, store: ImageStore
    ) -> ImageFacts:
        """Add the records of the image's file, and whether the file is as they say."""
        target = self._target
        if await store.is_blocked(target.name, {image.id, image.source_digest.hex}):
            raise ImageBlocked("The admins of this system have taken this image down.")
        records = await store.find_id(target.systems, image.id)
        has_file = True
        if records:
            file = await target.directory.exists(f"{image.id}.squashfs")
            sizes = {record.size for record in records} - {None}
            has_file = file is not None and (not sizes or file.size in sizes)
        return replace(facts, records=records, has_file=has_file)

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


def _too_long() -> TimedOut:
    return TimedOut(
        f"The look-ups took longer than {SECONDS:.0f} s together.",
        remedy="The registry or the system is slow: `shiftergw check` looks at each of them.",
    )
