"""The configuration and the command lines of the program, for the golden tests.

This module, and `program`, have every name of the program that the golden tests use.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from shiftergw.app import tap
from shiftergw.cli.main import main
from shiftergw.config import Config, file_of_environment
from shiftergw.config.document import Section
from shiftergw.errors import ConfigurationError

__all__ = ["ConfigurationError"]


def configuration_keys() -> dict[str, Any]:
    """Return each key of the configuration with its default, or "required", and its choices.

    `*` in a key stands for a name that the site chooses. Keys that are read and ignored are
    "ignored".
    """
    return dict(_keys(Config, ""))


def _keys(section: type[Section], above: str) -> Iterator[tuple[str, Any]]:
    for field in section.model_fields.values():
        if field.alias is None:
            continue
        words = [word for kind in _kinds(field.annotation) for word in _words(kind)]
        facts: dict[str, Any] = {} if field.is_required() else {"default": _default(field)}
        yield f"{above}{field.alias}", facts | ({"words": words} if words else {}) or "required"
        for kind in _kinds(field.annotation):
            if isinstance(kind, type) and issubclass(kind, Section):
                star = "*." if get_origin(field.annotation) is dict else ""
                yield from _keys(kind, f"{above}{field.alias}.{star}")
    yield from ((f"{above}{name}", "ignored") for name in sorted(section.never_read))


def _kinds(annotation: Any) -> list[Any]:
    kinds = [annotation]
    for kind in kinds:
        kinds += get_args(kind) if get_origin(kind) is not Literal else ()
    return kinds


def _words(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _default(field: Any) -> Any:
    if field.alias == "WorkerThreads":
        return "as many as processors, 4 at most"
    return _plain(field.get_default(call_default_factory=True))


def _plain(value: Any) -> Any:
    """Return a value of the configuration as JSON, by the keys of its document."""
    if isinstance(value, Section):
        fields = type(value).model_fields
        return {
            field.alias: _plain(getattr(value, name))
            for name, field in fields.items()
            if field.alias is not None
        }
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, int | float | str | None) else str(value)


def read_configuration(document: Any, **environ: str) -> tuple[dict[str, Any], list[str]]:
    """Return all values of a document, and the keys that its warnings name.

    Raises `ConfigurationError` as the gateway does at its start.
    """
    configuration = Config.from_document(document, base=Path("/etc/shiftergw"), environ=environ)
    configuration.config.check_supported()
    return _plain(configuration.config), sorted(
        text.partition(":")[0] for text in configuration.warnings
    )


def configuration_file(environ: dict[str, str]) -> Path:
    """Return the file that the environment names."""
    return file_of_environment(environ)


def commands() -> dict[str, Any]:
    """Return the parameters of each command, by its name; "" is the program itself."""
    context = click.Context(main)
    group: dict[str, click.Command] = {"": main}
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        group[name] = command
    return {name: list(map(_parameter, group[name].params)) for name in sorted(group)}


def _parameter(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        text = " ".join([*parameter.opts, *parameter.secondary_opts])
    else:
        text = parameter.human_readable_name
    if isinstance(parameter.type, click.Choice):
        text += " {" + ",".join(map(str, parameter.type.choices)) + "}"
    facts = {
        "flag": getattr(parameter, "is_flag", False),
        "repeatable": getattr(parameter, "multiple", False) or parameter.nargs == -1,
        "required": parameter.required,
        f"${parameter.envvar}": parameter.envvar is not None,
    }
    return ", ".join([text, *(fact for fact, holds in facts.items() if holds)])


def service_options() -> list[str]:
    """Return the options of `twistd shiftergw`."""
    options = tap.Options()
    return sorted(options.longOpt + [f"-{letter}" for letter in options.shortOpt if letter != ":"])


def worker_main() -> Any:
    """Return the main function of `python -m shiftergw.runner`."""
    return import_module("shiftergw.runner").main


def command_environment() -> list[str]:
    """Return the environment variables that replace options of `shiftergw`."""
    return [str(option.envvar) for option in main.params if option.envvar is not None]
