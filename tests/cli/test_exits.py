"""How commands end."""

from __future__ import annotations

import pytest
import pytest_twisted

from shiftergw.cli.exits import Refused, code_of, guarded
from shiftergw.errors import (
    BadRequest,
    ConfigurationError,
    ConversionFailed,
    GatewayError,
    ImageNotFound,
    NotAllowed,
    NotAuthenticated,
    NotFound,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (BadRequest, 2),
        (ConfigurationError, 2),
        (NotAllowed, 4),
        (NotAuthenticated, 4),
        (NotFound, 4),
        (ImageNotFound, 1),
        (ConversionFailed, 1),
    ],
)
def test_exit_codes(kind: type[GatewayError], code: int) -> None:
    """1: the image; 2: usage or configuration; 4: not allowed or not found."""
    assert code_of(kind("x")) == code


async def _raise(error: Exception) -> int:
    raise error


@pytest_twisted.ensureDeferred
async def test_errors_are_told_and_not_traced(capsys: pytest.CaptureFixture[str]) -> None:
    """What happened, what to do, and the details that its own user may read."""
    error = ConversionFailed("It broke.", remedy="Mend it.", detail="the end of stderr\n")
    assert await guarded(_raise(error), "") == 1
    assert capsys.readouterr().err == "Error: It broke.\nMend it.\nthe end of stderr\n"
    assert await guarded(_raise(Refused("No.")), "") == 4
    assert capsys.readouterr().err == "Error: No.\n"


@pytest_twisted.ensureDeferred
async def test_faults_of_ours_are_traced() -> None:
    """An exception that nobody foresaw is not dressed up."""
    with pytest.raises(ZeroDivisionError):
        await guarded(_raise(ZeroDivisionError()), "")
