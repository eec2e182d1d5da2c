"""The description of the HTTP interface: it says everything that the recorded answers have."""

from __future__ import annotations

import json
from urllib.parse import quote

from tests.golden.records import load
from tests.golden.test_http import API, REQUESTS
from tests.web.description import problems_of


def test_the_recorded_answers_are_described() -> None:
    """Each recorded answer has the described members, with values of the described types.

    A new member of an answer gets a line in `web/answer_models.py`, a new route one in
    `web/route_descriptions.py`.
    """
    problems = []
    for name, answer in load("http").items():
        method, target, *_ = REQUESTS[name]
        route, _, image = target.partition(" ")
        path = f"{API.format(route)}docker/{quote(image, safe='')}/" if image else target
        if method == "HEAD":
            continue
        body = json.loads(json.dumps(answer["body"]).replace('"<time: float>"', "0.5"))
        media_type = answer["headers"]["Content-Type"]
        problems += problems_of(method, path, answer["status"], media_type, body)
    assert problems == []
