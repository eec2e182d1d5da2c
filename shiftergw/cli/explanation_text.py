"""The lines in which `explain` shows an explanation to people."""

from __future__ import annotations

import time
from collections.abc import Iterator

from shiftergw.errors import amount, printable
from shiftergw.model.explanations import (
    DeliveredImage,
    Explanation,
    ImagePlace,
    LayerPresence,
    Obstacle,
)

_WIDTH = 11
"""Characters of the first column."""

_ACTIONS = {
    "reuse": "downloads nothing: the image is on the system already.",
    "prove": (
        "downloads nothing: the image is on the system already. It is private: the registry is"
        " asked whether the user may read it."
    ),
    "wait": "waits in the queue.",
    "fail": "fails.",
    "unknown": "may succeed or not: not everything could be looked up.",
}


def lines_of(explanation: Explanation) -> Iterator[str]:
    """Yield the lines of an explanation; texts of others in them are not `printable` yet."""
    yield _line("image", explanation.image)
    yield _line("system", f"{explanation.system}, {explanation.architecture}")
    yield _line("login", explanation.user or "none")
    for place in explanation.places:
        yield _line(place.kind, _place(place))
        if place.failure:
            yield _line("", f"passed over: {place.failure}")
        for limit in place.limits:
            account = f"of {printable(limit.user)}" if limit.user else "without a login"
            yield _line("", f"{limit.text}, {account}")
    if explanation.digest:
        yield from _image_lines(explanation)
    yield from _system_lines(explanation)
    yield _line("a pull", _action(explanation))
    for obstacle in explanation.obstacles:
        yield from _obstacle_lines(obstacle)


def _system_lines(explanation: Explanation) -> Iterator[str]:
    """Yield what the system has of the image, and what its policy says."""
    policy = explanation.policy
    if policy is not None:
        verdict = "accepted" if policy.is_accepted else "refused"
        yield _line("policy", f"{verdict} by {policy.requirement}: {policy.reason}")
    if explanation.delivered_image is not None:
        yield from _delivered_lines("delivered", explanation.delivered_image)
    elif explanation.digest:
        yield _line("delivered", "no")
    if explanation.previous_image is not None:
        yield from _delivered_lines("old image", explanation.previous_image)
    if explanation.work:
        yield _line("under way", explanation.work)


def _line(label: str, text: str) -> str:
    return f"{label:{_WIDTH}}{text}".rstrip()


def _place(place: ImagePlace) -> str:
    texts = [
        place.name,
        *([place.url] if place.url else []),
        f"repository {place.repository}",
        *([f"proxy {place.proxy}"] if place.proxy else []),
        *([f"login {printable(place.user)}"] if place.user else []),
        *(["standalone"] if place.standalone else []),
    ]
    return ", ".join(texts)


def _image_lines(explanation: Explanation) -> Iterator[str]:
    by = f", from {explanation.source}"
    if explanation.private:
        by += ", private: the registry asked for the login"
    yield _line("digest", f"{explanation.digest}{by}")
    if explanation.source_digest != explanation.digest:
        yield _line("", f"{explanation.source_digest} is what the name means: an index")
    count, size = explanation.layer_count or 0, explanation.size or 0
    yield _line("layers", f"{count}, {amount(size)}{_rest(explanation)}")
    for layer in explanation.layers:
        yield _line("", f"{layer.digest} {amount(layer.size):>9} {_presence(layer)}".rstrip())
    if count > len(explanation.layers):
        yield _line("", f"and {count - len(explanation.layers)} more")


def _rest(explanation: Explanation) -> str:
    """Return how much of the layers must be downloaded; nothing if that is not known."""
    if explanation.missing_size is None:
        return ""
    if not explanation.missing_size:
        return ", all in the cache"
    return f", {amount(explanation.missing_size)} of them not in the cache"


def _presence(layer: LayerPresence) -> str:
    """Return how much of a layer is in the cache; nothing if that is not known."""
    if layer.cached_size is None:
        return ""
    if layer.cached_size >= layer.size:
        return "in the cache"
    return f"{amount(layer.cached_size)} in the cache" if layer.cached_size else "to be downloaded"


def _delivered_lines(label: str, image: DeliveredImage) -> Iterator[str]:
    texts = [
        image.id,
        *([] if image.size is None else [amount(image.size)]),
        *(["private"] if image.private else []),
        *([] if image.last_pull is None else [f"last pulled {_time(image.last_pull)}"]),
    ]
    yield _line(label, ", ".join(texts))
    if image.seconds:
        stages = ", ".join(f"{stage} {seconds:g} s" for stage, seconds in image.seconds.items())
        yield _line("", f"the delivery took {sum(image.seconds.values()):.1f} s ({stages})")
    if image.copied_bytes:
        sent_size = amount(image.sent_bytes or 0)
        yield _line(
            "", f"the system copied {amount(image.copied_bytes)} of it, {sent_size} were sent"
        )


def _action(explanation: Explanation) -> str:
    if explanation.action != "build":
        return _ACTIONS[explanation.action]
    missing_size, place = explanation.missing_size, explanation.directory
    download = f"downloads {amount(missing_size) if missing_size else 'nothing'}"
    if explanation.is_converted:
        return f"{download}, and delivers the image, which is converted already, to {place}."
    return f"{download}, converts the image, and delivers it to {place}."


def _obstacle_lines(obstacle: Obstacle) -> Iterator[str]:
    until = ""
    if obstacle.retry_at is not None:
        until = f"Until {_time(obstacle.retry_at)} it waits for {obstacle.reason}: "
    yield _line("because", f"{until}{obstacle.what}")
    if obstacle.detail:
        yield _line("", obstacle.detail)
    if obstacle.remedy:
        yield _line("", f"→ {obstacle.remedy}")


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
