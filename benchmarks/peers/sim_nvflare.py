"""``sim_nvflare.py WORK PARTIES THREADS ROUNDS``: NVFlare's simulator, with its own recipe for FedAvg.

A thread holds a client's process; with fewer threads than clients it starts a process for every task.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

from benchmarks.peers.sim_nvflare_model import MODELS
from benchmarks.simulation import net as n
from benchmarks.simulation import work as w

if __name__ == "__main__":
    name, (parties, threads, rounds) = sys.argv[1], map(int, sys.argv[2:5])
    recipe = FedAvgRecipe(
        name=f"job-{name}",
        model=MODELS[name](),
        min_clients=parties,
        num_rounds=rounds,
        train_script=str(Path(__file__).with_name("sim_nvflare_client.py")),
        train_args=name,
    )
    home = Path("workspace").absolute()
    where = SimEnv(num_clients=parties, num_threads=threads, workspace_root=str(home))
    run = recipe.execute(where)
    print(run.get_status(), run.get_result())
    file = sorted(home.rglob("FL_global_model.pt"))[0]
    final = torch.load(file, weights_only=False)["model"]
    arrays = [torch.as_tensor(value).numpy() for value in final.values()]
    if name == "W3":
        w.done(version("nvflare"), arrays)
    else:
        model = MODELS[name]()
        model.load_state_dict({key: torch.as_tensor(value) for key, value in final.items()})
        n.done(version("nvflare"), model.body, w.Data(name))
