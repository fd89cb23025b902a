"""Typed stages between a party's contribution and the method's total."""

from hansa.aggregation.clip import Clip, clip
from hansa.aggregation.reduce import Reduction, weighted_mean
from hansa.aggregation.signal import Signal
from hansa.aggregation.stage import Aggregation, Stage

__all__ = ["Aggregation", "Clip", "Reduction", "Signal", "Stage", "clip", "weighted_mean"]
