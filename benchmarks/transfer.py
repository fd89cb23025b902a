"""Large models: ten parties x 100 MB in one round, and a hundred; beside bare TCP, and a bare gRPC that discards.

Nothing is trained: an agent answers with the parameters that it was sent. All else is the program: the gate, the
checks, mutual TLS, answers that are durable at the agent before they are sent and at the coordinator before they are
acknowledged, the sum, the checkpoint. A round is the time from one ask to the next in the coordinator's own record.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

import hansa as hs
from benchmarks.light import Crowd, main
from hansa import tensors
from hansa.agent.home import AgentHome
from hansa.agent.left import Left
from hansa.agent.policy import Offer
from hansa.agent.service import Agent
from hansa.backends.remote import Remote
from hansa.cli.operator import call
from hansa.cli.programs import Programs
from hansa.contribution import Contribution, Values
from hansa.crypto import keys, pki
from hansa.crypto.token import Token
from hansa.methods.base import Answer
from hansa.methods.fedavg import FedAvg
from hansa.wire import messages as m
from hansa.wire.channel import MESSAGE
from hansa.wire.client import Client
from hansa.wire.rpcs import FETCH, INVITE, PARTIES

MB = 1_000_000
FEATURES, CHUNK = 1000, 1 << 20
PROCESSES = 4
"""Of light parties, and of the clients of bare gRPC when there are many."""

AGENTS, LIGHT, ROUNDS = 10, 100, 9


def study(size: int, rounds: int, name: str = "tiny") -> hs.Federation:
    """A softmax regression of ``size`` bytes in float32."""
    task = hs.SoftmaxRegression(target="y", classes=tuple(range(size // 4 // (FEATURES + 1))), precision="float32")
    moments, evaluation = hs.Moments(standardise=False), hs.Evaluate(every=0, holdout=0.0)
    method = hs.FedAvg(weights="equal")
    given = {"task": task, "method": method, "rounds": rounds, "preprocessing": moments, "evaluation": evaluation}
    return hs.Federation(name="transfer", dataset=name, **given)


def table() -> hs.Table:
    """Eight rows, since an agent lets no sum over fewer than five leave."""
    chance = np.random.default_rng(0)
    columns = {f"x{i}": chance.normal(size=8) for i in range(FEATURES)}
    return hs.Table.of({**columns, "y": np.arange(8.0)})


# --- what cannot be beaten: the bytes over TCP, and to the disk


def floor(parties: int, size: int, folder: Path) -> float:
    """Seconds for the same bytes both ways over bare sockets, written and synced at either end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        words = [sys.executable, "-m", "benchmarks.transfer", "socket", str(port), str(size)]
        children = [subprocess.Popen([*words, str(folder / f"party{i}")]) for i in range(parties)]
        links = [server.accept()[0] for _ in children]
        body = os.urandom(size)
        began = time.perf_counter()

        def serve(i: int) -> None:
            links[i].sendall(body)
            _receive(links[i], size, folder / f"server{i}")
            links[i].sendall(b"!")
            links[i].close()

        with ThreadPoolExecutor(parties) as pool:
            list(pool.map(serve, range(parties)))
        seconds = time.perf_counter() - began
        for child in children:
            child.wait()
        return seconds


def _receive(link: socket.socket, size: int, path: Path) -> None:
    buffer, got = bytearray(CHUNK), 0
    with path.open("wb", buffering=0) as file:
        while got < size:
            count = link.recv_into(buffer, min(CHUNK, size - got))
            file.write(memoryview(buffer)[:count])
            got += count
        os.fsync(file.fileno())


def _socket(port: int, size: int, path: Path) -> None:
    """A party of the floor: it keeps what it will send, as an agent does."""
    with socket.create_connection(("127.0.0.1", port)) as link:
        _receive(link, size, path)
        link.sendall(path.read_bytes())
        link.recv(1)


# --- what gRPC costs by itself: mutual TLS, messages of 1 MiB, and everything is discarded


def bare(clients: int, size: int, processes: int) -> dict[str, float]:
    """Seconds for so many bytes both ways, MB/s, and the memory of the server above idle."""
    child = subprocess.run(  # a process of its own, whose peak is its own
        [sys.executable, "-m", "benchmarks.transfer", "bare", str(clients), str(size), str(processes)],
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(child.stdout)


_OPTIONS = [("grpc.max_receive_message_length", MESSAGE), ("grpc.use_local_subchannel_pool", 1)]


async def _bare(clients: int, size: int, processes: int) -> None:
    authority, ready, here = pki.Authority.create("bare"), asyncio.Event(), list[int]()

    async def gather(request: bytes, context: Any) -> bytes:
        here.append(1)
        if len(here) == clients:
            ready.set()
        await ready.wait()
        return b""

    async def fetch(request: bytes, context: Any) -> Any:
        for _ in range(size // CHUNK):
            yield bytes(CHUNK)

    async def upload(requests: Any, context: Any) -> bytes:
        while await context.read() is not grpc.aio.EOF:
            pass
        return b""

    methods = {
        "Gather": grpc.unary_unary_rpc_method_handler(gather),
        "Fetch": grpc.unary_stream_rpc_method_handler(fetch),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
    }
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", methods),))
    pair = authority.server_certificate("bare", host="127.0.0.1")
    credentials = grpc.ssl_server_credentials([pair], authority.certificate_pem, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    idle, key = memory(os.getpid(), "VmRSS"), keys.new_key()
    pems = [keys.key_to_pem(key), authority.issue(keys.request(key), role=pki.PARTY, name="p")]
    said = json.dumps([port, clients // processes, size, *[pem.decode() for pem in (authority.certificate_pem, *pems)]])
    words = [sys.executable, "-m", "benchmarks.transfer", "stream"]
    children = [await asyncio.create_subprocess_exec(*words, said) for _ in range(processes)]
    await ready.wait()
    began = time.perf_counter()
    for child in children:
        await child.wait()
    seconds = time.perf_counter() - began
    moved = 2 * clients * (size // CHUNK * CHUNK) / MB
    peak = memory(os.getpid(), "VmHWM") - idle
    print(json.dumps({"seconds": seconds, "mb_s": moved / seconds, "memory_mb": peak}))
    await server.stop(0)


async def _stream(port: int, clients: int, size: int, *pems: str) -> None:
    root, key, certificate = (pem.encode() for pem in pems)
    credentials = grpc.ssl_channel_credentials(root, key, certificate)
    options = [*_OPTIONS, ("grpc.ssl_target_name_override", pki.SERVER_NAME)]

    async def one() -> None:
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
            await channel.unary_unary("/bare/Gather")(b"")
            async for _ in channel.unary_stream("/bare/Fetch")(b""):
                pass
            upload: Any = channel.stream_unary("/bare/Upload")()
            for _ in range(size // CHUNK):
                await upload.write(bytes(CHUNK))
            await upload.done_writing()
            await upload

    await asyncio.gather(*(one() for _ in range(clients)))


# --- Hansa


async def _party(folder: Path, token: str) -> None:
    """An agent whose training costs nothing."""
    FedAvg.work = _untrained
    with closing(Left(folder / "left.jsonl")) as left:
        home = await AgentHome.join(folder, Token.decode(token), left)
    await Agent(home, [Offer("tiny", table(), ("softmax-regression",))], say=lambda *_: None).run()


_SAME: list[Any] = []


def _untrained(self: FedAvg, at: Any) -> Answer:
    """The same numbers each time, and one that is not."""
    _SAME[:] = _SAME or [np.full_like(at.received["parameters"], 1e-3)]
    _SAME[0].flat[0] = at.round
    return Answer(Contribution(Values({"update": _SAME[0]}), self.weight(at)))


class Streams(Crowd):
    """Light parties that throw away what they are sent, and all send the same."""

    async def answer(self, client: Client, work: m.Work, name: str) -> m.UploadPart:
        async for _ in client.stream(FETCH, m.FetchRequest(digest=work.digest)):
            pass
        key = work.run, work.version
        if key not in self.bodies:
            (field,) = json.loads(work.ask)["fields"]
            self.bodies = {key: (1.0, tensors.write({"update": np.full(field["shape"], 1e-3, np.float32)}))}
        _, data = self.bodies[key]
        where: dict[str, Any] = {"run": work.run, "version": work.version, "attempt": work.attempt}
        return m.UploadPart(head=m.Head(**where, weight=1.0, size=len(data), digest=tensors.digest(data)))


def memory(pid: int, what: str = "RssAnon") -> float:
    """Resident memory of a process in MB: what no file backs, unless another line of its status is named."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1e3


@contextmanager
def town(parties: int, light: bool) -> Iterator[tuple[Path, int]]:
    """A coordinator with so many parties connected; gives its folder and process."""
    with tempfile.TemporaryDirectory(prefix="hansa-bench-") as temporary:
        folder, children = Path(temporary), list[subprocess.Popen[str]]()
        programs, home = Programs(folder, leash=True), folder / "coordinator"
        try:
            where = ("--address", "127.0.0.1", "--port", "0", "--home", str(home))
            programs.start("coordinator", "coordinator", "start", *where)
            programs.document("coordinator")
            names = [f"p{i:03}" for i in range(parties)]
            tokens = {name: call(home, INVITE, party=name, lifetime_seconds=600).token for name in names}
            words = [sys.executable, "-m", "benchmarks.transfer"]
            processes = PROCESSES if light else parties
            for group in [names[i::processes] for i in range(processes)]:
                given = ["crowd", str(folder)] if light else ["party", str(folder / group[0])]
                log = (folder / f"{group[0]}.log").open("w")
                child = subprocess.Popen([*words, *given], stdin=subprocess.PIPE, stdout=log, stderr=log, text=True)
                children.append(child)
                assert child.stdin
                child.stdin.write("".join(f"{name} {tokens[name]}\n" for name in group) + "\n")
                child.stdin.flush()
            while sum(party.connected for party in call(home, PARTIES).parties) < parties:
                assert all(child.poll() is None for child in children)
                time.sleep(0.1)
            yield home, programs.running["coordinator"].pid
        finally:
            for child in children:
                child.kill()
                child.wait()
            programs.close()


def rounds(parties: int, size: int, count: int, light: bool) -> dict[str, Any]:
    """Seconds of each round, and the coordinator's memory above idle at the most in each, in MB: what no file backs,
    and all, with the files that it maps."""
    with town(parties, light) as (home, pid):
        kinds, over = ("RssAnon", "VmRSS"), threading.Event()
        idle, seen = [memory(pid, kind) for kind in kinds], list[tuple[float, list[float]]]()

        def look() -> None:
            while not over.wait(0.02):
                seen.append((time.time(), [memory(pid, kind) for kind in kinds]))

        watch = threading.Thread(target=look)
        watch.start()
        try:
            run = study(size, count, "light" if light else "tiny").run(Remote(home))
        finally:
            over.set()
            watch.join()
        ends = [datetime.fromisoformat(e.at).timestamp() for e in run.events if e.kind in ("asked", "finished")]
        spans = list(pairwise(ends))
        peaks = [[max(mb[k] for at, mb in seen if a <= at <= b) - idle[k] for a, b in spans] for k in (0, 1)]
        return {"seconds": [b - a for a, b in spans], "memory_mb": peaks[0], "mapped_mb": peaks[1]}


def measure(size: int = 100 * MB) -> dict[str, object]:
    """Both figures, each beside what it is held against, taken in turns."""
    floors, bares = list[float](), list[dict[str, float]]()
    with tempfile.TemporaryDirectory(prefix="hansa-bench-") as folder:
        floors += [floor(AGENTS, size, Path(folder)) for _ in range(2)]
        bares.append(bare(AGENTS, size, AGENTS))
        ten = rounds(AGENTS, size, ROUNDS, light=False)
        bares.append(bare(AGENTS, size, AGENTS))
        floors += [floor(AGENTS, size, Path(folder)) for _ in range(2)]
    many = rounds(LIGHT, size, 3, light=True)
    beside = bare(LIGHT, size // 4, PROCESSES)
    moved = 2 * LIGHT * size / MB
    rate = moved / statistics.median(many["seconds"])
    return {
        "round_s": statistics.median(ten["seconds"]),
        "rounds_s": ten["seconds"],
        "floor_s": statistics.median(floors),
        "floors_s": floors,
        "bare_s": statistics.median(one["seconds"] for one in bares),
        "ten_memory_mb": ten["memory_mb"],
        "ten_mapped_mb": ten["mapped_mb"],
        "model_mb": size / MB,
        "many_rounds_s": many["seconds"],
        "many_mb_s": rate,
        "many_memory_mb": many["memory_mb"],
        "many_mapped_mb": many["mapped_mb"],
        "bare_mb_s": beside["mb_s"],
        "bare_memory_mb": beside["memory_mb"],
    }


def lines(r: dict[str, Any], taken: str) -> list[str]:
    """Its section of the page."""

    def row(what: str, value: float, limit: float, unit: str, least: bool = False) -> str:
        reached = value >= limit if least else value <= limit
        return f"| {what} | {value:.2f} {unit} | {limit:.2f} {unit} | {'yes' if reached else '**no**'} |"

    peaks = ", ".join(f"{mb:.0f}" for mb in r["many_memory_mb"])
    return [
        "## Large models\n",
        f"{AGENTS} agents, each a process, and {LIGHT} light parties in {PROCESSES} processes, on loopback, with a",
        f"model of {r['model_mb']:.0f} MB; nothing is trained. The floor moves the same bytes over bare sockets, and",
        "writes and syncs them at either end. Bare gRPC is grpc.aio with mutual TLS and messages of 1 MiB that are",
        "discarded.\n",
        taken,
        "| what | measured | reach | reached |",
        "|---|---|---|---|",
        row(f"{AGENTS} agents, median round", r["round_s"], 2.5 * r["floor_s"], "s"),
        f"| the floor of the same minutes | {r['floor_s']:.2f} s | | |",
        f"| bare gRPC | {r['bare_s']:.2f} s | | |",
        row(f"{LIGHT} light parties, bytes both ways", r["many_mb_s"], 0.6 * r["bare_mb_s"], "MB/s", least=True),
        f"| bare gRPC | {r['bare_mb_s']:.0f} MB/s | | |",
        row("coordinator's peak above idle", max(r["many_memory_mb"]) / r["model_mb"], 3.5, "models"),
        f"| bare gRPC, which discards | {r['bare_memory_mb'] / r['model_mb']:.2f} models | | |",
        f"| peak round by round | {peaks} MB | | |",
        f"| the same with the files that it maps | {max(r['many_mapped_mb']) / r['model_mb']:.2f} models | | |",
        "",
    ]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["socket", port, size, path]:
            _socket(int(port), int(size), Path(path))
        case ["bare", *numbers]:
            asyncio.run(_bare(*map(int, numbers)))
        case ["stream", said]:
            asyncio.run(_stream(*json.loads(said)))
        case ["party", folder]:
            asyncio.run(_party(Path(folder), sys.stdin.readline().split()[1]))
        case ["crowd", folder]:
            given = list(iter(sys.stdin.readline, "\n"))
            asyncio.run(main(Path(folder), given, Streams(table())))
        case [*scale]:
            print(json.dumps(measure(*(int(one) * MB for one in scale)), indent=2))
