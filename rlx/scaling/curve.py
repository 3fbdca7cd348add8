"""Scaling curves of a run: pass rate against training compute.

`sigmoid` is the curve of "The Art of Scaling Reinforcement Learning Compute for LLMs" (arXiv
2510.13786, Eq. 1); `burr` adds one parameter for the speed of the final approach and `lomax` is
its power-law limit: three families of rlx.scaling.families, by their parameters. `power` is the
paper's alternative. Written in log C, none overflows, and the first three give exactly R0 at C = 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlx.scaling.families import BURR, POWER, SIGMOID, log_compute

Floats = NDArray[np.float64]


def sigmoid(
    compute_C: ArrayLike, *, A: ArrayLike, B: ArrayLike, C_mid: ArrayLike, R0: ArrayLike
) -> Floats:
    """Pass rate after compute C.

        R = R0 + (A - R0) / (1 + (C_mid / C)^B) = R0 + (A - R0) * logistic(B * log(C / C_mid))

    Args:
        compute_C: training compute, >= 0, in any unit; exactly 0 gives exactly R0.
        A: ceiling, a fraction in [0, 1].
        B: steepness, > 0, no unit.
        C_mid: compute where half of A - R0 is gained, > 0, in the unit of compute_C.
        R0: pass rate at C = 0, a fraction in [0, 1].

    Returns:
        Pass rates, a fraction; the arguments broadcast.

    Raises:
        ValueError: some compute is negative.

    Source: arXiv 2510.13786, Eq. 1.
    """
    return SIGMOID.at(compute_C, A=A, B=B, C_mid=C_mid, R0=R0)


def burr(
    compute_C: ArrayLike,
    *,
    A: ArrayLike,
    B: ArrayLike,
    C_mid: ArrayLike,
    R0: ArrayLike,
    kappa: ArrayLike,
) -> Floats:
    """Pass rate after compute C, with a shape for the approach to the ceiling.

        R = R0 + (A - R0) * s(u),   u = B * log(C / C_mid)
        s(u) = 1 - (1 + (2^(1/kappa) - 1) * e^u)^-kappa

    Half of A - R0 is gained at C_mid, whatever kappa. The gap to the ceiling closes as
    C^-(B * kappa); kappa = 1 is `sigmoid`, kappa -> inf is Weibull, 1 - 2^-(C / C_mid)^B.

    Args:
        compute_C, A, B, C_mid, R0: as in `sigmoid`.
        kappa: shape, > 0, no unit.

    Returns:
        Pass rates, a fraction; the arguments broadcast.

    Raises:
        ValueError: some compute is negative.

    Source: the Burr type XII distribution of C (Burr 1942, Ann. Math. Stat. 13:215), scaled to its
    median.
    """
    return BURR.at(compute_C, A=A, B=B, C_mid=C_mid, R0=R0, kappa=kappa)


def lomax(
    compute_C: ArrayLike, *, A: ArrayLike, B: ArrayLike, C_mid: ArrayLike, R0: ArrayLike
) -> Floats:
    """Pass rate after compute C: the power law, shifted so that it starts at R0 at C = 0.

        R = R0 + (A - R0) * (1 - (1 + (2^(1/B) - 1) * C / C_mid)^-B)

    It is `burr` with u = log(C / C_mid) and kappa = B: the gap to the ceiling closes as C^-B and
    half of it is closed at C_mid.

    Args:
        compute_C, A, C_mid, R0: as in `sigmoid`.
        B: exponent of the tail, > 0, no unit.

    Returns:
        Pass rates, a fraction; the arguments broadcast.

    Raises:
        ValueError: some compute is negative.

    Source: the Lomax distribution of C (Lomax 1954, J. Am. Stat. Assoc. 49:847), scaled to its
    median.
    """
    return POWER.at(compute_C, A=A, B=B, C_mid=C_mid, R0=R0)


def power(compute_C: ArrayLike, *, A: ArrayLike, B: ArrayLike, D: ArrayLike) -> Floats:
    """Pass rate after compute C under the saturating power law.

        R = A - D / C^B

    With D = (A - R0) * C_mid^B it is the `sigmoid` at C >> C_mid; towards C = 0 it falls without
    bound.

    Args:
        compute_C: training compute, > 0, in any unit.
        A: ceiling, a fraction in [0, 1].
        B: exponent, > 0, no unit.
        D: gap to the ceiling at C = 1, > 0.

    Returns:
        Pass rates, a fraction; the arguments broadcast.

    Raises:
        ValueError: some compute is not positive.

    Source: arXiv 2510.13786, A.4.
    """
    log_C = log_compute(compute_C)
    if np.any(np.isneginf(log_C)):
        raise ValueError("compute_C=0: the power law has no value there; drop that point")
    return np.asarray(A) - D * np.exp(-np.asarray(B) * log_C)


def compute_to(
    target: ArrayLike,
    *,
    A: ArrayLike,
    B: ArrayLike,
    C_mid: ArrayLike,
    R0: ArrayLike,
    kappa: ArrayLike = 1.0,
) -> Floats:
    """Compute at which the curve reaches `target`: the inverse of `burr`, and of `sigmoid`.

        C = C_mid * (((1 - s)^(-1/kappa) - 1) / (2^(1/kappa) - 1))^(1/B),   s = (y - R0) / (A - R0)

    Args:
        target: pass rate y, a fraction.
        A, B, C_mid, R0: as in `sigmoid`.
        kappa: as in `burr`; 1 is the sigmoid, where C = C_mid * ((y - R0) / (A - y))^(1/B).

    Returns:
        Compute in the unit of C_mid; inf where A <= y (never reached), 0 where y <= R0 (reached
        before training); the arguments broadcast.

    Source: arXiv 2510.13786, Eq. 1, solved for C, with the shape of `burr`.
    """
    return BURR.compute_to(target, A=A, B=B, C_mid=C_mid, R0=R0, kappa=kappa)
