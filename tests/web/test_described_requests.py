"""Requests that are made from the description of the interface, to a gateway that runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest_twisted
import requests
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from shiftergw.model.names import HIGHEST_ID
from shiftergw.web import openapi
from shiftergw.web.site import BODY_LIMIT
from tests.golden import program
from tests.golden.make_state import ADMIN
from tests.golden.state import DATABASE, restore
from tests.installed_reactor import reactor
from tests.matrices import LONG, examples
from tests.patience import patient
from tests.plain_imports import imported_without_rewriting
from tests.running_service import ALICE
from tests.web.fakes import listening

with imported_without_rewriting():
    import schemathesis
    import schemathesis.specs.openapi.schemas  # otherwise imported by the first use
    from schemathesis import GenerationMode
    from schemathesis.core.parameters import ParameterLocation

ENDLESS = {"GET /api/events/{system}/", "GET /api/events/{system}/{type}/{image}/"}
"""The routes whose answers do not end."""

PULL = "POST /api/pull/{system}/{type}/{image}/"
LIST = "GET /api/list/{system}/"
WITH_BODY = (PULL, "POST /api/upload/{system}/", "POST /api/doimport/{system}/{type}/{image}/")
"""The routes whose body is JSON."""

SHORT = {LIST, "GET /api/names/{system}/", *WITH_BODY}
"""The routes of the short form: those that have parameters beside their path.

A request to a route is costly to make: the strategies of all routes take 2 s of processor time.
"""

PARTS = st.fixed_dictionaries(
    {
        "system": st.sampled_from([*["mycluster"] * 4, "elsewhere"]),
        "image": st.sampled_from(["lib/ready:1", "closed/ready:1", "lib/pulling:1", "new/app"]),
        "type": st.sampled_from(["docker", "docker", "custom"]),
    }
)
"""What the paths of requests have in the place of random text, which names nothing."""


def is_beyond_schemas(body: Any) -> bool:
    """Return whether a body may be refused for something that a JSON schema cannot say.

    A pattern cannot say that the number in a text is not too high, and 5.0 is an integer. The body
    may be too long.
    """
    text = json.dumps(body, default=str)
    ids = re.findall("[0-9]{10}", text)
    return (
        len(text) > BODY_LIMIT // 2
        or ".0" in text
        or any(int(number) > HIGHEST_ID for number in ids)
    )


def send(url: str, operation: Any, mode: GenerationMode, count: int) -> set[int]:
    """Send `count` requests to a route, and check their answers; return the statuses.

    Requests of the `mode` for negative tests have a body that the description forbids.
    """
    statuses = set()
    session = requests.Session()
    defaults = {"system": "mycluster", "type": "docker", "image": "lib/new"}
    fixed_parts = {part: text for part, text in defaults.items() if f"{{{part}}}" in operation.path}
    cases = operation.as_strategy(mode, path_parameters=fixed_parts)

    @settings(
        max_examples=count,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases, PARTS, st.sampled_from([ALICE, ADMIN]))
    def check(case: Any, parts: dict[str, str], credential: str) -> None:
        assume(not is_beyond_schemas(case.body))
        if mode is GenerationMode.NEGATIVE:
            # The headers may be what is invalid instead, but each request gets a credential below.
            assume(case.meta.components[ParameterLocation.BODY].mode is mode)
            parts["system"] = "mycluster"  # whose existence is asked before the body is read
        for part in case.path_parameters.keys() & parts.keys():
            case.path_parameters[part] = parts[part]
        headers = {"authentication": credential}
        answer = case.call_and_validate(url, session, headers, timeout=patient(20))
        statuses.add(answer.status_code)

    with session:
        check()
    return statuses


def send_all(url: str, count: int) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """Send requests to all routes; return the statuses for proper and for improper ones."""
    schema: Any = schemathesis.openapi.from_dict(json.loads(json.dumps(openapi.document())))
    results = schema.get_all_operations()
    operations = {operation.label: operation for operation in (result.ok() for result in results)}
    proper_routes = operations.keys() - ENDLESS if LONG else SHORT
    improper_routes = WITH_BODY if LONG else (PULL,)
    proper, improper = (
        {name: send(url, operations[name], mode, count) for name in sorted(names)}
        for mode, names in (
            (GenerationMode.POSITIVE, proper_routes),
            (GenerationMode.NEGATIVE, improper_routes),
        )
    )
    return proper, improper


@pytest_twisted.ensureDeferred
async def test_requests_and_answers_are_as_described(tmp_path: Path) -> None:
    """Requests as the description allows them are not refused as invalid, and others are.

    Every answer has a described media type, headers and members. A request without a credential is
    refused.
    """
    clock = Clock()
    clock.advance(restore("0.1.0", tmp_path))
    key_file = tmp_path / "state" / "secret.key"
    async with program.sqlite_store(reactor, tmp_path / DATABASE) as store:
        site = program.gateway_site(store, clock, reactor, key_file, Metrics=True)
        async with listening(site) as port:
            url = f"http://127.0.0.1:{port}"
            proper, improper = await deferToThread(send_all, url, examples(2))
    assert 200 in proper[LIST] & proper[PULL]
    assert 400 in improper[PULL]
