"""``stacked.py WORK THREADS``: the softmax of a whole cohort at once, batched products over padded rows.

What one writes by hand in PyTorch to be fast: every party's rows, padded to the largest, in one tensor, and the
gradient of the softmax written out.
"""

import sys

import torch

from benchmarks.simulation import work as w

data, threads = w.Data(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
work, batch = data.work, data.work.batch
weights, bias = torch.zeros(w.PIXELS, w.CLASSES), torch.zeros(w.CLASSES)
for cohort in data.cohorts:
    spans = [data.span(i) for i in cohort]
    sizes = torch.tensor([span.stop - span.start for span in spans])
    parties, steps = len(spans), -(-int(sizes.max()) // batch)
    x = torch.zeros(parties, steps * batch, w.PIXELS)
    y = torch.zeros(parties, steps * batch, dtype=torch.long)
    real = torch.zeros(parties, steps * batch)
    for k, span in enumerate(spans):
        count = span.stop - span.start
        x[k, :count] = torch.from_numpy(data.x[span].copy())
        y[k, :count] = torch.from_numpy(data.y[span])
        real[k, :count] = 1.0
    own = weights.expand(parties, w.PIXELS, w.CLASSES).contiguous()
    own_bias = bias.expand(parties, 1, w.CLASSES).contiguous()
    minus_one = torch.full((parties, batch, 1), -1.0)
    for step in range(steps):
        rows = slice(step * batch, (step + 1) * batch)
        inputs, present = x[:, rows], real[:, rows]
        error = torch.softmax(torch.baddbmm(own_bias, inputs, own), dim=-1)
        error.scatter_add_(2, y[:, rows, None], minus_one)
        error *= (present / present.sum(1, keepdim=True).clamp(min=1.0))[..., None]
        own.baddbmm_(inputs.transpose(1, 2), error, alpha=-work.lr)
        own_bias.sub_(error.sum(1, keepdim=True), alpha=work.lr)
    share = (sizes / sizes.sum()).to(torch.float32)
    weights = torch.einsum("k,kpc->pc", share, own)
    bias = torch.einsum("k,kc->c", share, own_bias[:, 0])
    w.mark("round")
scores = torch.from_numpy(data.test_x) @ weights + bias
w.done(torch.__version__, [weights, bias], w.accuracy(scores.numpy(), data))
