"""Small parts of documents: times, marks, bars, and the navigation of a user."""

from __future__ import annotations

from datetime import UTC, datetime

from twisted.web.template import Element, Flattenable, Tag, renderer, tags

from shiftergw.model.names import is_time
from shiftergw.model.requests import Session
from shiftergw.web.page.documents import template

UNKNOWN = "-"
"""What a cell has if the gateway does not know it."""


def time_tag(seconds: object, *, day_only: bool = False) -> Tag | str:
    """Return a time, in UTC until a script shows it in the time zone of the browser."""
    if not is_time(seconds):
        return UNKNOWN
    moment = datetime.fromtimestamp(float(seconds), UTC)
    if day_only:
        return Tag("time", {"datetime": f"{moment:%Y-%m-%d}"})(f"{moment:%Y-%m-%d}")
    machine_time = f"{moment:%Y-%m-%dT%H:%M:%SZ}"
    return Tag("time", {"datetime": machine_time})(f"{moment:%Y-%m-%d %H:%M} UTC")


def mark(text: str) -> Tag | str:
    """Return a short word beside a name; nothing for an empty text."""
    return tags.span(text, class_="mark") if text else ""


def bar(label: str, done: int, total: int, *, is_hidden: bool = False) -> Tag:
    """Return a bar; one without a known `total` only shows that something happens."""
    attributes: dict[bytes | str, Flattenable] = {"max": "1", "aria-label": label}
    if is_hidden:
        attributes["hidden"] = "hidden"
    elif total > 0:
        attributes["value"] = f"{min(done / total, 1):.4f}"
    return Tag("progress", attributes)


class Navigation(Element):
    """Links to the documents of a user, and the button that ends the session."""

    loader = template("navigation")

    def __init__(self, session: Session, address: str) -> None:
        """Mark the link with this address as the present one."""
        super().__init__()
        self._session = session
        self._address = address

    @renderer
    def navigation(self, _: object, tag: Tag) -> Tag:
        """Fill the names in."""
        return tag.fillSlots(user=self._session.user, system=self._session.system)

    @renderer
    def link(self, _: object, tag: Tag) -> Tag:
        """Mark the link of the present document."""
        if tag.attributes["href"] == self._address:
            return tag(**{"aria-current": "page"})
        return tag
