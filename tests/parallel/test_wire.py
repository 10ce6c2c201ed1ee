"""Connections between ranks of any machines: what goes in comes out, and who has no key is turned away."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from miaotui.runtime.parallel.wire import Wire, accept, collect, connect, listening
from miaotui.runtime.parallel.work import Travel

KEY = bytes(range(32))


@contextmanager
def wires(*roles: str) -> Iterator[tuple[list[Wire], dict[str, Wire]]]:
    """Both ends of a wire for each role."""
    accepted: dict[str, Wire] = {}
    with listening("127.0.0.1") as server:
        serving = threading.Thread(target=accept_all, args=(server, len(roles), accepted))
        serving.start()
        made = [connect(server.getsockname(), KEY, role, 10) for role in roles]
        serving.join()
    yield made, accepted
    for wire in (*made, *accepted.values()):
        wire.close()


def accept_all(server: socket.socket, count: int, accepted: dict[str, Wire]) -> None:
    for _ in range(count):
        role, wire = accept(server, KEY, time.monotonic() + 10)
        accepted[role] = wire


def test_arrays_of_any_kind_arrive_as_they_were() -> None:
    sent = {
        "large": np.arange(1_500_000, dtype=np.float32).reshape(3, -1),
        "empty": np.empty((0, 3), np.int64),
        "strided": np.arange(12).reshape(3, 4)[:, ::2],
        "text": np.array(["a", "bc"], object),
        "scalar": np.array(2.5),
        **{str(number): np.full(3, number) for number in range(200)},
    }
    with wires("runs") as ([here], there):
        sender = threading.Thread(target=here.send, args=(Travel(7, "main", 0, 0, sent),))
        sender.start()
        found: Travel = there["runs"].recv()
        sender.join()
    assert (found.number, list(found.values)) == (7, list(sent))
    for name, array in sent.items():
        assert found.values[name].dtype == array.dtype
        np.testing.assert_array_equal(found.values[name], array)
    found.values["large"][0, 0] = 1  # the receiver's own


def test_what_comes_is_collected_until_an_end_is_gone() -> None:
    with wires("first", "second") as (here, there):
        for number, wire in enumerate([*here, *here]):
            wire.send(Travel(number, "main", 0, 0, {}))
        arrived: list[int] = []
        gone: list[int] = []
        channels = [there["first"], there["second"]]
        threads = [threading.Thread(target=lambda: gone.append(collect(channels, note)))]

        def note(travel: Travel) -> None:
            arrived.append(travel.number)
            if len(arrived) == 4:
                here[1].hang_up()

        threads[0].start()
        threads[0].join(10)
        assert (sorted(arrived), gone) == ([0, 1, 2, 3], [1])
        with pytest.raises(EOFError):
            there["second"].recv()


def test_only_who_has_the_key_is_let_in() -> None:
    accepted: dict[str, Wire] = {}
    with listening("127.0.0.1") as server:
        serving = threading.Thread(target=accept_all, args=(server, 1, accepted))
        serving.start()
        address = server.getsockname()
        with pytest.raises(OSError, match="has another key"):
            connect(address, bytes(32), "runs", 10)
        with socket.create_connection(address) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        wire = connect(address, KEY, "runs", 10)
        serving.join()
        wire.send(1)
        assert accepted["runs"].recv() == 1
        wire.close()
        accepted["runs"].close()


def test_nobody_is_waited_for_longer_than_said() -> None:
    with listening("127.0.0.1") as server:
        with pytest.raises(TimeoutError):
            accept(server, KEY, time.monotonic() + 0.05)
        address = server.getsockname()
        with pytest.raises(BlockingIOError):  # it listens, but nobody accepts
            connect(address, KEY, "runs", 0.05)
    with pytest.raises(ConnectionRefusedError):
        connect(address, KEY, "runs", 1)
