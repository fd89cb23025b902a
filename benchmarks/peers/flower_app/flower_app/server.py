"""A Flower server that writes down when each round was aggregated."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    """FedAvg with a time stamp per round."""

    marks = ""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Aggregate, then note the time."""
        result = super().aggregate_train(server_round, replies)
        with Path(self.marks).open("a") as file:
            file.write(f"{time.time()}\n")
        return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    """A model of five numbers."""
    said = context.run_config
    count = int(said["parties"])
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=count, min_available_nodes=count)
    strategy.marks = str(said["marks"])
    model = ArrayRecord([np.zeros((4, 1)), np.zeros(1)])
    strategy.start(grid=grid, initial_arrays=model, num_rounds=int(said["rounds"]))
