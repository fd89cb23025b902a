"""``sim_fedjax.py WORK``: FedJAX with its compiled loop over clients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from fedjax.algorithms import fed_avg

from benchmarks.simulation import work as w

data = w.Data(sys.argv[1])
work = data.work
fedjax.set_for_each_client_backend("jit")
PAIRS = ("NHWC", "OIHW", "NHWC")


class InOrder(fedjax.ClientDataset):
    """Its last batch is left short; FedJAX would fill it from the beginning and train more than the others."""

    def shuffle_repeat_batch(self, hyperparams: Any) -> Iterator[Any]:
        """One pass."""
        return self.batch(batch_size=hyperparams.batch_size)


def scores(p: dict[str, Any], x: Any) -> Any:
    """The workload's model."""
    if work.data == "W1":
        return x @ p["w"].T + p["b"]
    image = x.reshape(-1, 28, 28, 1)
    for key in ("c1", "c2"):
        image = jax.lax.conv_general_dilated(image, p[key], (1, 1), "SAME", dimension_numbers=PAIRS)
        image = jax.nn.relu(image + p[f"{key}_bias"])
        window = (1, 2, 2, 1)
        image = jax.lax.reduce_window(image, -jnp.inf, jax.lax.max, window, window, "VALID")
    flat = jnp.transpose(image, (0, 3, 1, 2)).reshape(x.shape[0], -1)
    hidden = jax.nn.relu(flat @ p["f1"].T + p["f1_bias"])
    return hidden @ p["f2"].T + p["f2_bias"]


def loss(p: dict[str, Any], batch: dict[str, Any], random: Any) -> Any:
    """Cross-entropy."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(scores(p, batch["x"])), batch["y"][:, None], 1)
    return -jnp.mean(chosen)


x, y = np.array(data.x), data.y.astype(np.int32)
algorithm = fed_avg.federated_averaging(
    jax.grad(loss),
    fedjax.optimizers.sgd(work.lr),
    fedjax.optimizers.sgd(1.0),
    fedjax.ShuffleRepeatBatchHParams(batch_size=work.batch, num_epochs=1, drop_remainder=False, skip_shuffle=True),
)
state = algorithm.init({key: jnp.asarray(value) for key, value in data.start.items()})
key = jax.random.PRNGKey(0)
for round, cohort in enumerate(data.cohorts):
    keys = jax.random.split(jax.random.fold_in(key, round), len(cohort))
    rows = [data.span(i) for i in cohort]
    clients = [(int(i), InOrder({"x": x[own], "y": y[own]}), k) for i, own, k in zip(cohort, rows, keys, strict=True)]
    state, _ = algorithm.apply(state, clients)
    jax.block_until_ready(state.params)
    w.mark("round")
said = np.concatenate([np.asarray(jax.jit(scores)(state.params, part)) for part in np.split(data.test_x, 4)])
w.done(version("fedjax"), state.params.values(), w.accuracy(said, data))
