"""How the registries of a process are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import random as system_random

from shiftergw.ports import NO_METRICS, Metrics
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.retry import Patience
from shiftergw.sources.registry.shared_breakers import SharedBreakers
from shiftergw.sources.registry.shared_manifests import SharedManifests

OnMirrorFailure = Callable[[str, str], None]
"""Hears the host of a mirror that is passed over, and why."""

ShareManifests = Callable[[str], SharedManifests]
"""Returns the manifests of a registry that the processes of a machine share, by its name."""


def ignore_failure(_mirror: str, _cause: str) -> None:
    """Do nothing: the log has the failure."""


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """Limits, waits, and what the processes of a site share; the defaults share nothing.

    `share_manifests` opens the manifests that the processes of a machine share. `on_mirror_failure`
    hears why a mirror is passed over. `random` returns numbers from 0 to 1, which spread waits.
    """

    limits: Limits = field(default_factory=Limits)
    patience: Patience = field(default_factory=Patience)
    random: Callable[[], float] = system_random
    shared_breakers: SharedBreakers = field(default_factory=SharedBreakers)
    share_manifests: ShareManifests | None = None
    on_mirror_failure: OnMirrorFailure = ignore_failure
    metrics: Metrics = NO_METRICS
