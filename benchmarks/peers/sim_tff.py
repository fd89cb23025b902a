"""``sim_tff.py WORK``: TensorFlow Federated's own weighted averaging."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Any

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from benchmarks.simulation import work as w

data = w.Data(sys.argv[1])
work, layers = data.work, tf.keras.layers
x, y = np.array(data.x), data.y.astype(np.int32)


def keras() -> tf.keras.Model:
    """The workload's model."""
    if work.data == "W1":
        return tf.keras.Sequential([layers.InputLayer((w.PIXELS,)), layers.Dense(w.CLASSES)])
    same = {"padding": "same", "activation": "relu"}
    return tf.keras.Sequential(
        [
            layers.InputLayer((w.PIXELS,)),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(32, 5, **same),
            layers.MaxPool2D(),
            layers.Conv2D(64, 5, **same),
            layers.MaxPool2D(),
            layers.Permute((3, 1, 2)),
            layers.Flatten(),
            layers.Dense(512, activation="relu"),
            layers.Dense(w.CLASSES),
        ]
    )


def model() -> Any:
    """What TFF trains."""
    spec = (tf.TensorSpec([None, w.PIXELS], tf.float32), tf.TensorSpec([None], tf.int32))
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tff.learning.models.from_keras_model(keras(), loss=loss, input_spec=spec)


def party(i: int) -> tf.data.Dataset:
    """Its rows, in order, in batches."""
    rows = data.span(i)
    return tf.data.Dataset.from_tensor_slices((x[rows], y[rows])).batch(work.batch)


sgd = tff.learning.optimizers.build_sgdm
algorithm = tff.learning.algorithms.build_weighted_fed_avg(
    model, client_optimizer_fn=sgd(work.lr), server_optimizer_fn=sgd(1.0)
)
state = algorithm.initialize()
# Keras lays a kernel out as [height, width, in, out], a matrix as [in, out].
turned = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
start = [value.transpose(turned[value.ndim]) for value in data.start.values()]
weights = algorithm.get_model_weights(state)
state = algorithm.set_model_weights(state, tff.learning.models.ModelWeights(start, weights.non_trainable))
for cohort in data.cohorts:
    state = algorithm.next(state, [party(i) for i in cohort]).state
    w.mark("round")
final = keras()
algorithm.get_model_weights(state).assign_weights_to(final)
scores = np.concatenate([final(part).numpy() for part in np.split(data.test_x, 4)])
arrays = [variable.numpy() for variable in final.trainable_variables]
w.done(version("tensorflow-federated"), arrays, w.accuracy(scores, data))
