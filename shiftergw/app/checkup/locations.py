"""Find delivered images that cannot be pulled again: their registry is no location any more."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from shiftergw.app.locations import find_unnamed
from shiftergw.config import Config
from shiftergw.errors import BadRequest, NotAllowed
from shiftergw.model.records import ImageRecord
from shiftergw.model.references import ImageReference

GONE_LOCATIONS = "images of registries that are no locations of this gateway"


class LocatedRecords:
    """Judges delivered images by the locations of the configuration, without any request."""

    def __init__(self, config: Config) -> None:
        """Use these locations."""
        self._config = config

    def judge(self, document: Mapping[str, Any]) -> str:
        """Return what is wrong with a READY record: the name of a class of images, or nothing.

        The next pull asks by a tag. If the record knows its location, that must exist, too.
        """
        record = ImageRecord.from_document(document)
        if record.itype != "docker":
            return ""
        references = []
        for tag in record.tags:
            with suppress(BadRequest):  # nobody can pull by such a tag
                references.append(ImageReference.parse(tag))
        try:
            locations = set(map(self._config.locate, references))
        except (BadRequest, NotAllowed):
            return GONE_LOCATIONS
        if record.origin is not None:
            locations.add((record.origin.location, record.origin.repository))
        return "" if all(map(self._is_known, locations)) else GONE_LOCATIONS

    def _is_known(self, place: tuple[str, str]) -> bool:
        location, repository = place
        name = self._config.location_named(location)
        if name in self._config.locations:
            return True
        return find_unnamed(self._config, name, repository) is not None
