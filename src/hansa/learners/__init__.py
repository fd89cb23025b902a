"""Learners, of one framework each. A learner knows a model's parameters, loss and gradient, and no party."""

from hansa.learners.base import Layout, Learner
from hansa.learners.optimizer import SGD

__all__ = ["SGD", "Layout", "Learner"]
