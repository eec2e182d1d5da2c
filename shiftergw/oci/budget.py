"""Limits on the total cost of an image's layers: bytes, entries, names and path steps.

The sizes in a manifest are only claims, and a few bytes may unpack to terabytes. So costs are
counted and compared with the limits while layers are read and applied. The same loops check whether
the caller has requested them to stop.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from threading import Event, Lock
from typing import Any, NamedTuple, TypeVar

from shiftergw.errors import ImageTooLarge, amount
from shiftergw.model.build_options import RATIO_FREE, BuildLimits
from shiftergw.oci.compression import StopRequested

T = TypeVar("T")

_POLL_SECONDS = 0.1
"""Seconds between two checks whether all layers have arrived."""

_STRETCH = 4096
"""Iterations of a long loop between two checks of the stop flag."""


_BUCKET = 1 << 16
"""Items that are sorted between two checks of the stop flag, on average: about 50 ms."""

_SAMPLES = 16
"""Items of each bucket, on average, that are sampled for the bounds of the buckets."""


def stoppable(items: Iterable[T], stop: Event) -> Iterator[T]:
    """Yield the items; raise `StopRequested` soon after `stop` is set, even without items."""
    rest = iter(items)
    if stop.is_set():  # many loops over empty sequences take long, too
        raise StopRequested
    while stretch := list(islice(rest, _STRETCH)):
        if stop.is_set():
            raise StopRequested
        yield from stretch


def stoppable_sorted(
    items: Sequence[T], stop: Event, key: Callable[[T], Any] | None = None
) -> Iterator[T]:
    """Yield the items in ascending order of `key`; raise `StopRequested` soon after `stop` is set.

    Sorting millions of items is a single call of many seconds, during which no other thread of the
    process runs. So the items are divided among buckets first, which are sorted one by one. The
    bounds of the buckets are quantiles of a random sample, so that no order of the items puts all
    of them into one bucket.
    """
    buckets: Iterable[list[T]] = [list(items)]
    if len(items) > _BUCKET:
        sample = random.sample(items, _SAMPLES * len(items) // _BUCKET)
        bounds = sorted(sample if key is None else map(key, sample))[_SAMPLES::_SAMPLES]
        buckets = [[] for _ in range(len(bounds) + 1)]
        for item in stoppable(items, stop):
            buckets[bisect(bounds, item if key is None else key(item))].append(item)
    for bucket in stoppable(buckets, stop):
        bucket.sort(key=key)
        yield from stoppable(bucket, stop)
        bucket.clear()


class Cost(NamedTuple):
    """Unpacked bytes, entries, bytes of names, and compressed bytes (`stored_size`)."""

    size: int = 0
    entries: int = 0
    names: int = 0
    stored_size: int = 0

    def add(self, cost: Cost, times: int) -> Cost:
        """Return the sum of this cost and `times` times `cost`."""
        return Cost(*(total + times * part for total, part in zip(self, cost, strict=True)))


class LayersPending(Exception):
    """Other layers must arrive before it is known whether the image exceeds `MaxRatio`."""


class Budget:
    """Counts the costs of one image. Several threads may call `add`."""

    def __init__(
        self, limits: BuildLimits, stop: Event | None = None, stored_size: int | None = 0
    ) -> None:
        """Start at zero; `check_stop`, `count_steps` and `stoppable` check the flag `stop`.

        `stored_size` is the compressed size of all layers; None until `set_stored_size` is called.
        """
        self.limits = limits
        self._stored_size = stored_size
        self._stop = stop or Event()
        self._lock = Lock()
        self._total = self._work = Cost()
        self._steps = 0

    def layer(self, times: int = 1) -> LayerBudget:
        """Return the counter of a layer that the image names `times` times."""
        return LayerBudget(self, times)

    def set_stored_size(self, size: int) -> None:
        """Set the compressed size of all layers after all of them have arrived.

        The manifest names their sizes earlier, but a layer that never arrives may claim any size.
        """
        with self._lock:
            self._stored_size = size

    @property
    def has_stored_size(self) -> bool:
        """Return whether the compressed size of all layers is known."""
        return self._stored_size is not None

    def add(self, cost: Cost, times: int) -> bool:
        """Add the cost of a layer that the image names `times` times; the cost may be negative.

        Returns False, and adds nothing, if the layers read so far exceed `MaxRatio` and other
        layers have not arrived yet: whether an image is accepted must not depend on the order of
        reading. Raises `ImageTooLarge`, and adds nothing, if a limit is exceeded.
        """
        with self._lock:
            total = self._total.add(cost, times)
            work = self._work.add(cost, 1)
            self._check(*total)
            stored_size = max(work.stored_size, self._stored_size or 0)
            # Subtracting always succeeds, although it subtracts compressed bytes, too.
            if cost.size > 0 and self._exceeds_ratio(work.size, stored_size):
                if self._stored_size is None:
                    return False
                raise self._ratio_error(stored_size)
            self._total, self._work = total, work
            return True

    def check_unpacked(self, size: int) -> None:
        """Raise `ImageTooLarge` if unpacking `size` bytes of the layers exceeds `MaxRatio`.

        Each layer is indexed once. But a layer that the image names several times, below
        directories that symlinks move, is unpacked once for each of these places.
        """
        stored_size = self._stored_size or 0
        if self._exceeds_ratio(size, stored_size):
            raise self._ratio_error(stored_size)

    def _exceeds_ratio(self, size: int, stored_size: int) -> bool:
        return size > RATIO_FREE + self.limits.ratio * stored_size

    def _ratio_error(self, stored_size: int) -> ImageTooLarge:
        return ImageTooLarge.for_limit(
            f"{amount(stored_size)} of the image's layers unpack to more than"
            f" {amount(RATIO_FREE)}, and to more than {self.limits.ratio} times as much.",
            "MaxRatio",
        )

    def _check(self, size: int, entries: int, names: int, _: int) -> None:
        limits = self.limits
        if size > limits.all_size:
            raise ImageTooLarge.for_limit(
                f"The image's layers unpack to more than {amount(limits.all_size)} together.",
                "MaxLayersSize",
            )
        if entries > limits.all_entries:
            raise ImageTooLarge.for_limit(
                f"The image's layers have more than {limits.all_entries} entries together.",
                "MaxLayersEntries",
            )
        if names > limits.names_size:
            raise ImageTooLarge.for_limit(
                "The names and link targets in the image's layers are longer than"
                f" {amount(limits.names_size)} together.",
                "MaxNamesSize",
            )

    def count_steps(self, steps: int) -> None:
        """Count steps of path lookups, one per name; raise `StopRequested` if the flag is set."""
        self._steps += steps
        if self._steps > self.limits.path_steps:
            raise ImageTooLarge.for_limit(
                f"The paths in the image's layers take more than {self.limits.path_steps} steps"
                " through directories and symlinks together.",
                "MaxPathSteps",
            )
        self.check_stop()

    def check_stop(self) -> None:
        """Raise `StopRequested` if the caller's flag is set."""
        if self._stop.is_set():
            raise StopRequested

    def stoppable(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; raise `StopRequested` soon after the caller's flag is set."""
        return stoppable(items, self._stop)


class LayerBudget:
    """Counts the cost of one layer, which is read again if its download was damaged."""

    def __init__(self, image: Budget, times: int) -> None:
        """Count each cost `times` times in `image`."""
        self._image = image
        self._times = times
        self._cost = Cost()
        self.may_wait = True
        """Whether `update` waits for other layers; if not, it raises `LayersPending`."""

    @property
    def is_decidable(self) -> bool:
        """Return whether all layers have arrived, so that `update` does not depend on others."""
        return self._image.has_stored_size

    def reset(self) -> None:
        """Subtract the cost of an earlier reading."""
        self.update(Cost())

    def update(self, cost: Cost, stop: Event | None = None) -> None:
        """Set the cost of this reading so far; raise `ImageTooLarge` if a limit is exceeded.

        If `MaxRatio` depends on layers that have not arrived, waits for them, or raises
        `LayersPending` if it may not wait. Raises `StopRequested` soon after `stop` is set.
        """
        stop = stop or Event()
        while not self._image.add(cost.add(self._cost, -1), self._times):
            if not self.may_wait:
                raise LayersPending
            if stop.wait(_POLL_SECONDS):
                raise StopRequested
        self._cost = cost
