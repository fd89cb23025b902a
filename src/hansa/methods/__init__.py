"""Methods: one paper, one file."""

from hansa.methods.base import METHODS, Answer, GradientMethod, Method, Setup, State, UpdateMethod
from hansa.methods.cox import Cox
from hansa.methods.ditto import Ditto
from hansa.methods.evaluate import Evaluate
from hansa.methods.fedavg import FedAvg
from hansa.methods.fedbuff import FedBuff
from hansa.methods.fednova import FedNova
from hansa.methods.fedper import FedPer
from hansa.methods.fedprox import FedProx
from hansa.methods.fedrep import FedRep
from hansa.methods.fedsgd import FedSGD
from hansa.methods.histogram import Histogram
from hansa.methods.ifca import IFCA
from hansa.methods.irls import IRLS
from hansa.methods.moments import Moments
from hansa.methods.scaffold import Scaffold
from hansa.methods.work import At

__all__ = [
    "IFCA", "IRLS", "Answer", "At", "Cox", "Ditto", "Evaluate", "FedAvg", "FedBuff", "FedNova", "FedPer",
    "FedProx", "FedRep", "FedSGD", "GradientMethod", "Histogram", "Method", "Moments", "Scaffold", "Setup",
    "State", "UpdateMethod",
]  # fmt: skip

_BUILT_IN: tuple[type[Method], ...] = (
    Cox, Ditto, FedAvg, FedBuff, FedNova, FedPer, FedProx, FedRep, FedSGD, Histogram, IFCA, IRLS, Scaffold,
)  # fmt: skip
for _method in _BUILT_IN:
    METHODS.register(_method)
