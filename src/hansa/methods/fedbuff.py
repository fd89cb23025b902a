"""FedBuff: buffered asynchrony."""

from typing import Annotated, ClassVar

from pydantic import Field as Limits

from hansa.methods.base import GradientMethod

Count = Annotated[int, Limits(ge=1)]


class FedBuff(GradientMethod):
    """Federated averaging without rounds to wait for (Nguyen et al. 2022, arXiv 2106.06639, algorithm 1).

    ``concurrency`` parties train at any time; whenever one is done, another begins from the newest parameters.
    Arriving updates are buffered, and the server takes a step along their mean whenever there are ``buffer``
    of them. An update that began ``lag`` server steps ago counts ``1 / (1 + lag)^staleness`` times what it would. The
    cohort's ``late`` says how many steps that may be; any number if it is 0.

    Under a schedule that waits for everybody no update is stale, and it is FedAvg.

    Args:
        buffer: updates in one step of the server (the paper's ``K``).
        concurrency: parties that train at a time.
        staleness: exponent of the discount; 0 counts late updates in full."""

    kind: ClassVar[str] = "fedbuff"
    buffer: Count = 10
    concurrency: Count = 100
    staleness: Annotated[float, Limits(ge=0)] = 0.5
