"""Runs between processes of any machines: TCP connections whose ends know each other by a key."""

from __future__ import annotations

import os
import pickle
import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any, TypeAlias

import numpy as np

from .work import Travel

Address: TypeAlias = tuple[str, int]

_AT_ONCE = 64
"""Buffers that one call hands to the system: fewer than any system's limit."""

_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A machine that vanishes closes nothing: asked after 10 idle seconds, taken for gone after 25."""

_SILENT = 2.0
"""Seconds after which one who connected and says nothing is turned away."""


class Wire:
    """What ``send`` is given comes out of ``recv`` at the other end; arrays go as they lie in memory.

    To be made by ``connect`` and ``accept``: what comes in is unpickled, so the other end must be known.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        # small messages go at once
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def send(self, message: Any) -> None:
        """Raises: OSError if the other end is gone."""
        arrays: list[pickle.PickleBuffer] = []
        text = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
        parts = [memoryview(text), *(array.raw() for array in arrays)]
        sizes = struct.pack(f"<{1 + len(parts)}Q", len(parts), *(len(part) for part in parts))
        left = [memoryview(sizes), *(part for part in parts if len(part))]
        while left:
            sent = self._socket.sendmsg(left[:_AT_ONCE])
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]

    def recv(self) -> Any:
        """The next message. Its arrays are the receiver's own. Raises: EOFError, OSError at the end."""
        (count,) = struct.unpack("<Q", self._bytes(8))
        sizes = struct.unpack(f"<{count}Q", self._bytes(8 * count))
        text, *arrays = [self._bytes(size) for size in sizes]
        return pickle.loads(text, buffers=arrays)

    def _bytes(self, size: int) -> memoryview:
        found = left = np.empty(size, np.uint8).data
        while left:
            count = self._socket.recv_into(left, 0, socket.MSG_WAITALL)
            if count == 0:
                raise EOFError
            left = left[count:]
        return found

    def hang_up(self) -> None:
        """End it, for threads too that send or receive right now."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Free it."""
        self._socket.close()


def listening(host: str) -> socket.socket:
    """A socket that waits for connections at any free port of ``host``."""
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def connect(address: Address, key: bytes, role: str, seconds: float) -> Wire:
    """A wire to whoever accepts there. ``role``: what it is for.

    Raises: OSError if nobody does, or not with this ``key``.
    """
    made = socket.create_connection(address, seconds)
    try:
        _prove(made, key, seconds, first=False)
        wire = Wire(made)
        wire.send(role)
    except BaseException:
        made.close()
        raise
    return wire


def accept(server: socket.socket, key: bytes, deadline: float) -> tuple[str, Wire]:
    """The next who has ``key``, and what its wire is for; others are turned away.

    ``deadline``: on the clock of ``time.monotonic``. Raises: OSError if nobody came by then.
    """
    while True:
        left = max(0.001, deadline - time.monotonic())
        server.settimeout(left)
        made, _ = server.accept()
        try:
            _prove(made, key, min(left, _SILENT), first=True)
            wire = Wire(made)
            return wire.recv(), wire
        except (OSError, EOFError):
            made.close()


def collect(channels: Sequence[Connection[Any, Any] | Wire], arrived: Callable[[Travel], None]) -> int:
    """Hand whatever comes to ``arrived`` until a channel ends; which one it was."""
    with selectors.DefaultSelector() as selector:
        for number, channel in enumerate(channels):
            selector.register(channel.fileno(), selectors.EVENT_READ, number)
        while True:
            for ready, _ in selector.select():
                try:
                    arrived(channels[ready.data].recv())
                except (EOFError, OSError):
                    return int(ready.data)


def _prove(made: socket.socket, key: bytes, seconds: float, *, first: bool) -> None:
    """Both ends show that they have ``key``, without sending it. Raises: OSError if one has not."""
    made.settimeout(None)
    limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    try:
        with Connection(os.dup(made.fileno())) as spoken:
            for turn in (first, not first):
                (deliver_challenge if turn else answer_challenge)(spoken, key)
    except (AuthenticationError, AssertionError, EOFError) as error:
        raise OSError("has another key") from error
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bytes(len(limit)))
