"""Models for NVFlare, which builds them by their class, without arguments."""

from __future__ import annotations

import torch

from benchmarks.simulation import net as n
from benchmarks.simulation import work as w


class Softmax(torch.nn.Module):
    """W1's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = n.network("W1")


class Cnn(torch.nn.Module):
    """W2's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = n.network("W2")


class Arrays(torch.nn.Module):
    """W3's."""

    def __init__(self) -> None:
        super().__init__()
        zeros = (torch.nn.Parameter(torch.zeros(w.W3_LENGTH)) for _ in range(w.W3_ARRAYS))
        self.p = torch.nn.ParameterList(zeros)


MODELS: dict[str, type[torch.nn.Module]] = {"W1": Softmax, "W2": Cnn, "W3": Arrays}
