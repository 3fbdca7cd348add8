"""The curve and its inverse against numbers worked by hand."""

import ast
import subprocess
import sys

import numpy as np
import pytest

from rlx.scaling.curve import burr, compute_to, lomax, power, sigmoid


def test_hand_worked_points():
    # (C_mid / C)^B at C = 50, 100, 200: 2^2, 1, 2^-2; gain 0.4 * (1/5, 1/2, 4/5)
    got = sigmoid([50.0, 100.0, 200.0], A=0.6, B=2.0, C_mid=100.0, R0=0.2)
    np.testing.assert_allclose(got, [0.28, 0.40, 0.52], rtol=1e-14)


def test_equals_the_printed_form():
    C = np.geomspace(1.0, 1e5, 50)
    printed = 0.4 + (0.645 - 0.4) / (1 + (10909 / C) ** 1.7)
    np.testing.assert_allclose(sigmoid(C, A=0.645, B=1.7, C_mid=10909, R0=0.4), printed, rtol=1e-13)


def test_limits_are_exact_and_nothing_overflows():
    C = [0.0, 1e-300, 1e300]
    assert sigmoid(C, A=0.9, B=20.0, C_mid=1e18, R0=0.137).tolist() == [0.137, 0.137, 0.9]


def test_high_compute_is_the_power_law():
    # A - D / C^B with D = (A - R0) C_mid^B (arXiv 2510.13786, A.4)
    C, A, B, C_mid, R0 = 1e6, 0.61, 1.9, 2500.0, 0.4
    left = A - sigmoid(C, A=A, B=B, C_mid=C_mid, R0=R0)
    assert left == pytest.approx((A - R0) * C_mid**B / C**B, rel=1e-4)


# ---------------------------------------------------------------- other curves

BURR = {"A": 0.7, "B": 1.3, "C_mid": 4000.0, "R0": 0.3}


def test_burr_by_hand():
    # kappa 2, B 1: s = 1 - (1 + (sqrt 2 - 1) C / C_mid)^-2, at C = C_mid / (sqrt 2 - 1) 1 - 1/4
    C = [100.0, 100 / (2**0.5 - 1)]
    got = burr(C, A=0.6, B=1.0, C_mid=100.0, R0=0.2, kappa=2.0)
    np.testing.assert_allclose(got, [0.4, 0.5], rtol=1e-14)


@pytest.mark.parametrize("kappa", [0.2, 0.7, 3.0, 25.0])
def test_burr_equals_the_plain_formula(kappa):
    C = np.geomspace(40, 4e5, 60)
    inner = (2 ** (1 / kappa) - 1) * (C / 4000) ** 1.3
    np.testing.assert_allclose(
        burr(C, **BURR, kappa=kappa), 0.3 + 0.4 * (1 - (1 + inner) ** -kappa), rtol=1e-12
    )


def test_burr_contains_the_sigmoid_and_weibull():
    C = np.geomspace(1, 1e6, 60)
    np.testing.assert_allclose(burr(C, **BURR, kappa=1.0), sigmoid(C, **BURR), rtol=1e-14)
    weibull = 0.3 + 0.4 * (1 - 0.5 ** ((C / 4000) ** 1.3))
    np.testing.assert_allclose(burr(C, **BURR, kappa=1e9), weibull, rtol=1e-8)


@pytest.mark.parametrize("kappa", [1e-3, 0.3, 1.0, 4.0, 1e6])
def test_burr_has_half_of_the_gain_at_C_mid(kappa):
    assert burr(4000.0, **BURR, kappa=kappa) == pytest.approx(0.5, abs=1e-9)


def test_burr_limits_are_exact_and_nothing_overflows():
    C = [0.0, 1e-300, 1e300]
    for kappa in (0.5, 30.0):
        got = burr(C, A=0.9, B=20.0, C_mid=1e18, R0=0.137, kappa=kappa)
        assert got.tolist() == [0.137, 0.137, 0.9]
    assert np.isfinite(burr(C, A=0.9, B=20.0, C_mid=1e18, R0=0.137, kappa=[1e-4, 1.0, 1e8])).all()


@pytest.mark.parametrize(("B", "kappa"), [(1.3, 0.4), (0.6, 2.0)])
def test_the_tail_exponent_of_burr_is_B_kappa(B, kappa):
    gap = 0.7 - burr([1e9, 1e10], A=0.7, B=B, C_mid=10.0, R0=0.3, kappa=kappa)
    assert np.log10(gap[0] / gap[1]) == pytest.approx(B * kappa, rel=1e-3)


def test_lomax_by_hand():
    # B 1: R0 + (A - R0) (1 - 1 / (1 + C / C_mid)), so 0, 1/2, 3/4 of the gain at 0, 1, 3 C_mid;
    # B 1/2: (2^2 - 1) C / C_mid, so 1 - 1/2 at C_mid and 1 - 1/4 at 5 C_mid
    p = {"A": 0.6, "C_mid": 100.0, "R0": 0.2}
    np.testing.assert_allclose(lomax([0.0, 100.0, 300.0], B=1.0, **p), [0.2, 0.4, 0.5], rtol=1e-14)
    np.testing.assert_allclose(lomax([0.0, 100.0, 500.0], B=0.5, **p), [0.2, 0.4, 0.5], rtol=1e-14)


def test_the_tail_of_lomax_is_the_power_law():
    A, B, C_mid, R0 = 0.7, 0.45, 100.0, 0.3
    D = (A - R0) * (C_mid / (2 ** (1 / B) - 1)) ** B
    C = np.array([1e9, 1e11])
    np.testing.assert_allclose(
        A - lomax(C, A=A, B=B, C_mid=C_mid, R0=R0), A - power(C, A=A, B=B, D=D), rtol=1e-6
    )


def test_power_by_hand():
    np.testing.assert_allclose(power([100.0, 400.0], A=0.7, B=0.5, D=2.0), [0.5, 0.6], rtol=1e-14)
    assert power(1e-2, A=0.7, B=0.5, D=2.0) == pytest.approx(-19.3)


def test_power_has_no_value_at_zero():
    with pytest.raises(ValueError, match="compute_C=0: the power law has no value there"):
        power([1.0, 0.0], A=0.6, B=1.0, D=1.0)


@pytest.mark.parametrize(
    ("curve", "more"),
    [
        (sigmoid, {"C_mid": 1.0, "R0": 0.1}),
        (burr, {"C_mid": 1.0, "R0": 0.1, "kappa": 1.0}),
        (lomax, {"C_mid": 1.0, "R0": 0.1}),
        (power, {"D": 1.0}),
    ],
)
def test_negative_compute_is_refused(curve, more):
    with pytest.raises(ValueError, match=r"compute_C=-1: negative"):
        curve([1.0, -1.0], A=0.6, B=1.0, **more)


# ---------------------------------------------------------------- the inverse


def test_compute_to_inverts_the_curve():
    p = {"A": 0.71, "B": 1.65, "C_mid": 4242.0, "R0": 0.51}
    y = np.linspace(0.511, 0.709, 30)
    np.testing.assert_allclose(sigmoid(compute_to(y, **p), **p), y, rtol=1e-12)
    assert compute_to(0.61, **p) == pytest.approx(4242.0)  # half of the gain


def test_compute_to_outside_the_curve():
    p = {"B": 2.0, "C_mid": 10.0, "R0": 0.2}
    assert compute_to([0.6, 0.7, 0.2, 0.1], A=0.6, **p).tolist() == [np.inf, np.inf, 0.0, 0.0]
    np.testing.assert_allclose(compute_to(0.5, A=[0.4, 0.8], **p), [np.inf, 10.0], rtol=1e-12)


@pytest.mark.parametrize("kappa", [0.3, 1.0, 8.0, 1e4])
def test_compute_to_inverts_burr(kappa):
    y = np.linspace(0.301, 0.699, 30)
    C = compute_to(y, **BURR, kappa=kappa)
    np.testing.assert_allclose(burr(C, **BURR, kappa=kappa), y, rtol=1e-10)
    assert compute_to(0.5, **BURR, kappa=kappa) == pytest.approx(4000.0, rel=1e-10)
    assert compute_to([0.7, 0.3], **BURR, kappa=kappa).tolist() == [np.inf, 0.0]


def test_compute_to_of_lomax_by_hand():
    p = {"A": 0.6, "B": 1.0, "C_mid": 100.0, "R0": 0.2}
    np.testing.assert_allclose(compute_to([0.4, 0.5], **p, kappa=0.5), [100.0, 500.0], rtol=1e-12)


def test_compute_beyond_all_numbers_is_inf():
    assert compute_to(0.599999, A=0.6, B=1e-3, C_mid=10.0, R0=0.2) == np.inf


def test_scaling_imports_none_of_the_trainer():
    code = (
        "import sys, rlx.scaling.curve, rlx.scaling.data, rlx.scaling.point\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'hydra', 'omegaconf', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "print(sorted(m for m in sys.modules if m.startswith('rlx.') and 'scaling' not in m))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    loaded, rlx_modules = done.stdout.splitlines()
    assert loaded == "[]"
    light = {f"rlx.{name}" for name in ("errors", "record", "config", "checksum")}
    assert set(ast.literal_eval(rlx_modules)) <= light
