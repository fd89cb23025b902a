"""``plain.py WORK THREADS``: the training loop that one writes by hand in PyTorch, party after party."""

import copy
import sys

import torch

from benchmarks.simulation import net as n
from benchmarks.simulation import work as w

name = sys.argv[1]
torch.set_num_threads(int(sys.argv[2]))
data, model = w.Data(name), n.network(name)
party = copy.deepcopy(model)
for cohort in data.cohorts:
    sums, examples = [torch.zeros_like(p) for p in model.parameters()], 0
    for i in cohort:
        party.load_state_dict(model.state_dict())
        count = n.train(party, *data.party(i), data.work)
        for total, trained in zip(sums, party.parameters(), strict=True):
            total.add_(trained.detach(), alpha=count)
        examples += count
    with torch.no_grad():
        for parameter, total in zip(model.parameters(), sums, strict=True):
            parameter.copy_(total / examples)
    w.mark("round")
n.done(torch.__version__, model, data)
