"""Tests of the ports that tests use."""

from __future__ import annotations

import socket

import pytest

from tests.parts import free_port


def test_a_reserved_port_refuses_connections_and_takes_a_server() -> None:
    """A port refuses connections before, between and after the times of a server."""
    port = free_port()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)) as server:
            with socket.create_connection(("127.0.0.1", port)):
                connection, _ = server.accept()
            connection.close()


def test_no_other_program_gets_a_reserved_port() -> None:
    """A program that insists on having the port for itself is refused."""
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("127.0.0.1", free_port()))
