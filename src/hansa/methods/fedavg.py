"""Federated averaging."""

from typing import ClassVar

from hansa.methods.base import GradientMethod


class FedAvg(GradientMethod):
    """Federated averaging (McMahan et al. 2017, arXiv 1602.05629, algorithm 1).

    Each party takes some steps of its own from the global parameters ``theta``; the server moves by the
    weighted mean of what changed: ``theta <- theta + lr * sum(w_i (theta_i - theta)) / sum(w_i)``, where
    ``w_i`` is a party's number of examples, or 1. With ``server.lr = 1`` and no momentum that is the
    weighted mean of the parties' models; with momentum it is FedAvgM (Hsu et al. 2019, arXiv 1909.06335)."""

    kind: ClassVar[str] = "fedavg"
