"""A replacement for the `shifterimg` client of existing sites, as strict and as brittle as it.

It copies the observed behavior of the real client: the headers that it requires, the answers that
it silently ignores, its crashes, and its polls. It uses only the standard library, so that it
shares no code with the gateway. It blocks: call it from a thread, or against a gateway in another
process.
"""

from __future__ import annotations

import json
import random
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from tests.patience import patient

TRANSITIONAL = frozenset(
    {"MISSING", "INIT", "PENDING", "PULLING", "EXAMINATION", "CONVERSION", "TRANSFER"}
)
MODES = frozenset({"images", "lookup", "pull", "pullnb", "expire", "autoexpire"})
TYPES = frozenset({"docker", "custom", "id", "local"})


class ClientCrashedError(Exception):
    """The real client would end with a segmentation fault here."""


class _CurlError(Exception):
    """The gateway did not answer; the argument is libcurl's number."""


@dataclass
class Outcome:
    """The result of a run: exit code, standard output, and the states of a pull, in order."""

    code: int
    out: str = ""
    states: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """Return the lines of standard output."""
        return self.out.splitlines()


@dataclass
class ShifterImg:
    """The client of one user: `ShifterImg([url], "mycluster", "good:ann:ann").run("images")`.

    `credential` may be a function, called for each request. `patience` is the test's own limit
    in seconds; the real client waits without a limit.
    """

    gateways: Sequence[str]
    system: str
    credential: str | Callable[[], str]
    default_type: str = "docker"
    interval: float = 0.5
    patience: float = 60
    on_poll: Callable[[str], object] = lambda state: None

    def run(self, *arguments: str) -> Outcome:
        """Run a command line such as `("--user", "2001", "pull", "docker:ubuntu:24.04")`."""
        rest = list(arguments)
        acl: dict[str, str] = {}
        while rest and rest[0].startswith("--"):
            option = rest.pop(0)
            if option == "--verbose":
                continue
            if option not in {"--user", "--group"} or not rest:
                return Outcome(1, "usage")
            ids = [i for i in rest.pop(0).split(",") if i.isdigit() and int(i) > 0]
            if ids:
                acl["allowed_uids" if option == "--user" else "allowed_gids"] = ",".join(ids)
        mode, image = (rest[0] if rest else ""), (rest[1] if len(rest) > 1 else "")
        if mode not in MODES:
            return Outcome(1, "Invalid mode specified\n")
        body = json.dumps(acl, separators=(",", ":")).encode() if acl else b""
        for gateway in random.sample(list(self.gateways), len(self.gateways)):
            outcome = self._mode(gateway, mode, image, body)
            if outcome.code == 0:
                return outcome
        return outcome

    def _mode(self, gateway: str, mode: str, image: str, body: bytes) -> Outcome:
        path = self._path(mode, image)
        try:
            status, answer = self._ask(gateway, "POST" if "pull" in mode else "GET", path, body)
            if status != 200:
                return Outcome(1)
            if answer is None or "expire" in mode:
                return Outcome(0)
            if mode == "pull":
                return self._pull(gateway, path, body, answer)
            return {"images": _images, "lookup": _lookup, "pullnb": _pull_once}[mode](answer)
        except ConnectionRefusedError:
            return Outcome(1, "ERROR: failed to contact the image gateway.\n")
        except _CurlError as error:
            return Outcome(1, f"err {error}\n")

    def _path(self, mode: str, image: str) -> str:
        route = {"images": "list", "pullnb": "pull"}.get(mode, mode)
        path = f"/api/{route}/{self.system}/"
        if not image:
            return path
        word, colon, rest = image.partition(":")
        itype, name = (word, rest) if colon and word in TYPES else (self.default_type, image)
        slash = "/" if itype in {"docker", "local"} else ""
        return f"{path}{itype}/{quote(re.sub(f'[^A-Za-z0-9_:.+@{slash}-]', '', name), safe='')}/"

    def _pull(self, gateway: str, path: str, body: bytes, answer: Any) -> Outcome:
        outcome = Outcome(0)
        deadline = time.monotonic() + patient(self.patience)
        while answer is not None:
            state = _string(answer, "status")
            outcome.states.append(state)
            self.on_poll(state)
            if len(outcome.states) > 1 and state not in TRANSITIONAL:
                outcome.out += "\n"
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"the pull still is {state} after {self.patience} s")
            time.sleep(self.interval)
            try:
                status, answer = self._ask(gateway, "POST", path, body)
            except ConnectionRefusedError:
                break
            except _CurlError as error:
                outcome.out += f"err {error}"
                break
            if status != 200:
                break
        return outcome

    def _ask(self, gateway: str, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        """Return the status and the JSON object, or None for a body that the client ignores."""
        url = urlsplit(gateway if "://" in gateway else f"http://{gateway}")
        credential = self.credential if isinstance(self.credential, str) else self.credential()
        head = [
            f"{method} {url.path}{path} HTTP/1.1",
            f"Host: {url.netloc}",
            "Accept: */*",
            f"authentication:{credential}",
        ]
        if method == "POST":
            head += ["Content-type: application/json", f"Content-Length: {len(body)}"]
        with socket.create_connection(
            (url.hostname, url.port or 80), timeout=patient(30)
        ) as connection:
            connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
            return _read(connection)


def _images(answer: Any) -> Outcome:
    records = answer.get("list", answer.get("data", []))
    rows: list[tuple[str, str]] = []
    for record in records:
        tags = record["tag"] if isinstance(record["tag"], list) else [record["tag"]]
        last_pull = record["last_pull"] if isinstance(record["last_pull"], float) else 0
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(last_pull))
        start = f"{record['system']:10} {record['itype']:10} {record['status']:8}"
        rows += [(tag, f"{start} {record['id']:.10}   {when} {tag:30}") for tag in tags]
    if records and not rows:
        return Outcome(1)
    return Outcome(0, "".join(f"{line}\n" for _, line in sorted(rows)))


def _lookup(answer: Any) -> Outcome:
    return Outcome(0, f"{_string(answer, 'id')}\n")


def _pull_once(answer: Any) -> Outcome:
    state = _string(answer, "status")
    return Outcome(0 if state in TRANSITIONAL else 1, states=[state])


def _read(connection: socket.socket) -> tuple[int, Any]:
    data_so_far = b""
    while b"\r\n\r\n" not in data_so_far:
        data = connection.recv(65536)
        if not data:
            raise _CurlError(52)
        data_so_far += data
    head, _, body = data_so_far.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    status = int(status_line.split()[1])
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    if "content-length" not in headers or "transfer-encoding" in headers:
        return status, None
    length = int(headers["content-length"])
    while len(body) < length:
        data = connection.recv(65536)
        if not data:
            raise _CurlError(18)
        body += data
    if headers.get("content-type") != "application/json" or len(body) != length:
        return status, None
    return status, _parse(body)


def _parse(body: bytes) -> Any:
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    if not isinstance(answer, dict):
        raise ClientCrashedError(f"top level is {type(answer).__name__}")
    return answer


def _string(answer: dict[str, Any], member: str) -> str:
    value = answer.get(member)
    if not isinstance(value, str):
        raise ClientCrashedError(f"{member} is {value!r}")
    return value
