"""What is to be protected, and against whom."""

from typing import Annotated, Literal

from pydantic import Field as Limits

from hansa.part import Part
from hansa.privacy.events import Adjacency


class Privacy(Part):
    """What a guarantee speaks of; what holds is derived from the federation.

    Args:
        unit: whose presence is hidden: a whole ``"party"``, or one ``"example"`` (a row) of a party's table.
        adjacency: ``"add-remove"`` hides whether the unit is there at all, ``"replace"`` which one it is.
        delta: the chance with which the guarantee may fail, for everything together; well below one over
            the number of units.
        epsilon: if given, a federation whose models cost more, in the eyes of the public, is refused."""

    unit: Literal["party", "example"] = "party"
    adjacency: Adjacency = "add-remove"
    delta: Annotated[float, Limits(gt=0, lt=1)] = 1e-5
    epsilon: Annotated[float, Limits(gt=0)] | None = None


PARTY = Privacy()  # a party, added or removed


class Adversary(Part):
    """Against whom it is to hold.

    Args:
        coordinator: ``"honest-but-curious"``, or ``"malicious"``: it may depart from the protocol.
        colluding: parties that tell the coordinator, or each other, all that they know."""

    coordinator: Literal["honest-but-curious", "malicious"] = "honest-but-curious"
    colluding: Annotated[int, Limits(ge=0)] = 0
