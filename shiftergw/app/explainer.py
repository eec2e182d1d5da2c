"""Explain one pull for the gateway: `python -m shiftergw.app.explainer --config FILE`.

The request is a JSON object on standard input, since it may have a password. The explanation is one
on standard output. Lines for the gateway's log are on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.app.explain import explain_image, ignore
from shiftergw.app.reactor import run_main
from shiftergw.config import Config
from shiftergw.errors import GatewayError, printable
from shiftergw.model.explanations import EXPLANATION_SECONDS, ExplainRequest

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor


def _log(line: str) -> None:
    sys.stderr.write(f"{printable(line, 1000)}\n")


def main() -> None:
    """Explain the pull and exit; errors are on standard error."""
    parser = argparse.ArgumentParser(prog="shiftergw.app.explainer")
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    # The gateway ends this process in time, but a gateway that was killed cannot.
    signal.alarm(round(EXPLANATION_SECONDS))
    try:
        config = Config.load(arguments.config, os.environ).config
        request = ExplainRequest.from_document(json.load(sys.stdin))
    except GatewayError as error:
        sys.exit(f"{error} {error.detail}")

    async def command(reactor: Reactor) -> int:
        try:
            explanation = await explain_image(reactor, config, request, ignore, _log)
        except GatewayError as error:
            _log(f"{error} {error.detail}")
            return 1
        document = json.dumps(explanation.to_document(), ensure_ascii=False, allow_nan=False)
        sys.stdout.buffer.write(document.encode("utf-8", "backslashreplace"))
        sys.stdout.flush()
        return 0

    sys.exit(run_main(command))


if __name__ == "__main__":
    main()
