"""A client script of NVFlare: the round's party, by the number of its site."""

from __future__ import annotations

import sys

import nvflare.client as flare
import torch

from benchmarks.peers.sim_nvflare_model import MODELS
from benchmarks.simulation import net as n
from benchmarks.simulation import work as w

name = sys.argv[1]
torch.set_num_threads(1)
flare.init()
site = int(flare.get_site_name().split("-")[1]) - 1
while flare.is_running():
    message = flare.receive()
    if message is None:
        break
    if site == 0 and message.current_round:
        w.mark("round")  # the round before ends where this one begins
    if name == "W3":
        arrays = w.update(site)
        result = {f"p.{j}": torch.from_numpy(array) for j, array in enumerate(arrays)}
        examples = w.weight(site)
    else:
        data, model = w.Data(name), MODELS[name]()
        model.load_state_dict(message.params)
        party = int(data.cohorts[message.current_round][site])
        examples = n.train(model.body, *data.party(party), data.work)
        result = model.state_dict()
    flare.send(flare.FLModel(params=result, meta={"NUM_STEPS_CURRENT_ROUND": examples}))
