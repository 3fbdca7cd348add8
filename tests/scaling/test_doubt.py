"""What forecasts add to the fitted curve: by formula, by hand, and the same in every question."""

import numpy as np
import pytest

import rlx.scaling as sc
from rlx.scaling.curve import sigmoid
from rlx.scaling.doubt import PAST, Doubt, brownian, doubted, noise
from rlx.scaling.paths import HORIZON, REACHABLE, ceiling, first_passage, horizon, paths, reach
from tests.scaling.hand import R0, hand_fit

ONE = [(0.8, 2.0, 1.5)] * 2000
TWO = [(0.7, 3.0, 1.0)] * 2000
CERTAIN = Doubt(drift=(0.0, 0.0), walk=0.0, walk_pace=0.0)


def fit_of(doubt):
    return hand_fit({"one": ONE, "two": TWO}, doubt=Doubt.text(doubt))


@pytest.fixture(scope="module")
def fit():
    return fit_of(Doubt())


def test_drift_and_walk_have_their_moments():
    doubt = Doubt(drift=(0.2, 0.5), shared=0.6)
    drawn = noise(20_000, 3, doubt)
    assert drawn.drift_XJ.mean(0) == pytest.approx(0.2, abs=0.02)
    assert drawn.drift_XJ.std(0) == pytest.approx(0.5, rel=0.03)
    L = np.array([[0.003, 0.05, 0.7, np.log(10.0), 6.0]])
    W = brownian(drawn.W_XJK, np.repeat(L, 3, 0))
    assert W.var(0) == pytest.approx(np.repeat(L, 3, 0), rel=0.05)
    for x in (drawn.drift_XJ, W[..., -1]):
        assert np.corrcoef(x.T)[np.triu_indices(3, 1)] == pytest.approx(0.6, abs=0.03)


def test_deviations_of_a_new_seed_are_independent_of_its_wander():
    """Three computes, as many as a seed has parameters: the same numbers would fill both arrays."""
    certain = fit_of(None)
    certain.tree["posterior"]["log_seed_sd"][:] = np.log(0.3)
    asked = np.array([2.0, 4.0, 8.0])
    typical, new = (certain.curve(asked, "recipe", seeds).values for seeds in ("typical", "new"))
    wander = certain.predict(asked, "recipe", trials=np.inf).values - new
    for j, k in ((0, 0), (0, 1), (1, 2)):
        pair = np.corrcoef((new - typical)[..., j, k].ravel(), wander[..., j, k].ravel())
        assert abs(pair[0, 1]) < 0.1


def test_the_curve_at_drift_0_and_the_line_at_drift_1():
    L, recipe = np.log([[0.5, 1.0, 2.0, 8.0]]), np.zeros(1, int)
    curve = np.array([[[0.5, 0.6, 0.65, 0.7]]])
    args = L, np.array([[0.6]]), np.array([[0.5]])
    still, moves = (Doubt(drift=(x, 0.0), walk=0.0, walk_pace=0.0) for x in (0.0, 1.0))
    assert (doubted(curve, *args, noise(1, 1, still), recipe, still) == curve).all()
    pace = (0.6 - 0.5) / np.log(PAST)
    line = 1 - 0.4 * np.array([2.0, 8.0]) ** (-pace / 0.4)  # closes the gap to 1 as a power of C
    there = doubted(curve, *args, noise(1, 1, moves), recipe, moves)[0, 0]
    assert there == pytest.approx([0.5, 0.6, *line])
    assert line[0] - 0.6 == pytest.approx(pace * np.log(2.0), rel=0.1)


def test_inside_the_data_nothing_changes(fit):
    seen = np.array([0.0, 0.5, 1.0, 3.9, 4.0])  # the last evaluation is at 4
    for by in ("run", "recipe"):
        assert (paths(fit, seen, by) == fit.curves(by).at(seen)).all()
    alone = fit.with_doubt(None)
    assert (paths(alone, np.array([40.0])) == alone.curves("run").at(np.array([40.0]))).all()
    assert paths(fit_of(CERTAIN), seen * 10) == pytest.approx(fit.curves("run").at(seen * 10))


def test_doubt_grows_with_log_compute_and_less_in_differences(fit):
    x = paths(fit, 4.0 * np.array([1.1, 2.0, 10.0, 100.0]), "recipe")
    sd = x.std(0)
    assert (np.diff(sd, axis=1) > 0).all() and (sd[:, 0] < 0.02).all()
    apart = (x[:, 0] - x[:, 1]).std(0)
    assert (apart < np.sqrt(np.square(sd).sum(0)) * 0.8).all()


def test_a_draw_is_one_path(fit):
    C = np.array([2.0, 5.0, 40.0, 300.0])
    whole = paths(fit, C)
    for i in range(4):
        assert (paths(fit, C[i : i + 1])[..., 0] == whole[..., i]).all()
    assert (paths(fit, C, only=[1])[:, 0] == whole[:, 1]).all()
    gain = fit.gain(36.0).set_index("name").loc["one-s0"]
    more = whole[:, 0, 2] - fit.curves("run").at(np.array([4.0]))[:, 0, 0]
    assert gain["mean"] == pytest.approx(more.mean(), abs=1e-9)


def test_reach_is_the_first_passage_of_the_path(fit):
    for target in (0.4, 0.6, 0.72):
        C_XN = reach(fit, target, "run")
        grid = np.geomspace(4.0, 4.0 * REACHABLE, 1500)
        there = paths(fit, grid, "run") >= target
        first = np.where(there.any(-1), grid[there.argmax(-1)], np.inf)
        inside = fit.curves("run").compute_to(target)
        expected = np.minimum(np.where(inside <= 4.0, inside, np.inf), first)
        both = np.isfinite(C_XN) & np.isfinite(expected)
        assert np.isfinite(C_XN).mean(0) == pytest.approx(np.isfinite(expected).mean(0), abs=0.02)
        close = np.abs(np.log(C_XN[both] / expected[both])) < 0.15
        assert close.mean() > 0.97
    never = reach(fit_of(CERTAIN), 0.75, "run")
    assert np.isfinite(never[:, 0]).all() and np.isinf(never[:, 1]).all()
    exact = float(reach(fit_of(CERTAIN), 0.7, "run")[0, 0])
    assert sigmoid(exact, A=0.8, B=1.5, C_mid=2.0, R0=R0) == pytest.approx(0.7, abs=0.002)


def test_first_passage_by_hand():
    rise = np.concatenate([np.full(10, 0.1), np.full(54, 0.5)])[None, None]
    assert np.isinf(first_passage(rise, np.array([[0.6]])))
    assert first_passage(rise, np.array([[0.05]])) == 1.0
    step = REACHABLE ** (1 / 63)
    assert first_passage(rise, np.array([[0.3]]))[0, 0] == pytest.approx(step**9.5)


def test_a_ceiling_is_the_pass_rate_at_the_horizon(fit):
    assert horizon(fit) == HORIZON * 4.0
    there = paths(fit, np.array([40.0]), "recipe")[..., 0]
    assert (ceiling(fit) == there).all()
    assert (fit.param("A").values.reshape(-1, 2) == there).all()
    assert fit.param("asymptote").values == pytest.approx(np.array([0.8, 0.7]) + 0 * fit.param("A"))
    sure = fit.prob("asymptote", "one", ">", "two")["prob"]
    assert sure == 1.0 and 0.7 < fit.prob("A", "one", ">", "two")["prob"] < 1.0


def test_equal_recipes_stay_undecided():
    equal = hand_fit({"one": ONE, "two": ONE}, doubt=Doubt.text(Doubt()))
    assert 0.45 < equal.prob("A", "one", ">", "two")["prob"] < 0.55


def test_saved_it_answers_the_same(fit, tmp_path):
    mine = fit.with_doubt(Doubt(drift=(0.1, 0.3)))
    mine.save(tmp_path / "fit.nc")
    loaded = sc.load(tmp_path / "fit.nc")
    assert loaded.doubt == mine.doubt and (ceiling(loaded) == ceiling(mine)).all()
    assert fit.with_doubt(None).doubt is None
    del mine.tree.attrs["doubt"]  # a file of before
    assert sc.ScalingFit(mine.tree).doubt == Doubt()
