"""Effects against posteriors whose answers are known by hand."""

import numpy as np
import pytest

import rlx.scaling as sc
from rlx.scaling import effects
from tests.scaling.drawn import X, posterior


def only(table):
    assert len(table) == 1
    return table.iloc[0]


def test_a_level_that_moves_only_the_ceiling():
    # y = 0.2 + 0.8 * 0.3 = 0.44; i gains 40 % of 0.6 there, C = 4 * (0.4 / 0.6)^(1/2),
    # j 80 %, C = 4 * 2
    row = only(posterior([[0.5, 0.8]], 4.0, 2.0).effects("recipe"))
    assert (row["level"], row["reference"], row["matched"]) == ("j1", "j0", 1)
    for q in ("q05", "q50", "q95"):
        assert row[f"dA_{q}"] == pytest.approx(0.3, rel=1e-12)
        assert row[f"compute_ratio_{q}"] == pytest.approx((2 / 3) ** 0.5 / 2, rel=1e-9)
        assert row[f"pace_ratio_{q}"] == pytest.approx(1.0, rel=1e-9)
        assert row[f"dlogC_mid_{q}"] == pytest.approx(0.0, abs=1e-12)
    assert row["p_ceiling"] == row["p_raises"] == row["p_cheaper"] == row["p_efficiency"] == 1
    assert row["p_lowers"] == row["p_dearer"] == row["p_pace"] == row["p_uncompared"] == 0
    assert row["verdict"] == "ceiling mover"
    assert row["extrapolation"] == pytest.approx(1.0)  # j0 needs 8, its last compute
    assert row["prior_share"] == pytest.approx(0.0, abs=1e-12)


def test_a_level_that_moves_only_C_mid():
    row = only(posterior([[0.6, 0.6]], [2.0, 3.0], 1.5).effects("recipe"))
    assert row["compute_ratio_q50"] == pytest.approx(1.5, rel=1e-9)
    assert row["pace_ratio_q50"] == pytest.approx(1.5, rel=1e-9)
    assert row["dlogC_mid_q50"] == pytest.approx(np.log(1.5), rel=1e-9)
    assert (row["p_dearer"], row["p_cheaper"], row["p_ceiling"]) == (1, 0, 0)
    assert row["verdict"] == "efficiency shaper"
    assert row["extrapolation"] == pytest.approx(3 * 4 ** (1 / 1.5) / 8)


def test_a_level_that_moves_nothing_and_one_that_moves_both():
    table = posterior([[0.6, 0.61, 0.8]], [2.0, 2.1, 4.0], 1.5).effects("recipe")
    assert table["level"].tolist() == ["j1", "j2"]
    assert table["verdict"].tolist() == ["neither", "both"]
    wide = posterior([[0.6, 0.61, 0.8]], [2.0, 2.1, 4.0], 1.5).effects(
        "recipe", margin_A=0.005, margin_compute=0.01
    )
    assert wide["p_ceiling"].tolist() == [1, 1]


def test_probabilities_are_frequencies_of_draws_beyond_the_margins():
    A = np.tile([0.5, 0.5], (X, 1))
    # 0.6 raise by 0.03, 0.25 lower by 0.04, 0.15 lower by 0.01: no direction has 0.85
    A[:1200, 1], A[1200:1700, 1], A[1700:, 1] = 0.53, 0.46, 0.49
    fit = posterior(A, 2.0, 1.5)
    row = only(fit.effects("recipe"))
    assert (row["p_ceiling"], row["p_raises"], row["p_lowers"]) == (0.85, 0.6, 0.25)
    assert (row["dA_q05"], row["dA_q50"], row["dA_q95"]) == pytest.approx((-0.04, 0.03, 0.03))
    assert row["verdict"] == "undecided"
    assert only(fit.effects("recipe", decide=0.85))["verdict"] == "undecided"
    assert only(fit.effects("recipe", decide=0.6))["verdict"] == "ceiling mover"
    assert only(fit.effects("recipe", margin_A=0.035))["p_ceiling"] == 0.25
    assert only(fit.effects("recipe", margin_A=0.035, prob=0.6))["dA_q20"] == pytest.approx(-0.04)
    prior_A = fit.prior_curves("recipe")["A"]
    sd = (A[:, 1] - A[:, 0]).std() / (prior_A[:, 1] - prior_A[:, 0]).std()
    assert row["prior_share"] == pytest.approx(sd, rel=1e-9)


@pytest.mark.parametrize(
    ("raises", "lowers", "cheaper", "dearer", "sooner", "later", "uncompared", "verdict"),
    [
        (0.9, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0, "both"),
        (0.0, 0.9, 0.0, 0.0, 0.0, 0.9, 0.0, "both"),
        (0.9, 0.0, 1.0, 0.0, 0.8, 0.0, 0.0, "ceiling mover"),
        (0.0, 0.9, 0.0, 0.0, 0.45, 0.45, 0.0, "ceiling mover"),
        (0.8, 0.0, 0.9, 0.0, 0.9, 0.0, 0.1, "efficiency shaper"),
        (0.0, 0.0, 0.0, 0.9, 0.0, 0.9, 0.0, "efficiency shaper"),
        (0.0, 0.0, 0.0, 0.9, 0.9, 0.0, 0.0, "undecided"),  # dearer, though sooner
        (0.8, 0.0, 0.9, 0.0, 0.8, 0.0, 0.0, "undecided"),  # cheaper, perhaps for its ceiling alone
        (0.5, 0.49, 0.5, 0.49, 0.5, 0.49, 0.0, "undecided"),  # beyond the margins, no direction
        (0.1, 0.0, 0.0, 0.05, 0.0, 1.0, 0.05, "neither"),
        (0.05, 0.05, 0.05, 0.0, 0.5, 0.5, 0.05, "neither"),
        (0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, "undecided"),
        (0.0, 0.0, 0.05, 0.0, 0.0, 0.0, 0.2, "undecided"),
    ],
)
def test_a_verdict_needs_a_direction(
    raises, lowers, cheaper, dearer, sooner, later, uncompared, verdict
):
    p = {"p_raises": raises, "p_lowers": lowers, "p_ceiling": raises + lowers}
    p |= {"p_cheaper": cheaper, "p_dearer": dearer, "p_efficiency": cheaper + dearer}
    p |= {"p_sooner": sooner, "p_later": later, "p_uncompared": uncompared}
    assert effects._verdict(p, 0.9 - 1e-12) == verdict


def test_a_posterior_that_is_merely_wide_is_undecided():
    A = np.random.default_rng(0).uniform(0.25, 1.0, (X, 2))  # anywhere, of two equal recipes
    row = only(posterior(A, 2.0, 1.5).effects("recipe"))
    assert min(row["p_ceiling"], row["p_efficiency"]) > 0.9
    assert 0.4 < row["p_raises"] < 0.55 and 0.4 < row["p_cheaper"] < 0.55
    assert row["verdict"] == "undecided"


def test_margins_of_compute_are_relative():
    # 1.12 and 1 / 1.12 are beyond 10 %, 1.08 and 1 / 1.08 are not
    C_mid = np.array([1.0, 1.12, 1 / 1.12, 1.08, 1 / 1.08])
    table = posterior(np.full((1, 5), 0.6), C_mid, 1.5).effects("recipe")
    assert table["p_dearer"].tolist() == [1, 0, 0, 0]
    assert table["p_cheaper"].tolist() == [0, 1, 0, 0]
    assert table["p_efficiency"].tolist() == table["p_pace"].tolist() == [1, 1, 0, 0]


def test_pace_is_taken_at_four_fifths_of_the_gain():
    row = only(posterior([[0.5, 0.7]], 2.0, [1.0, 2.0]).effects("recipe"))
    assert row["pace_ratio_q50"] == pytest.approx(4 ** (1 / 2 - 1))


def test_exponents_of_the_tail_and_of_the_curve():
    # kappa shared: the ratios of B and of B kappa agree; under "power", B is the exponent itself
    row = only(posterior([[0.6, 0.6]], 2.0, [1.0, 1.5], kappa=0.5).effects("recipe"))
    assert row["B_ratio_q50"] == pytest.approx(1.5) == row["B_tail_ratio_q50"]
    row = only(posterior([[0.6, 0.6]], 2.0, [0.8, 1.6], curve="power").effects("recipe"))
    assert row["B_ratio_q50"] == pytest.approx(2.0) == row["B_tail_ratio_q50"]


def test_a_target_that_the_level_reaches_in_some_draws_only():
    A = np.tile([0.7, 0.7], (X, 1))
    A[:600, 1] = 0.5  # 30 % of the draws never reach 0.6
    row = only(posterior(A, [2.0, 1.0], 1.0).effects("recipe", target=0.6))
    assert (row["p_reach"], row["p_reach_reference"], row["p_uncompared"]) == (0.7, 1.0, 0.0)
    assert (row["p_dearer"], row["p_cheaper"], row["p_efficiency"]) == (0.3, 0.7, 1.0)
    assert row["compute_ratio_q05"] == pytest.approx(0.5)
    assert row["compute_ratio_q95"] == np.inf
    assert row["extrapolation"] == pytest.approx(2 * 4 / 8)  # median: j0's, at odds 0.4 / 0.1


def test_a_target_that_only_the_level_reaches():
    row = only(posterior([[0.5, 0.7]], 2.0, 1.0).effects("recipe", target=0.6))
    assert row["compute_ratio_q05"] == row["compute_ratio_q95"] == 0
    assert (row["p_cheaper"], row["p_reach"], row["p_reach_reference"]) == (1, 1, 0)
    assert row["extrapolation"] == np.inf


def test_a_target_that_nobody_reaches_decides_nothing():
    row = only(posterior([[0.5, 0.505]], [1.0, 9.0], 1.0).effects("recipe", target=0.9))
    assert (row["p_uncompared"], row["p_efficiency"], row["p_reach"]) == (1, 0, 0)
    assert np.isnan(row["compute_ratio_q50"])
    assert row["verdict"] == "undecided"  # not "neither": nothing was compared
    # a start above the target compares nothing either
    row = only(posterior([[0.5, 0.505]], [1.0, 9.0], 1.0).effects("recipe", target=0.1))
    assert row["p_uncompared"] == 1 and row["p_reach"] == 1


def test_an_infinite_draw_is_not_averaged_away():
    A = np.tile([0.7, 0.5, 0.7, 0.8], (X, 1))
    axes = {"loss": ["a", "b", "a", "b"], "size": ["1", "1", "2", "2"]}
    fit = posterior(A, [1.0, 1.0, 1.0, 0.5], 1.0, axes=axes | {"recipe": ["r"] * 4})
    row = only(fit.effects("loss", target=0.6))
    assert row["compute_ratio_q50"] == np.inf and row["p_reach"] == 0.5
    # at 0.72 the first pair compares nothing, the second has 0 / ... no: only b reaches, ratio 0
    row = only(fit.effects("loss", target=0.72))
    assert row["compute_ratio_q50"] == 0 and row["p_uncompared"] == 0


GRID = {"loss": ["a", "b", "a", "b", "b"], "size": ["10", "10", "9", "9", "8"], "recipe": ["r"] * 5}
GRID_A = [[0.5, 0.6, 0.55, 0.75, 0.3]]


def test_pairs_are_matched_on_the_other_axes():
    fit = posterior(GRID_A, [2.0, 4.0, 2.0, 2.0, 9.0], 1.0, axes=GRID)
    row = only(fit.effects("loss"))
    assert row["matched"] == 2  # the last recipe has no partner
    assert row["dA_q50"] == pytest.approx((0.1 + 0.2) / 2)
    assert row["dlogC_mid_q50"] == pytest.approx(np.log(2) / 2)
    assert row["pace_ratio_q50"] == pytest.approx(2**0.5)
    row = only(fit.effects("loss", reference="b"))
    assert (row["level"], row["reference"]) == ("a", "b")
    assert row["dA_q50"] == pytest.approx(-0.15)


def test_numeric_levels_are_ordered_by_value():
    fit = posterior(GRID_A, 2.0, 1.0, axes=GRID)
    table = fit.effects("size")
    assert table["reference"].tolist() == ["8", "8"] and table["level"].tolist() == ["9", "10"]
    assert table["matched"].tolist() == [1, 1]
    assert table["dA_q50"].tolist() == pytest.approx([0.75 - 0.3, 0.6 - 0.3])
    assert fit.effects("size", reference=9)["level"].tolist() == ["8", "10"]
    axes = GRID | {"size": ["10", "10", "9", "9", "none"]}
    named = posterior(GRID_A, 2.0, 1.0, axes=axes).effects("size")
    assert named["level"].tolist() == ["9", "none"]  # one is no number: as they come


def test_unmatched_cells_are_averaged_over():
    # recipe names that differ everywhere are set aside; without any partner all cells count
    names = {"recipe": ["p", "q", "r", "s"], "loss": ["a", "b", "a", "b"]}
    A = [[0.5, 0.6, 0.55, 0.75]]
    row = only(posterior(A, 2.0, 1.0, axes=names | {"size": ["1", "1", "2", "2"]}).effects("loss"))
    assert row["matched"] == 2 and row["dA_q50"] == pytest.approx(0.15)
    alone = names | {"size": ["1", "2", "3", "4"]}
    row = only(posterior(A, 2.0, 1.0, axes=alone).effects("loss"))
    assert row["matched"] == 0 and row["dA_q50"] == pytest.approx(
        (0.6 + 0.75) / 2 - (0.5 + 0.55) / 2
    )
    row = only(posterior(A, 2.0, 1.0, axes=names).effects("loss"))
    assert row["matched"] == 0 and row["dA_q50"] == pytest.approx(0.15)


def test_starts_of_different_pass_rates():
    # y = max R0 + 0.8 (min A - max R0) = 0.3 + 0.8 * 0.2; odds 0.26 / 0.04 and 0.16 / 0.14
    row = only(posterior([[0.5, 0.6]], 2.0, 1.0, R0_J=[0.2, 0.3]).effects("recipe"))
    assert row["compute_ratio_q50"] == pytest.approx((0.16 / 0.14) / (0.26 / 0.04))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"axis": "loss"}, "axis=loss: not in this fit; use one of recipe, size"),
        ({"axis": "size"}, "axis=size: has one level, 1; compare recipes that differ"),
        ({"axis": "recipe", "reference": "z"}, "reference=z: not a level of recipe; use one of j0"),
        ({"axis": "recipe", "target": 60}, "target=60: not a pass rate"),
        ({"axis": "recipe", "margin_A": -0.1}, "margin_A=-0.1: negative"),
        ({"axis": "recipe", "margin_compute": -0.1}, "margin_compute=-0.1: negative"),
        ({"axis": "recipe", "prob": 1.0}, "prob=1.0: not the mass"),
        ({"axis": "recipe", "decide": 0.5}, r"decide=0.5: not in \(0.5, 1\]"),
    ],
)
def test_effects_refuses(options, line):
    fit = posterior([[0.5, 0.6]], 2.0, 1.0, axes={"size": ["1", "1"]})
    with pytest.raises(sc.InputError, match=line):
        fit.effects(**options)
