"""``sim_pfl.py WORK THREADS``: pfl's simulated backend, in one process or under torchrun in several."""

from __future__ import annotations

import itertools
import os
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.stats import MappedVectorStatistics
from torch.nn import functional

from benchmarks.simulation import net as n
from benchmarks.simulation import work as w

NAME = sys.argv[1]
torch.set_num_threads(int(sys.argv[2]))
FIRST = os.environ.get("RANK", "0") == "0"
np.random.seed(0)


class Net(torch.nn.Module):
    """The workload's network with the loss and the metrics that pfl asks a module for."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(self.body(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        """Never asked for here."""
        return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class Arrays(torch.nn.Module):
    """W3's parameters."""

    def __init__(self) -> None:
        super().__init__()
        zeros = (torch.nn.Parameter(torch.zeros(w.W3_LENGTH)) for _ in range(w.W3_ARRAYS))
        self.p = torch.nn.ParameterList(zeros)

    def loss(self, *of: Any) -> float:
        """Never asked for."""
        return 0.0

    def metrics(self, *of: Any) -> dict[str, Weighted]:
        """Never asked for."""
        return {"rows": Weighted(0, 1)}


class Returned(FederatedAveraging):
    """W3: what each user returns, instead of training."""

    def train_one_user(self, initial: Any, model: Any, user: Any, context: Any) -> Any:
        """100 MB."""
        arrays = w.update(int(user.user_id))
        named = {f"p.{j}": torch.from_numpy(array) for j, array in enumerate(arrays)}
        return MappedVectorStatistics(named), Metrics()


class Mark(TrainingProcessCallback):
    """A mark after each round."""

    def after_central_iteration(self, metrics: Any, model: Any, *, central_iteration: int) -> Any:
        """Note the moment."""
        if FIRST:
            w.mark("round")
        return False, Metrics()


if NAME == "W3":
    net, algorithm, lr, batch = Arrays(), Returned(), 1.0, None
    cohort, rounds = w.W3_PARTIES, w.W3_ROUNDS
    order = itertools.cycle(range(w.W3_PARTIES))

    def user(party: int) -> Dataset:
        """Nothing but its size."""
        size = w.weight(party)
        return Dataset((np.zeros((size, 1)), np.zeros(size)), user_id=party)
else:
    data = w.Data(NAME)
    net, algorithm, lr, batch = (Net(n.network(NAME)), FederatedAveraging(), data.work.lr, data.work.batch)
    cohort, rounds = data.work.cohort, data.work.rounds
    order = itertools.cycle(data.cohorts.ravel().tolist())
    x, y = torch.from_numpy(np.array(data.x)), torch.from_numpy(data.y)

    def user(party: int) -> Dataset:
        """Its rows."""
        rows = data.span(party)
        return Dataset((x[rows], y[rows]), user_id=party)


model = PyTorchModel(
    net, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0)
)
users = FederatedDataset(user, lambda: next(order))
backend = SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByDatapoints()])
algorithm.run(
    NNAlgorithmParams(
        central_num_iterations=rounds, evaluation_frequency=10**6, train_cohort_size=cohort, val_cohort_size=0
    ),
    backend,
    model,
    NNTrainHyperParams(local_num_epochs=1, local_learning_rate=lr, local_batch_size=batch),
    NNEvalHyperParams(local_batch_size=None),
    callbacks=[Mark()],
)
if FIRST:
    if NAME == "W3":
        # The mean is added to the model in each round, as if it were an update.
        w.done(version("pfl"), [p.detach().numpy() / rounds for p in net.parameters()])
    else:
        n.done(version("pfl"), net.body, data)
if torch.distributed.is_initialized():
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
