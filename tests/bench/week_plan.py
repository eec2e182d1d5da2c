"""The week of a site, as a list of events by day: what is pushed, and who pulls what to where.

A distribution is a layer that several bases share, a base is a distribution with a layer of tools,
and an image is a base with up to three layers of its own. Each night some images get a new upper
layer. In the night to Thursday the first distribution is updated, and all that builds on it is
built anew. Tags move each time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
UPDATE_DAY = 3
SYSTEMS: Mapping[str, float] = {"alpha": 0.5, "beta": 0.3, "remote": 0.2}
"""The systems and their shares of the pulls."""

REMOTE = "remote"
_RELEASED_SHARE = 0.1
_WEEKEND_SHARE = 0.4
_LAYERS = (1, 1, 2, 3)


@dataclass(frozen=True)
class WeekSize:
    """Numbers of images, bases, distributions, and pulls a working day; bytes of their layers.

    `layer_bytes` is the size of the largest layer of an image of its own.
    """

    images: int
    bases: int
    distributions: int
    pulls: int
    distribution_bytes: int
    tools_bytes: int
    layer_bytes: int


SIZES = {
    "tiny": WeekSize(4, 2, 1, 4, 300_000, 200_000, 50_000),
    "small": WeekSize(24, 4, 2, 24, 8_000_000, 4_000_000, 1_000_000),
    "medium": WeekSize(80, 8, 3, 80, 30_000_000, 15_000_000, 5_000_000),
    "full": WeekSize(200, 12, 4, 200, 50_000_000, 25_000_000, 10_000_000),
}


@dataclass(frozen=True)
class LayerPlan:
    """A layer: its size in bytes, or the layer that it is built anew from.

    The new one has the files of `origin`, of which a `share` is replaced, and one more.
    """

    name: str
    size: int = 0
    origin: LayerPlan | None = None
    share: float = 0.0


@dataclass(frozen=True)
class Push:
    """Let the tag of an image name these layers."""

    name: str
    layers: tuple[LayerPlan, ...]


@dataclass(frozen=True)
class PullRequested:
    """Pull an image to a system."""

    system: str
    name: str


@dataclass(frozen=True)
class Day:
    """What is pushed in the night, and pulled by day."""

    pushes: Sequence[Push]
    pulls: Sequence[PullRequested]


@dataclass
class _Planner:
    size: WeekSize
    chance: random.Random
    layers: dict[str, LayerPlan] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)

    def days(self) -> Iterator[Day]:
        """Yield the days of the week."""
        images = range(self.size.images)
        popularity = [1 / rank for rank in range(1, self.size.images + 1)]
        self.chance.shuffle(popularity)
        own_layers = [self.chance.choice(_LAYERS) for _ in images]
        for day in range(len(DAYS)):
            changes = set(images) if day == 0 else self._releases(images, own_layers)
            if day == UPDATE_DAY:
                changes |= self._update(images, own_layers)
            pushes = [self._push(image, own_layers[image]) for image in sorted(changes)]
            count = self.size.pulls
            if day > len(DAYS) - 3:
                count = max(1, round(count * _WEEKEND_SHARE))
            systems = self.chance.choices(list(SYSTEMS), list(SYSTEMS.values()), k=count)
            names = self.chance.choices(images, popularity, k=count)
            pulls = [
                PullRequested(system, name_of(image))
                for system, image in zip(systems, names, strict=True)
            ]
            yield Day(pushes, pulls)

    def _releases(self, images: Sequence[int], own_layers: Sequence[int]) -> set[int]:
        """Give some images a new upper layer."""
        changes = {image for image in images if self.chance.random() < _RELEASED_SHARE}
        for image in sorted(changes):
            self._revise(f"image{image}-{own_layers[image] - 1}", 0.5)
        return changes

    def _update(self, images: Sequence[int], own_layers: Sequence[int]) -> set[int]:
        """Update the first distribution; all that builds on it is built anew."""
        self._revise("distribution0", 0.1)
        changes = {image for image in images if self._distribution(self._base(image)) == 0}
        for base in sorted({self._base(image) for image in changes}):
            self._revise(f"tools{base}", 0.0)
        for image in sorted(changes):
            for number in range(own_layers[image]):
                self._revise(f"image{image}-{number}", 0.0)
        return changes

    def _push(self, image: int, own_layers: int) -> Push:
        base = self._base(image)
        size = self.size
        layers = [
            self._layer(f"distribution{self._distribution(base)}", size.distribution_bytes),
            self._layer(f"tools{base}", size.tools_bytes),
        ]
        for number in range(own_layers):
            name = f"image{image}-{number}"
            if name not in self.layers:
                self._layer(name, int(size.layer_bytes * 50 ** -self.chance.random()))
            layers.append(self.layers[name])
        return Push(name_of(image), tuple(layers))

    def _layer(self, name: str, size: int) -> LayerPlan:
        return self.layers.setdefault(name, LayerPlan(name, size))

    def _revise(self, name: str, share: float) -> None:
        """Build a layer anew."""
        self.revisions[name] = number = self.revisions.get(name, 0) + 1
        self.layers[name] = LayerPlan(f"{name}-{number}", 0, self.layers[name], share)

    def _base(self, image: int) -> int:
        return image % self.size.bases

    def _distribution(self, base: int) -> int:
        return base % self.size.distributions


def name_of(image: int) -> str:
    """Return the name of an image, with its tag."""
    return f"week/image{image}:latest"


def plan_week(size: WeekSize, seed: int) -> list[Day]:
    """Return the days of a week; the same seed gives the same week."""
    return list(_Planner(size, random.Random(seed)).days())
