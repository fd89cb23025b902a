"""``sim_flower.py WORK``: Flower's simulation, with an actor for each core."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import flwr
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.simulation import net as n
from benchmarks.simulation import work as w

NAME = sys.argv[1]
client, server = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """One party's round."""
    party = int(message.content["config"]["party"])
    if NAME == "W3":
        arrays, examples = ArrayRecord(list(w.update(party))), w.weight(party)
    else:
        torch.set_num_threads(1)
        data, model = w.Data(NAME), n.network(NAME)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        examples = n.train(model, *data.party(party), data.work)
        arrays = ArrayRecord(model.state_dict())
    weight = MetricRecord({"num-examples": examples})
    return Message(RecordDict({"arrays": arrays, "metrics": weight}), reply_to=message)


class Cohorts(FedAvg):
    """FedAvg among the cohorts of the file, with a mark after each round."""

    def _construct_messages(self, record: RecordDict, node_ids: list[int], message_type: str) -> Iterable[Message]:
        round = int(record["config"]["server-round"]) - 1
        cohort = range(w.W3_PARTIES) if NAME == "W3" else w.Data(NAME).cohorts[round]
        for node, party in zip(node_ids, cohort, strict=True):
            content = {"arrays": record["arrays"], "config": ConfigRecord({"party": int(party)})}
            yield Message(RecordDict(content), message_type=message_type, dst_node_id=node)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Aggregate, then note the moment."""
        result = super().aggregate_train(server_round, replies)
        w.mark("round")
        return result


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    if NAME == "W3":
        cohort, parties, rounds = w.W3_PARTIES, w.W3_PARTIES, w.W3_ROUNDS
        start = ArrayRecord(list(w.update(0)))
    else:
        work = w.WORKS[NAME]
        cohort, parties, rounds = work.cohort, work.parties, work.rounds
        model = n.network(NAME)
        start = ArrayRecord(model.state_dict())
    strategy = Cohorts(
        fraction_train=cohort / parties, fraction_evaluate=0.0, min_train_nodes=cohort, min_available_nodes=parties
    )
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds)
    if NAME == "W3":
        w.done(flwr.__version__, result.arrays.to_numpy_ndarrays())
    else:
        model.load_state_dict(result.arrays.to_torch_state_dict())
        n.done(flwr.__version__, model, w.Data(NAME))


if __name__ == "__main__":
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=w.W3_PARTIES if NAME == "W3" else w.WORKS[NAME].parties,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
