"""Families of scaling curves, one object each, which is all that fits and questions need.

    R(C) = R0 + (A - R0) * s(x),   x = log(C / C_mid),   s from 0 at C = 0 to 1 in the limit

    sigmoid    s = 1 / (1 + exp(-B x))                               arXiv 2510.13786, Eq. 1
    burr       s = 1 - (1 + (2^(1/kappa) - 1) exp(B x))^-kappa       kappa shared by all runs
    power      s = 1 - (1 + (2^(1/B) - 1) exp(x))^-B                 a power law that starts at R0
    two_rises  s = (1 - second) burr(x) + second sigmoid(sharp (x - delay))
    dip        R0 first falls to R0 (1 - fall f(x)),   f = sigmoid(x + lead),   s of burr

The first three, and dip without its fall, reach half of the gain at C_mid; of two_rises it is the
first rise that does. kappa = 1 is the sigmoid. The gap to the ceiling closes as C^-(B kappa) under
burr, as C^-B under sigmoid and power.

A family is a class with a name, its share s, its parameters besides A, B, C_mid and R0 with their
sites and priors, and the inverse of s if it has a closed form; it is registered in FAMILIES. The
model, the sampler and its coordinates, the saved file and every question follow from that. One that
can fall below R0 defines `level` and `compute_to` instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize.elementwise import find_root

from rlx.scaling.priors import NUMPY, Ops, Site

Floats = NDArray[np.float64]

FARTHEST_X = 700.0  # of |log(C / C_mid)|, beyond which exp would overflow


class Own(NamedTuple):
    """A parameter of a family: the site that holds it, and the inverse of its log or logit, a field
    of `Ops`."""

    site: str
    link: str


class Family:
    """A family of curves. share, tail and inverse take B and the family's parameters p by name."""

    name: ClassVar[str]
    own: ClassVar[dict[str, Own]] = {}  # parameters besides A, B, C_mid and R0
    sites: ClassVar[tuple[Site, ...]] = ()  # of the model, shared or per recipe
    leveled: ClassVar[bool] = True  # uses Burr's level coordinates, with its kappa or 1

    def share(self, x: Any, ops: Ops, *_: Any, **p: Any) -> Any:
        """s at x = log(C / C_mid), rising in x."""
        raise NotImplementedError

    def level(self, x: Any, ops: Ops, *_: Any, R0: Any, gain: Any, **p: Any) -> Any:
        """R(C) at x; gain = A - R0."""
        return R0 + gain * self.share(x, ops, **p)

    def tail(self, *_: Any, **p: Any) -> Any:
        """B_tail, the exponent with which the gap to the ceiling closes."""
        return p["B"]

    def inverse(self, log_left: Any, ops: Ops, *_: Any, **p: Any) -> Any:
        """x at which 1 - s = exp(log_left), by bracketing; families may have a closed form.

        -inf and inf if it lies beyond FARTHEST_X.
        """

        def above(x: Floats, log_left: Floats, *held: Floats) -> Floats:
            return self.share(x, ops, **dict(zip(p, held, strict=True))) + np.expm1(log_left)

        return root(above, log_left, *p.values())

    def of_sites(self, values: dict[str, Any], ops: Ops) -> dict[str, Any]:
        """The family's own parameters from the values of their sites."""
        return {name: getattr(ops, own.link)(values[name]) for name, own in self.own.items()}

    def at(
        self,
        compute_C: ArrayLike,
        *,
        A: ArrayLike,
        B: ArrayLike,
        C_mid: ArrayLike,
        R0: ArrayLike,
        **own: ArrayLike,
    ) -> Floats:
        """Pass rate after compute C; the arguments broadcast.

        Args:
            compute_C: training compute, >= 0, in any unit; exactly 0 gives exactly R0.
            A: ceiling, a fraction in [0, 1].
            B: steepness, > 0, no unit.
            C_mid: compute where half of A - R0 is gained, > 0, in the unit of compute_C.
            R0: pass rate at C = 0, a fraction in [0, 1].
            own: the family's own parameters.

        Raises:
            ValueError: some compute is negative.
        """
        with np.errstate(divide="ignore"):
            x = log_compute(compute_C) - np.log(C_mid)
            held = {name: np.asarray(value) for name, value in own.items()}
            return self.level(x, NUMPY, R0=R0, gain=np.asarray(A) - R0, B=B, **held)

    def compute_to(
        self,
        target: ArrayLike,
        *,
        A: ArrayLike,
        B: ArrayLike,
        C_mid: ArrayLike,
        R0: ArrayLike,
        **own: ArrayLike,
    ) -> Floats:
        """Compute at which the curve reaches the pass rate `target`, in the unit of C_mid.

        inf where A <= target (never reached), 0 where target <= R0 (reached before training).
        The other arguments are those of `at`.
        """
        target, A, R0, B = (np.asarray(x, dtype=np.float64) for x in (target, A, R0, B))
        held = {name: np.asarray(x, dtype=np.float64) for name, x in own.items()}
        gained, left = np.broadcast_arrays(np.maximum(target - R0, 0.0), A - target)
        odds = np.divide(gained, left, out=np.full(left.shape, np.inf), where=left > 0)
        with np.errstate(divide="ignore", over="ignore"):  # beyond 1e308 is inf
            x = self.inverse(-np.log1p(odds), NUMPY, B=B, **held)
            return np.asarray(C_mid * np.exp(x))


class Burr(Family):
    """The Burr type XII distribution of C (Burr 1942, Ann. Math. Stat. 13:215), scaled to its
    median."""

    name = "burr"
    own: ClassVar = {"kappa": Own("log_kappa", "exp")}
    sites = (Site("log_kappa", (), lambda priors, *_: priors.log_kappa),)

    def share(self, x: Any, ops: Ops, *, B: Any, kappa: Any, **_: Any) -> Any:
        half = log_expm1(math.log(2.0) / kappa, ops)
        return -ops.expm1(-kappa * ops.softplus(B * x + half))

    def inverse(self, log_left: Any, ops: Ops, *, B: Any, kappa: Any, **_: Any) -> Any:
        u = log_expm1(-log_left / kappa, ops) - log_expm1(math.log(2.0) / kappa, ops)
        return u / B

    def tail(self, *, B: Any, kappa: Any, **_: Any) -> Any:
        return B * kappa


class Sigmoid(Family):
    """arXiv 2510.13786, Eq. 1."""

    name = "sigmoid"

    def share(self, x: Any, ops: Ops, *, B: Any) -> Any:
        return ops.logistic(B * x)

    def inverse(self, log_left: Any, ops: Ops, *, B: Any) -> Any:
        return log_expm1(-log_left, ops) / B


class Power(Family):
    """The Lomax distribution of C (Lomax 1954, J. Am. Stat. Assoc. 49:847), scaled to its median:
    Burr with steepness 1 and kappa = B."""

    name = "power"
    leveled = False

    def share(self, x: Any, ops: Ops, *, B: Any) -> Any:
        return BURR.share(x, ops, B=1.0, kappa=B)

    def inverse(self, log_left: Any, ops: Ops, *, B: Any) -> Any:
        return BURR.inverse(log_left, ops, B=1.0, kappa=B)


class TwoRises(Family):
    """Burr, and a second rise a factor exp(delay) of compute later, with a share of the gain that
    is each recipe's own."""

    name = "two_rises"
    own: ClassVar = Burr.own | {
        "second": Own("logit_second", "logistic"),
        "delay": Own("log_delay", "exp"),
        "sharp": Own("log_sharp", "exp"),
    }
    sites = (
        *Burr.sites,
        Site("logit_second_mean", (), lambda *_: (-2.0, 1.0)),
        Site("logit_second", ("recipe",), lambda _, sites, *__: (sites["logit_second_mean"], 1.0)),
        Site("log_delay_mean", (), lambda *_: (0.4, 0.4)),
        Site("log_delay", ("recipe",), lambda _, sites, *__: (sites["log_delay_mean"], 0.3)),
        Site("log_sharp", (), lambda *_: (0.5, 0.7)),
    )

    def share(
        self, x: Any, ops: Ops, *, B: Any, kappa: Any, second: Any, delay: Any, sharp: Any
    ) -> Any:
        first = BURR.share(x, ops, B=B, kappa=kappa)
        return (1 - second) * first + second * ops.logistic(B * sharp * (x - delay))

    def tail(self, *, B: Any, kappa: Any, sharp: Any, **_: Any) -> Any:
        return B * np.minimum(kappa, sharp)


class Dip(Burr):
    """Burr of a pass rate that first falls by a share `fall` of R0, each recipe's own."""

    name = "dip"
    own: ClassVar = Burr.own | {
        "fall": Own("logit_fall", "logistic"),
        "lead": Own("log_lead", "exp"),
    }
    sites = (
        *Burr.sites,
        Site("logit_fall_mean", (), lambda *_: (-2.0, 1.0)),
        Site("logit_fall", ("recipe",), lambda _, sites, *__: (sites["logit_fall_mean"], 1.0)),
        Site("log_lead", (), lambda *_: (0.5, 0.5)),
    )

    def level(
        self, x: Any, ops: Ops, *, R0: Any, gain: Any, B: Any, kappa: Any, fall: Any, lead: Any
    ) -> Any:
        s = self.share(x, ops, B=B, kappa=kappa)
        return R0 + gain * s - (1 - s) * R0 * fall * ops.logistic(B * (x + lead))

    def compute_to(
        self,
        target: ArrayLike,
        *,
        A: ArrayLike,
        B: ArrayLike,
        C_mid: ArrayLike,
        R0: ArrayLike,
        **own: ArrayLike,
    ) -> Floats:
        """Where the curve rises through `target`: once, since it does not fall while above R0."""

        def above(x: Floats, target: Floats, A: Floats, R0: Floats, *held: Floats) -> Floats:
            p = dict(zip(("B", *own), held, strict=True))
            return self.level(x, NUMPY, R0=R0, gain=A - R0, **p) - target

        x = root(above, target, A, R0, B, *own.values())
        target, A, R0 = np.asarray(target), np.asarray(A), np.asarray(R0)
        with np.errstate(over="ignore"):
            C = np.asarray(C_mid * np.exp(x))
        return np.select([target <= R0, target >= A], [0.0, np.inf], C)


BURR, SIGMOID, POWER = Burr(), Sigmoid(), Power()
FAMILIES: dict[str, Family] = {
    family.name: family for family in (BURR, SIGMOID, POWER, TwoRises(), Dip())
}


def root(above: Callable[..., Floats], *args: ArrayLike) -> Floats:
    """x where above(x, *args), rising in x, is 0, by bracketing; -inf and inf if it lies beyond
    FARTHEST_X. The arguments broadcast."""
    args = tuple(np.broadcast_arrays(*args))
    ends = np.full(args[0].shape, FARTHEST_X)
    early, late = above(-ends, *args) >= 0, above(ends, *args) <= 0
    found = find_root(above, (-ends, ends), args=args)
    return np.select([early, late], [-np.inf, np.inf], found.x)


def log_expm1(x: Any, ops: Ops) -> Any:
    """log(exp(x) - 1) for x >= 0, without overflow; -inf at 0."""
    return x + ops.log(-ops.expm1(-x))


def log_compute(compute_C: ArrayLike) -> Floats:
    """log C; -inf at C = 0. Raises ValueError where it is negative."""
    compute_C = np.asarray(compute_C, dtype=np.float64)
    if np.any(compute_C < 0):
        raise ValueError(f"compute_C={compute_C.min():g}: negative; compute starts at 0")
    with np.errstate(divide="ignore"):
        return np.log(compute_C)
