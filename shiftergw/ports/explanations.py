"""Port to what explains pulls for users, outside the gateway's process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from shiftergw.model.explanations import ExplainRequest


class Explainer(Protocol):
    """Explains pulls; the requests to registries are made in a process of their own."""

    async def explain(self, request: ExplainRequest) -> Mapping[str, Any]:
        """Return the `Explanation` as a JSON object of at most `EXPLANATION_BYTES`.

        Raises `TimedOut` if that takes too long, and `Unavailable` if it is impossible now.
        Cancelling the call ends the process.
        """
        ...
