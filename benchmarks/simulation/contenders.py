"""Who runs what."""

from __future__ import annotations

from benchmarks.simulation.runner import Contender

OWN = ("-m", "benchmarks.simulation.hansa_side")


def ours(name: str, *words: str, needs: tuple[str, ...] = ()) -> Contender:
    """Hansa, in some variant."""
    return Contender(f"Hansa, {name}", (*OWN, *words), needs=needs)


def loop(name: str, side: str, *words: str) -> Contender:
    """A reference in PyTorch, in our own environment."""
    return Contender(name, ("-m", f"benchmarks.simulation.{side}", *words), needs=("torch",))


def flower(work: str) -> Contender:
    """Flower's simulation, an actor a core."""
    return Contender("Flower", ("-m", "benchmarks.peers.sim_flower", work), "flower", repeats=3)


def pfl(work: str, processes: int) -> Contender:
    """pfl's simulated backend: one process with two threads, or two with one each."""
    side = ("-m", "benchmarks.peers.sim_pfl", work)
    if processes == 1:
        return Contender("pfl, one process", (*side, "2"), "pfl")
    spread = ("-m", "torch.distributed.run", "--nproc-per-node", str(processes))
    return Contender(f"pfl, {processes} processes", (*spread, *side, "1"), "pfl")


def fedjax(work: str) -> Contender:
    """FedJAX, its compiled loop over clients, last batches left short as everywhere else."""
    return Contender("FedJAX", ("-m", "benchmarks.peers.sim_fedjax", work), "fedjax")


def nvflare(work: str, threads: int, rounds: int, times: float = 1.0) -> Contender:
    """NVFlare's simulator with 10 parties, a process for each if there are as many threads."""
    name = "NVFlare" if times == 1 else f"NVFlare, 10 parties a round, times {times:.0f}"
    words = ("-m", "benchmarks.peers.sim_nvflare", work, "10", str(threads), str(rounds))
    return Contender(name, words, "nvflare", repeats=1, times=times, limit=600)


def tff(work: str) -> Contender:
    """TensorFlow Federated."""
    return Contender("TFF", ("-m", "benchmarks.peers.sim_tff", work), "tff", repeats=3)


RACES: dict[str, list[Contender]] = {
    "W1": [
        ours("parties' own order", "W1", "ordered"),
        ours("shuffled", "W1"),
        ours("shuffled; clip, rotation, 8 bits", "W1", "codecs"),
        ours("shuffled; SCAFFOLD", "W1", "scaffold"),
        ours("shuffled; Ditto", "W1", "ditto"),
        loop("hand-stacked loop, 2 threads", "stacked", "W1", "2"),
        loop("plain loop, 1 thread", "plain", "W1", "1"),
        fedjax("W1"),
        pfl("W1", 2),
        pfl("W1", 1),
        flower("W1"),
        tff("W1"),
        nvflare("W1", 2, 4, times=10),
    ],
    "W2": [
        ours("float32, own order", "W2", needs=("torch",)),
        ours("bfloat16, own order", "W2", "bfloat16", needs=("torch",)),
        loop("plain loop, 2 threads", "plain", "W2", "2"),
        loop("plain loop, 1 thread", "plain", "W2", "1"),
        fedjax("W2"),
        pfl("W2", 2),
        pfl("W2", 1),
        flower("W2"),
        tff("W2"),
        nvflare("W2", 10, 6),
    ],
    "W3": [
        ours("float64", "W3"),
        Contender("NumPy, float64", ("-m", "benchmarks.simulation.mean", "float64")),
        Contender("NumPy, float32", ("-m", "benchmarks.simulation.mean", "float32")),
        pfl("W3", 1),
        flower("W3"),
        nvflare("W3", 10, 6),
    ],
    "W4": [
        ours("1,000,000 registered", "W4"),
        ours("10,000 registered", "W4-small"),
        loop("hand-stacked loop, 2 threads", "stacked", "W4", "2"),
    ],
}
