"""Find limits of real time that do not grow with the load of the machine; see `tests.patience`."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

WAITS = frozenset(
    {
        *("check_call", "check_output", "communicate", "create_connection", "join", "result"),
        *("run", "urlopen", "wait"),
    }
)
"""Names of functions that wait for a process, a thread or a peer, at most for a given time."""

LIMITED_BY_POSITION = frozenset({"join", "result", "wait"})
"""Those of them whose first argument is the limit."""

CLOCKS = frozenset({"time.monotonic", "time.perf_counter", "time.time"})
REACTORS = frozenset({"reactor", "REACTOR", "real"})
"""Names that the tests give to the real reactor, whose method `seconds` is a real clock."""

LONG_SECONDS = 1
"""A shorter limit is meant to expire."""


def fixed_limits(sources: Mapping[str, str]) -> list[str]:
    """Return the places of waits and of measured times whose upper limit is a plain number."""
    return [
        f"{place}:{node.lineno} {ast.unparse(node)}"
        for place, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Call) and any(map(_is_long, _limits_of(node))))
        or (isinstance(node, ast.Compare) and _has_fixed_duration(node))
    ]


def _limits_of(call: ast.Call) -> Iterator[ast.expr]:
    name = ast.unparse(call.func).rpartition(".")[2]
    if name in WAITS:
        yield from (keyword.value for keyword in call.keywords if keyword.arg == "timeout")
    if name in LIMITED_BY_POSITION:
        yield from call.args[:1]


def _is_long(value: ast.expr) -> bool:
    number = _number(value)
    return number is not None and number >= LONG_SECONDS


def _number(value: ast.expr) -> float | None:
    """Return the number that an expression is, if it is one."""
    number = value.value if isinstance(value, ast.Constant) else None
    return float(number) if type(number) in {int, float} else None  # type: ignore[arg-type]


def _has_fixed_duration(comparison: ast.Compare) -> bool:
    """Return whether a difference of two readings of a clock must be less than a number."""
    terms = [comparison.left, *comparison.comparators]
    return any(
        isinstance(operation, ast.Lt | ast.LtE)
        and _is_duration(term)
        and _number(limit) is not None
        for term, operation, limit in zip(terms, comparison.ops, terms[1:], strict=False)
    )


def _is_duration(value: ast.expr) -> bool:
    return (
        isinstance(value, ast.BinOp)
        and isinstance(value.op, ast.Sub)
        and isinstance(value.left, ast.Call)
        and _is_real_clock(ast.unparse(value.left.func))
    )


def _is_real_clock(function: str) -> bool:
    owner, _, name = function.rpartition(".")
    return function in CLOCKS or (owner in REACTORS and name == "seconds")
