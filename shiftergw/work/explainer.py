"""Explain a pull in a child process: `app/explainer.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.logger import Logger

from shiftergw.errors import ChildFailed, TimedOut, Unavailable, printable
from shiftergw.model.explanations import EXPLANATION_BYTES, EXPLANATION_SECONDS, ExplainRequest
from shiftergw.plumbing.process import Command, run_command

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

_MESSAGE = "The gateway cannot explain pulls at the moment."


class ExplainerProcess:
    """Implements the port `Explainer` with one child process for each request.

    What the child prints on standard error is for the log: details that users do not see.
    """

    _log = Logger()

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        reactor: Reactor,
        seconds: float = EXPLANATION_SECONDS,
    ) -> None:
        """Run `argv`, which reads the request from standard input."""
        self._argv = argv
        self._env = env
        self._reactor = reactor
        self._seconds = seconds

    async def explain(self, request: ExplainRequest) -> Mapping[str, Any]:
        """See the port. The request, which may have a password, is in no file and no argument."""
        descriptor = os.memfd_create("explain")
        content = bytearray()

        def collect(data: bytes) -> None:
            content.extend(data)
            if len(content) > EXPLANATION_BYTES:
                raise Unavailable(_MESSAGE, detail="the process printed more than an explanation")

        try:
            _write_all(descriptor, json.dumps(request.to_document()).encode())
            os.lseek(descriptor, 0, os.SEEK_SET)
            command = Command(self._argv, self._env, stdin=descriptor, total=self._seconds)
            output = await run_command(command, self._reactor, self._reactor, collect)
        except ChildFailed as error:
            self._log_lines(request, error.detail)
            raise Unavailable(_MESSAGE, detail=error.what) from error
        except TimedOut as error:
            raise TimedOut(
                f"The explanation took longer than {self._seconds:.0f} s.",
                remedy="Try again later; if it lasts, tell the site's support.",
                detail=error.what,
            ) from error
        finally:
            os.close(descriptor)
        self._log_lines(request, output.stderr.decode("utf-8", "backslashreplace"))
        return _parse(bytes(content))

    def _log_lines(self, request: ExplainRequest, text: str) -> None:
        """Log what a child has printed on standard error."""
        for line in text.splitlines():
            self._log.info(
                "explanation of {image} on {system}: {line}",
                image=printable(str(request.reference)),
                system=request.system,
                line=printable(line, 1000),
            )


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")


def _parse(content: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(content, parse_constant=_refuse_constant)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Unavailable(_MESSAGE, detail="the process gave no explanation")
    return document
