"""The curve and its inverse against numbers worked by hand."""

import subprocess
import sys

import numpy as np
import pytest

from rlx.scaling.curve import compute_to, sigmoid


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


def test_negative_compute_is_refused():
    with pytest.raises(ValueError, match=r"compute_C=-1: negative"):
        sigmoid([1.0, -1.0], A=0.6, B=1.0, C_mid=1.0, R0=0.1)


def test_compute_to_inverts_the_curve():
    p = {"A": 0.71, "B": 1.65, "C_mid": 4242.0, "R0": 0.51}
    y = np.linspace(0.511, 0.709, 30)
    np.testing.assert_allclose(sigmoid(compute_to(y, **p), **p), y, rtol=1e-12)
    assert compute_to(0.61, **p) == pytest.approx(4242.0)  # half of the gain


def test_compute_to_outside_the_curve():
    p = {"B": 2.0, "C_mid": 10.0, "R0": 0.2}
    assert compute_to([0.6, 0.7, 0.2, 0.1], A=0.6, **p).tolist() == [np.inf, np.inf, 0.0, 0.0]
    np.testing.assert_allclose(compute_to(0.5, A=[0.4, 0.8], **p), [np.inf, 10.0], rtol=1e-12)


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
    assert rlx_modules in ("[]", "['rlx.record']")
