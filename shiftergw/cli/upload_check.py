"""Ask the gateways whether they take an upload, before its bytes are read."""

from __future__ import annotations

import json
from collections.abc import Mapping

from twisted.internet.defer import Deferred

from shiftergw.cli import answers
from shiftergw.cli.exits import (
    BEST_TO_WORST,
    FAILURE,
    MISUSE,
    NO_GATEWAY,
    REFUSAL,
    InvalidRequest,
    Misuse,
    NoGateway,
    RequestRefused,
    Stop,
    code_of,
    text_of,
)
from shiftergw.cli.remote import Remote
from shiftergw.errors import GatewayError
from shiftergw.plumbing.gather import cancel_all

_STOPS: dict[int, type[Stop]] = {
    FAILURE: Stop,
    MISUSE: Misuse,
    NO_GATEWAY: NoGateway,
    REFUSAL: RequestRefused,
}
"""An error with each exit code."""


async def check_upload(remotes: Mapping[str, Remote], name: str, size: int | None) -> int | None:
    """Raise an error if no system takes an upload of `size` bytes for the image `name`.

    If some do, the others refuse it again when their upload is declared. Returns the bytes of the
    largest upload that one of them takes, None if one does not say. Raises the error of the only
    system, or one with a line for each and the exit code that counts for all of them.
    """
    checks = {
        system: Deferred.fromCoroutine(_limit_or_refusal(remote, name, size))
        for system, remote in remotes.items()
    }
    try:
        answers_of_systems = {system: await check for system, check in checks.items()}
    finally:
        cancel_all(checks.values())
    errors: dict[str, Stop | GatewayError] = {}
    limits: list[int | None] = []
    for system, answer in answers_of_systems.items():
        if isinstance(answer, Stop | GatewayError):
            errors[system] = answer
        else:
            limits.append(answer)
    if limits:
        known_limits = [limit for limit in limits if limit is not None]
        return max(known_limits) if len(known_limits) == len(limits) else None
    if len(errors) == 1:
        raise next(iter(errors.values()))
    codes, lines = [], []
    for system, error in errors.items():
        text = error.message if isinstance(error, Stop) else text_of(error)
        codes.append(error.exit_code if isinstance(error, Stop) else code_of(error))
        lines += [f"{system}: {line}" for line in text.splitlines()]
    raise _STOPS[max(codes, key=BEST_TO_WORST.index)]("\n".join(lines))


async def _limit_or_refusal(
    remote: Remote, name: str, size: int | None
) -> int | Stop | GatewayError | None:
    members = {"name": name} if size is None else {"name": name, "size": size}
    try:
        return await remote.ask_first(
            "POST", ["upload"], answers.parse_upload_limit, body=json.dumps(members)
        )
    except InvalidRequest:
        return None  # an earlier version misses the digest; it answers the declaration
    except (Stop, GatewayError) as error:
        return error
