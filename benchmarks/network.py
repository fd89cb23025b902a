"""A network between processes that can be cut, delayed and made to lose packets, each link by itself.

Every program lives in a network namespace of its own, with one device (TUN) whose packets come to a thread here,
which carries them on, late or not at all, and counts them. It needs Linux and the right to make namespaces; unlike
``tc netem`` it needs no module of the kernel's.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import selectors
import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Self

_TUNSETIFF, _TUN_WITHOUT_HEADER = 0x400454CA, 0x0001 | 0x1000
NET = "10.213.77"
HERE = 254
"""The last byte of this process's own address."""


@dataclass
class Link:
    """How one program is connected, as it can be changed at any time.

    Args:
        delay: seconds that a packet takes longer, each way.
        loss: share of the packets that get lost, each way.
        up, down: whether packets from it, and to it, arrive at all.
        sent: bytes that came from it.
    """

    delay: float = 0.0
    loss: float = 0.0
    up: bool = True
    down: bool = True
    sent: int = 0

    def cut(self) -> None:
        """Let nothing through, and tell nobody."""
        self.up = self.down = False

    def mend(self) -> None:
        """Let everything through."""
        self.up = self.down = True


@dataclass
class Network:
    """Namespaces by the names of programs; a context manager. The first has the address ``NET.1``.

    Raises:
        OSError, subprocess.CalledProcessError: where it is not allowed.
    """

    names: tuple[str, ...]
    seed: int = 0
    links: dict[str, Link] = field(default_factory=dict)
    _devices: dict[int, int] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        """Make it."""
        try:
            for number, name in enumerate(self.names, 1):
                self.links[name] = Link()
                _ip("netns", "add", self.space(name))
                self._device(number, name)
            self._device(HERE, "")
        except BaseException:
            self.__exit__()
            raise
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        self._over.set()
        if hasattr(self, "_thread"):
            self._thread.join()
        for device in self._devices.values():
            os.close(device)
        for name in self.links:
            subprocess.run(["ip", "netns", "delete", self.space(name)], check=False, capture_output=True)

    def space(self, name: str) -> str:
        """The namespace of a program."""
        return f"hansa{os.getpid()}-{self.names.index(name)}"

    def inside(self, name: str) -> tuple[str, ...]:
        """The words before a command that let it run there."""
        return ("ip", "netns", "exec", self.space(name))

    def _device(self, number: int, name: str) -> None:
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self._devices[number] = handle
        device = f"hz{os.getpid() % 100_000}n{number}"
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH", device.encode(), _TUN_WITHOUT_HEADER))
        where = ("-n", self.space(name)) if name else ()
        if name:
            _ip("link", "set", device, "netns", self.space(name))
            _ip(*where, "link", "set", "lo", "up")
        _ip(*where, "addr", "add", f"{NET}.{number}/24", "dev", device)
        _ip(*where, "link", "set", device, "mtu", "9000", "up")

    def _carry(self) -> None:
        """Take every packet to the device of its address."""
        chance, late = random.Random(self.seed), list[tuple[float, int, int, bytes]]()
        by = {number: self.links[name] for number, name in enumerate(self.names, 1)} | {HERE: Link()}
        count, waiting = 0, selectors.DefaultSelector()
        for number, device in self._devices.items():
            waiting.register(device, selectors.EVENT_READ, number)
        while not self._over.is_set():
            pause = min(0.05, max(0.0, late[0][0] - time.monotonic())) if late else 0.05
            for key, _ in waiting.select(pause):
                for _ in range(64):
                    try:
                        packet = os.read(key.fd, 1 << 16)
                    except BlockingIOError:
                        break
                    there = by.get(packet[19]) if len(packet) > 20 and packet[0] >> 4 == 4 else None
                    here, count = by[key.data], count + 1
                    here.sent += len(packet)
                    if there is None or not (here.up and there.down):
                        continue
                    if here.loss + there.loss and chance.random() < here.loss + there.loss:
                        continue
                    due = time.monotonic() + here.delay + there.delay
                    heapq.heappush(late, (due, count, packet[19], packet))
            while late and late[0][0] <= time.monotonic():
                _, _, number, packet = heapq.heappop(late)
                try:
                    os.write(self._devices[number], packet)
                except OSError:  # its queue is full: lost, as elsewhere
                    continue


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
