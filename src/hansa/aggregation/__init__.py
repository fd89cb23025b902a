"""Typed stages between a party's contribution and the method's total."""

from hansa.aggregation.adaptive_clip import AdaptiveClip, adaptive_clip
from hansa.aggregation.clip import Clip, NormBound, clip, norm_bound
from hansa.aggregation.codec import Codec
from hansa.aggregation.low_rank import LowRank, low_rank
from hansa.aggregation.matrix import Banded, Tree, banded, tree
from hansa.aggregation.noise import Gaussian, LocalGaussian, LocalLaplace, gaussian, local_gaussian, local_laplace
from hansa.aggregation.quantization import QSGD, Quantize, qsgd, quantize
from hansa.aggregation.reduce import Reduction
from hansa.aggregation.ring import (
    Bucket,
    DiscreteGaussian,
    Grid,
    SecureSum,
    Skellam,
    bucket,
    discrete_gaussian,
    grid,
    secure_sum,
    skellam,
)
from hansa.aggregation.robust import (
    CenteredClip,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    TrimmedMean,
    centered_clip,
    geometric_median,
    krum,
    median,
    multi_krum,
    trimmed_mean,
)
from hansa.aggregation.rotation import Rotate, rotate
from hansa.aggregation.signal import Signal
from hansa.aggregation.sparsification import (
    RandomK,
    RandomMask,
    Subsample,
    TopK,
    random_k,
    random_mask,
    subsample,
    top_k,
)
from hansa.aggregation.stage import Aggregation, Reducer, Stage

__all__ = [
    "QSGD", "AdaptiveClip", "Aggregation", "Banded", "Bucket", "CenteredClip", "Clip", "Codec", "DiscreteGaussian",
    "Gaussian", "GeometricMedian", "Grid", "Krum", "LocalGaussian", "LocalLaplace", "LowRank", "Median",
    "MultiKrum", "NormBound", "Quantize", "RandomK", "RandomMask", "Reducer", "Reduction", "Rotate",
    "SecureSum", "Signal", "Skellam", "Stage", "Subsample", "TopK", "Tree", "TrimmedMean",
    "adaptive_clip", "banded", "bucket", "centered_clip", "clip", "discrete_gaussian", "gaussian",
    "geometric_median", "grid", "krum", "local_gaussian", "local_laplace", "low_rank", "median",
    "multi_krum", "norm_bound", "qsgd", "quantize", "random_k", "random_mask", "rotate", "secure_sum",
    "skellam", "subsample", "top_k", "tree", "trimmed_mean",
]  # fmt: skip
