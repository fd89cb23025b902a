"""Typed stages between a party's contribution and the method's total."""

from hansa.aggregation.adaptive_clip import AdaptiveClip
from hansa.aggregation.clip import Clip, NormBound, clip
from hansa.aggregation.codec import Codec
from hansa.aggregation.low_rank import LowRank
from hansa.aggregation.matrix import Banded, Tree
from hansa.aggregation.noise import Gaussian, LocalGaussian, LocalLaplace
from hansa.aggregation.quantization import QSGD, Quantize
from hansa.aggregation.reduce import Reduction
from hansa.aggregation.ring import Bucket, DiscreteGaussian, Grid, SecureSum, Skellam
from hansa.aggregation.robust import CenteredClip, GeometricMedian, Krum, Median, MultiKrum, TrimmedMean
from hansa.aggregation.rotation import Rotate
from hansa.aggregation.signal import Signal
from hansa.aggregation.sparsification import RandomK, RandomMask, Subsample, TopK
from hansa.aggregation.stage import Aggregation, Reducer, Stage, chain

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

adaptive_clip, norm_bound, low_rank = chain(AdaptiveClip), chain(NormBound), chain(LowRank)
banded, tree, rotate = chain(Banded), chain(Tree), chain(Rotate)
gaussian, local_gaussian, local_laplace = chain(Gaussian), chain(LocalGaussian), chain(LocalLaplace)
quantize, qsgd = chain(Quantize), chain(QSGD)
grid, skellam, discrete_gaussian = chain(Grid), chain(Skellam), chain(DiscreteGaussian)
bucket, secure_sum = chain(Bucket), chain(SecureSum)
median, trimmed_mean, krum, multi_krum = chain(Median), chain(TrimmedMean), chain(Krum), chain(MultiKrum)
geometric_median, centered_clip = chain(GeometricMedian), chain(CenteredClip)
top_k, random_k, random_mask, subsample = chain(TopK), chain(RandomK), chain(RandomMask), chain(Subsample)
