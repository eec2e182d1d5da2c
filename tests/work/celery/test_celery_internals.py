"""The inner parts of Celery, kombu and py-amqp that we use exist in the installed versions."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from operator import attrgetter

import pytest
from amqp.transport import SSLTransport
from celery import bootsteps
from celery.worker.consumer import Consumer
from celery.worker.consumer.tasks import Tasks
from celery.worker.request import Request
from kombu.connection import Connection
from kombu.transport import pyamqp

from shiftergw.work import celery as room
from shiftergw.work.celery import tls
from shiftergw.work.celery.consumer import CancelStep, MachineConsumer, TaskStep
from shiftergw.work.celery.slot_gate import JobRequest, SlotGateStep
from shiftergw.work.celery.supervision import SupervisionStep

OVERRIDES: list[tuple[type, type, set[str]]] = [
    (
        Consumer,
        MachineConsumer,
        {
            "Blueprint",
            "__init__",
            "create_task_handler",
            "ensure_connected",
            "on_connection_error_after_connected",
        },
    ),
    (Tasks, TaskStep, {"qos_global", "requires"}),
    (bootsteps.ConsumerStep, CancelStep, {"get_consumers", "requires", "start"}),
    (
        bootsteps.StartStopStep,
        SlotGateStep,
        {"__init__", "requires", "start", "stop"},
    ),
    (bootsteps.StartStopStep, SupervisionStep, {"__init__", "requires", "start", "stop"}),
    (Request, JobRequest, {"on_failure", "on_success", "on_timeout"}),
    (SSLTransport, tls._TlsSocket, {"_wrap_socket"}),
    (pyamqp.Connection, tls._Connection, {"Transport"}),
    (pyamqp.SSLTransport, tls.BrokerTransport, {"Connection"}),
]
"""A class, our subclass of it, and the members that the subclass replaces."""

MEMBERS = {
    "celery.app.amqp": ["AMQP.Producer", "AMQP.queues", "Queues.consume_from"],
    "celery.app.events": ["Events.Dispatcher"],
    "celery.app.task": ["Task.Strategy"],
    "celery.concurrency.prefork": ["TaskPool.num_processes"],
    "celery.events": ["get_exchange"],
    "celery.worker.consumer": ["Consumer.call_soon", "Consumer.pool", "Consumer.timer"],
    "celery.worker.consumer.connection": ["Connection"],
    "celery.worker.consumer.consumer": ["Evloop"],
    "celery.worker.consumer.events": ["Events"],
    "celery.worker.request": ["Request.id", "Request.revoked", "Request.terminate"],
    "celery.worker.state": ["active_requests", "maybe_shutdown", "requests", "task_reserved"],
    "kombu.common": ["QoS.set"],
    "kombu.connection": ["Connection.collect", "Connection.ensure_connection"],
    "kombu.message": ["Message.reject_log_error"],
    "kombu.messaging": [
        "Consumer.add_queue",
        "Consumer.cancel_by_queue",
        "Consumer.consuming_from",
    ],
    "kombu.transport": ["TRANSPORT_ALIASES"],
    "amqp.connection": ["Connection.sock"],
}
"""Functions, classes and their members, by module."""

ASSIGNMENTS = {
    "celery.app.base": ["self.steps"],
    "celery.worker.consumer.consumer": [
        "self.app",
        "self.channel_errors",
        "self.connection_errors",
        "self.controller",
        "self.hostname",
        "self.on_task_request",
    ],
    "celery.worker.consumer.events": ["c.event_dispatcher"],
    "celery.worker.consumer.tasks": ["c.qos", "c.task_consumer"],
    "celery.worker.request": ["self._app", "self._args"],
    "celery.worker.worker": ["self.soft_time_limit", "self.time_limit"],
    "kombu.common": ["self.value"],
}
"""Members that the code of a module assigns to an object."""


@pytest.mark.parametrize(("base", "subclass", "names"), OVERRIDES)
def test_overridden_members_are_listed(base: type, subclass: type, names: set[str]) -> None:
    """Our subclass replaces exactly the listed members, and all of them exist in its base."""
    own_names = {"__module__", "__doc__", "__firstlineno__", "__static_attributes__"}
    # Celery's metaclass of steps gives each class a name and requirements.
    own_names |= {"name", "__qualname__"} if issubclass(base, bootsteps.Step) else set()
    assert issubclass(subclass, base)
    assert {name for name in vars(subclass) if hasattr(base, name)} - own_names == names


@pytest.mark.parametrize(("base", "subclass", "names"), OVERRIDES)
def test_overridden_methods_accept_the_same_arguments(
    base: type, subclass: type, names: set[str]
) -> None:
    """Each positional argument of a method that Celery calls has a place in ours."""
    for name in names:
        method = getattr(base, name)
        if inspect.isclass(method) or not callable(method) or method is object.__init__:
            continue
        arguments = [
            parameter.name
            for parameter in inspect.signature(method).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            and parameter.default is parameter.empty
        ]
        inspect.signature(getattr(subclass, name)).bind_partial(*arguments)


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in MEMBERS.items() for name in names]
)
def test_inner_members_exist(module: str, name: str) -> None:
    """The member can be looked up in its module."""
    attrgetter(name)(import_module(module))


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in ASSIGNMENTS.items() for name in names]
)
def test_inner_attributes_are_assigned(module: str, name: str) -> None:
    """The source of the module assigns the attribute."""
    assert re.search(rf"\b{re.escape(name)}\b[^=(]*= ", inspect.getsource(import_module(module)))


def test_a_connection_attempt_may_raise_the_drivers_error() -> None:
    """Kombu's `ensure_connection` still has the option that keeps errors as they are."""
    parameters = inspect.signature(Connection._ensure_connection).parameters
    assert {"max_retries", "reraise_as_library_errors"} <= set(parameters)


def test_each_inner_name_is_documented() -> None:
    """The list in the docstring of the package has each name that these tests check."""
    names = {name for _, _, members in OVERRIDES for name in members}
    names |= {name for members in MEMBERS.values() for name in members}
    names |= {name for members in ASSIGNMENTS.values() for name in members}
    words = set(re.findall(r"\w+", room.__doc__ or ""))
    last_words = {name.rsplit(".", 1)[-1] for name in names}
    assert {word for word in last_words if not {word, word.removeprefix("_")} & words} == set()
