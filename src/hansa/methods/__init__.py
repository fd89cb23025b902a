"""Methods: one paper, one file."""

from hansa.methods.base import Answer, At, GradientMethod, Method, Setup, State, UpdateMethod
from hansa.methods.evaluate import Evaluate
from hansa.methods.fedavg import FedAvg
from hansa.methods.fedsgd import FedSGD
from hansa.methods.moments import Moments

__all__ = [
    "Answer",
    "At",
    "Evaluate",
    "FedAvg",
    "FedSGD",
    "GradientMethod",
    "Method",
    "Moments",
    "Setup",
    "State",
    "UpdateMethod",
]
