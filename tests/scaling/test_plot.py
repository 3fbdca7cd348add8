"""What the figures show, against posteriors whose draws are known, and that nothing overlaps."""

import json
import subprocess
import sys
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.special import logit

import rlx.scaling as sc
from rlx.scaling import forecast, plot
from rlx.scaling.arrays import assemble
from rlx.scaling.backtest import Backtest
from rlx.scaling.bayes import Stats
from rlx.scaling.draws import NotConverged
from rlx.scaling.infer import make_tree
from rlx.scaling.plot import fitted
from rlx.scaling.posterior import ScalingFit
from rlx.scaling.style import COLORS, FAINT, log_ticks, shade, tick

R0, N, CHAINS, DRAWS = 0.2, 4000, 2, 150
LO, HI = 0.05, 0.95


def curve(C, A, C_mid, B):
    return R0 + (A - R0) / (1 + (C_mid / np.maximum(C, 1e-12)) ** B)


def simulate(cells, seeds, *, C_max=4.0, M=12, axis=None, known=False, seed=0):
    """Evaluations of runs around the sigmoids of `cells`, {(recipe, level): (A, C_mid, B)}."""
    rng, rows = np.random.default_rng(seed), []
    C = np.r_[0.0, np.linspace(C_max / M, C_max, M)]
    for (recipe, level), (A, C_mid, B) in cells.items():
        for g in range(seeds):
            p = curve(C, A, C_mid, B)
            passes = rng.binomial(N, np.r_[R0, p[1:]])
            passes[0] = R0 * N  # shared
            run = {"run": f"{recipe}-{level}-{g}", "recipe": recipe, "seed": g, "axes": ""}
            run |= {axis: level, "axes": f"{axis}={level}"} if axis else {}
            rows += [run | {"compute": c, "passes": k} for c, k in zip(C, passes, strict=True)]
            for row in rows[-len(C) :]:
                row |= {"truth": A if known else np.nan, "start": "base"}
    frame = pd.DataFrame(rows).assign(trials=float(N))
    frame["value"] = frame["passes"] / N
    frame["stderr"] = np.sqrt(frame["value"] * (1 - frame["value"]) / N)
    labels = {"compute_label": "training compute C (10$^{18}$ FLOPs)", "title": "a study"}
    return sc.Evals(frame, axes=(axis,) if axis else (), **labels)


def posterior(evals, cells, *, sd=(0.10, 0.06, 0.04), rhat=1.0, falls=None) -> ScalingFit:
    """A fit whose draws are normal around the truth, theta_run = theta_recipe + seed's own.

    sd: of (a, c, b), one triple or one per recipe.
    falls: compute after which a run's evaluations are not fitted.
    """
    rng = np.random.default_rng(0)
    study, labels, notes = assemble(evals, priors=sc.Priors())
    for run, C in (falls or {}).items():
        r = labels.runs.index(run)
        study.seen_RM[r] *= study.log_C_RM[r] <= np.log(C / labels.C_ref) + 1e-9
        labels.C_max_R[r] = C
    J, E = study.design_JE.shape
    A, C_mid, B = np.array(list(cells.values())).T
    mean_JQ = np.stack([logit((A - R0) / (1 - R0)), np.log(C_mid / labels.C_ref), np.log(B)], 1)
    shape = (CHAINS, DRAWS)
    theta = mean_JQ + np.broadcast_to(sd, (J, 3)) * rng.normal(size=(*shape, J, 3))
    own = 0.02 * rng.normal(size=(len(labels.runs), 3))
    draws = {
        "mu": np.zeros((*shape, 3)),
        "log_recipe_sd": np.full((*shape, 3), -1.0),
        "log_seed_sd": np.full((*shape, 3), -3.0),
        "logit_R0": np.full((*shape, 1), logit(R0)),
        "theta_recipe": theta,
        "theta_run": theta[:, :, labels.recipe_R] + own,
        "log_wander_sd": np.full(shape, np.log(0.01)),
        "log_wander_length": np.full(shape, np.log(3.0)),
    }
    if E:
        draws["beta"] = np.zeros((*shape, E, 3))
    zeros = np.zeros(shape)
    attrs = {"curve": "sigmoid", "noise": "normal", "method": "nuts", "seed": 0, "r0": "null"}
    attrs |= {"priors": json.dumps(asdict(sc.Priors())), "axes": "null", "C_ref": labels.C_ref}
    attrs |= {"rhat": rhat, "ess": 1000.0, "bfmi": 1.0, "divergences": 0, "rounds": 1}
    attrs |= {"departed": json.dumps(dict.fromkeys(falls or {}, -9.0))}
    attrs |= {"notes": json.dumps(notes), "data_sha256": evals.sha256(), "versions": "{}"}
    stats = Stats(zeros.astype(bool), zeros, zeros.astype(int), 1)
    return ScalingFit(make_tree(draws, stats, study._asdict(), labels, evals, attrs))


TWO = {
    ("fast", 9): (0.60, 0.8, 2.0),
    ("slow", 9): (0.60, 1.6, 2.0),
    ("fast", 11): (0.95, 0.8, 2.0),
    ("slow", 11): (0.95, 1.6, 2.0),
}
EIGHT = {(f"recipe_{c}", ""): (0.80 - 0.05 * i, 1.5, 1.6) for i, c in enumerate("abcdefgh")}
EIGHT["recipe_f", ""] = (0.7, 20.0, 1.6)  # hardly begun: its ceiling may be anything
WIDE = (1.5, 0.04, 0.02)  # a ceiling as unsure as before the data
YOUNG = {("run", ""): EIGHT["recipe_f", ""]}
ONE = {("run", ""): (0.7, 1.0, 1.5)}


@pytest.fixture(scope="module")
def two():
    """Two recipes on an axis of two levels, known ceilings, two seeds; fitted half and all."""
    evals = simulate(TWO, 2, axis="tokens", known=True)
    return posterior(evals.until(share=0.5), TWO), evals


@pytest.fixture(scope="module")
def eight():
    """Eight recipes of three seeds; one ceiling unknown, one seed of another collapses."""
    evals = simulate(EIGHT, 3)
    frame = evals.frame
    late = (frame["run"] == "recipe_c--1") & (frame["compute"] > 4 / 3 + 1e-6)
    frame.loc[late, "value"] -= 0.25
    sd = np.array([(0.10, 0.06, 0.04)] * 8)
    sd[5] = WIDE
    falls = {"recipe_c--1": 4 / 3}
    return posterior(evals.until(share=0.5), EIGHT, sd=sd, falls=falls), evals


def the_lines(ax, style):
    return [
        line for line in ax.lines if line.get_linestyle() == style and len(line.get_xdata()) > 2
    ]


def marks(ax, marker):
    """[(x, y, face colour)] of every point drawn with a marker."""
    found = [line for line in ax.lines if line.get_marker() == marker]
    return [
        (x, y, to_hex(line.get_markerfacecolor()))
        for line in found
        for x, y in zip(*line.get_data(), strict=True)
    ]


def words(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def shown(figure):
    return [ax for ax in figure.axes if ax.get_visible()]


def assert_legible(figure, monkeypatch):
    """All text that is drawn lies on the canvas, and no two texts cover each other."""
    assert isinstance(figure, Figure)
    boxes = {}

    def draw(self, renderer):
        if self.get_visible() and self.get_text().strip():
            boxes[self] = self.get_window_extent(renderer)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        FigureCanvasAgg(figure).draw()
    drawn = [(text.get_text(), box) for text, box in boxes.items()]
    assert len(drawn) > 10
    page = figure.bbox
    for text, box in drawn:
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text
    for (text, a), (other, b) in combinations(drawn, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert width <= 1 or height <= 1, (text, other)


# ------------------------------------------------------------------ curves


def test_curves_are_quantiles_of_the_posterior(two):
    fit, evals = two
    figure = plot.curves(fit, held_out=evals, horizon=3)
    nine, eleven = shown(figure)  # 9 before 11
    assert [ax.get_legend().get_title().get_text() for ax in (nine, eleven)] == [
        "tokens=9",
        "tokens=11",
    ]
    for ax, level in ((nine, 9), (eleven, 11)):
        runs = [f"{recipe}-{level}-{g}" for recipe in ("fast", "slow") for g in (0, 1)]
        for style, lo, hi in (("-", 1 / 3, 2.0), ("--", 2.0, 6.0)):
            lines = the_lines(ax, style)[: len(runs)]
            for run, line in zip(runs, lines, strict=True):
                C, y = line.get_data()
                assert C[0] == pytest.approx(lo) and C[-1] == pytest.approx(hi)
                draws = fit.curve(C, "run").sel(run=run).values.reshape(-1, len(C))
                np.testing.assert_allclose(y, np.median(draws, 0), rtol=1e-12)


def band(collection):
    """Ends of a filled band: {x: (low, high)}."""
    xy = collection.get_paths()[0].vertices
    return {x: (xy[xy[:, 0] == x, 1].min(), xy[xy[:, 0] == x, 1].max()) for x in set(xy[:, 0])}


@pytest.mark.parametrize("prob", [0.9, 0.5])
def test_bands_hold_their_share_of_curves_and_of_new_evaluations(two, prob):
    fit, _ = two
    ax = shown(plot.curves(fit, by="run", prob=prob))[0]
    new, seen, ahead = map(band, ax.collections[:3])
    tail = ((1 - prob) / 2, (1 + prob) / 2)
    assert max(seen) == min(ahead) == min(new) == pytest.approx(2.0)
    assert max(ahead) == max(new) == pytest.approx(8.0)
    C = np.array(sorted(ahead))
    expected = np.quantile(fit.curve(C, "run").values[:, :, 0], tail, axis=(0, 1))
    np.testing.assert_allclose([ahead[c] for c in C], expected.T, rtol=1e-12)
    grid = np.unique(np.r_[np.geomspace(1 / 3, 8.0, fitted.GRID_POINTS), 2.0])  # noise is per point
    drawn = fit.predict(grid, "run").values[:, :, 0, grid >= 2]
    expected = np.quantile(drawn, tail, axis=(0, 1))
    np.testing.assert_allclose([new[c] for c in sorted(new)], expected.T, atol=1e-9)
    opacity = [c.get_alpha() for c in ax.collections[:3]]
    assert opacity[0] < opacity[2] < opacity[1]


def test_a_recipe_has_one_curve_and_new_seeds_everywhere(two):
    fit, _ = two
    ax = shown(plot.curves(fit, by="recipe"))[0]
    assert len(ax.collections) == 2 * 3
    new, seen, _ = map(band, ax.collections[:3])
    assert min(new) == min(seen) and max(new) == pytest.approx(8.0)
    C = np.array(sorted(seen))
    draws = fit.curve(C, "recipe").sel(recipe="fast, tokens=9").values
    np.testing.assert_allclose(
        [seen[c] for c in C], np.quantile(draws, (LO, HI), axis=(0, 1)).T, rtol=1e-12
    )


def test_seen_points_are_filled_and_held_out_points_open(two):
    fit, evals = two
    frame = evals.frame[evals.frame["tokens"] == 9]
    for held_out, later in ((evals, frame[frame["compute"] > 2]), (None, frame.iloc[:0])):
        ax = shown(plot.curves(fit, held_out=held_out))[0]
        points = marks(ax, "o")
        for rows, fill in ((frame[frame["compute"].between(1e-9, 2)], False), (later, True)):
            mine = [(x, y) for x, y, face in points if (face == "#ffffff") == fill]
            assert sorted(mine) == sorted(zip(rows["compute"], rows["value"], strict=True))
        assert {(x, y) for x, y, _ in marks(ax, ">")} == {(0, R0)}
    key = [t.get_text() for t in plot.curves(fit).legends[0].get_texts()]
    assert "held out" not in key and "after departure" not in key
    key = [t.get_text() for t in plot.curves(fit, held_out=evals).legends[0].get_texts()]
    assert key == [
        "at C = 0",
        "fitted",
        "held out",
        "curve, median",
        "curve, 90 %",
        "forecast, median",
        "forecast, 90 %",
        "new evaluation, 90 %",
    ]


def test_panels_say_ceilings_and_truth(two):
    fit, _ = two
    for ax, level, truth in zip(shown(plot.curves(fit)), (9, 11), (0.60, 0.95), strict=True):
        assert len(words(ax)) == 3
        for recipe, text in zip(("fast", "slow"), words(ax), strict=False):
            A = fit.param("A").sel(recipe=f"{recipe}, tokens={level}").values
            lo, mid, hi = np.quantile(A, (LO, 0.5, HI))
            assert text == f"{recipe}:  {mid:.3f} (90 %: {lo:.3f} to {hi:.3f}) at 10x compute"
        assert words(ax)[2] == f"exact ceiling {truth:.3f}"
        assert [
            line.get_ydata()[0]
            for line in ax.lines
            if len(set(line.get_ydata())) == 1 and list(line.get_xdata()) == [0, 1]
        ] == [truth]


def test_many_recipes_have_panels_of_their_own_that_say_what_is_wrong(eight):
    fit, evals = eight
    axes = shown(plot.curves(fit, held_out=evals))
    titles = [ax.get_legend().get_title().get_text() for ax in axes]
    assert titles == [f"recipe_{c}" for c in "abcdefgh"]
    said = {title: words(ax)[0].split("\n")[1:] for title, ax in zip(titles, axes, strict=True)}
    assert said.pop("recipe_c") == ["departed: seed 1"]
    assert said.pop("recipe_f") == ["ceiling not identified"]
    assert all(lines == [] for lines in said.values())
    fallen = evals.frame[(evals.frame["run"] == "recipe_c--1") & (evals.frame["compute"] > 1.4)]
    crosses = [(x, y) for x, y, _ in marks(axes[2], "x")]
    assert crosses == list(zip(fallen["compute"], fallen["value"], strict=True))
    filled = [x for x, _, face in marks(axes[2], "o") if face != "#ffffff"]
    assert len(filled) == 6 + 4 + 6 and not marks(axes[1], "x")
    alone = plot.curves(fit)  # what was cut off is shown without held_out, too
    assert len(marks(shown(alone)[2], "x")) == 2
    key = [t.get_text() for t in alone.legends[0].get_texts()]
    assert "after departure" in key and "held out" not in key
    assert {to_hex(c.get_facecolor()[0][:3]) for c in axes[7].collections} >= {COLORS[0].lower()}
    by_recipe = shown(plot.curves(fit, by="recipe"))
    assert words(by_recipe[5])[0].split("\n")[1] == fit.status("recipe")[5]
    assert words(by_recipe[2])[0].split("\n")[1:] == ["departed: seed 1"]


@pytest.mark.parametrize(("n", "panels"), [(4, 1), (5, 5)])
def test_up_to_four_recipes_share_a_panel(n, panels):
    cells = dict(list(EIGHT.items())[:n])
    assert len(shown(plot.curves(posterior(simulate(cells, 1), cells), by="recipe"))) == panels


def test_seeds_without_names_are_called_by_their_runs():
    evals = simulate(YOUNG, 2)
    evals.frame["seed"] = np.nan
    fit = posterior(evals, YOUNG, sd=WIDE)
    theta = fit.tree["posterior"]["theta_run"]
    theta[:, :, 1] = theta[:, :, 1].mean(("chain", "draw"))  # the second is certain
    theta[:, :, 1, 1] -= np.log(100)  # and done
    (ax,) = shown(plot.curves(fit))
    assert words(ax)[0].endswith("\nceiling not identified: run--0")


def test_colours_follow_recipes_across_levels(two, eight):
    fit, _ = two
    for ax in shown(plot.curves(fit, by="recipe")):
        faces = [to_hex(c.get_facecolor()[0][:3]).upper() for c in ax.collections[::3]]
        assert faces == list(COLORS[:2])
    first, second = (shade("#0072B2", i, 2) for i in (0, 1))
    assert to_hex(first) == "#0072b2"
    assert second == pytest.approx((0.5, 0.5 + 0.5 * 0x72 / 255, 0.5 + 0.5 * 0xB2 / 255))


def test_stacked_layers_are_as_dark_as_one():
    assert fitted._layer(0.3, 1) == pytest.approx(0.3)
    through = 1.0
    for _ in range(4):
        through *= 1 - fitted._layer(0.3, 4)
    assert through == pytest.approx(0.7)


def test_forecasts_end_at_their_own_horizon():
    cells = {("short", ""): (0.6, 1.0, 2.0), ("long", ""): (0.6, 1.0, 2.0)}
    evals = simulate(cells, 1)
    keep = (evals.frame["recipe"] == "long") | (evals.frame["compute"] <= 2)
    evals = sc.Evals(evals.frame[keep].reset_index(drop=True))
    (ax,) = shown(plot.curves(posterior(evals, cells), horizon=2))
    ends = [line.get_xdata()[-1] for line in the_lines(ax, "--")]
    assert ends == pytest.approx([4.0, 8.0])
    spans = [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches]
    assert spans == [pytest.approx((2.0, 4.0)), pytest.approx((4.0, 8.0))]


def test_curves_without_guesses(two):
    fit, evals = two
    for options, message in (
        ({"horizon": 1}, r"horizon=1: not beyond the data; give C / C_max above 1"),
        ({"prob": 1.0}, r"prob=1.0: not in \(0, 1\)"),
        ({"by": "seed"}, "by=seed: unknown level"),
    ):
        with pytest.raises(sc.InputError, match=message):
            plot.curves(fit, **options)
    only = posterior(evals.select(evals.runs[:2]).until(share=0.5), dict(list(TWO.items())[:1]))
    with pytest.raises(sc.InputError, match="held_out=slow-9-0, slow-9-1, .*not in this fit"):
        plot.curves(only, held_out=evals)


def test_an_unconverged_fit_is_drawn_on_demand_only():
    fit = posterior(simulate(ONE, 1), ONE, rhat=1.2)
    for draw in (plot.curves, plot.ceilings, plot.ridge):
        with pytest.raises(NotConverged):
            draw(fit)
        assert isinstance(draw(fit.unsafe()), Figure)


def test_large_fits_are_drawn_piece_by_piece(two, monkeypatch):
    fit, _ = two
    at_once = the_lines(shown(plot.curves(fit))[0], "-")
    monkeypatch.setattr(forecast, "MAX_CELLS", 300 * 8 * 30)
    asked = []
    monkeypatch.setattr(
        forecast,
        "curve",
        lambda self, C, by, ask=forecast.curve: asked.append(len(C)) or ask(self, C, by),
    )
    pieces = the_lines(shown(plot.curves(fit))[0], "-")
    assert sum(asked) == fitted.GRID_POINTS + 1 and max(asked) <= 30
    for one, other in zip(at_once, pieces, strict=True):
        np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())


# ------------------------------------------------------------------ ceilings, ridge


def test_ceilings_are_ranked(eight):
    fit, _ = eight
    ax, bars = plot.ceilings(fit).axes
    A = np.quantile(fit.param("A").values, (LO, 0.5, HI), axis=(0, 1))
    order = np.argsort(A[1])
    assert [t.get_text() for t in ax.get_yticklabels()] == [fit.recipes[j] for j in order]
    intervals = [line for line in ax.lines if line.get_marker() == "None"]
    medians, seeds = marks(ax, "o"), marks(ax, "|")
    of_run = np.median(fit.param("A", "run").values, axis=(0, 1))
    best = np.bincount(fit.param("A").values.reshape(-1, 8).argmax(1), minlength=8) / 300
    for y, j in enumerate(order):
        assert list(intervals[y].get_xdata()) == pytest.approx(A[[0, 2], j])
        assert medians[y][:2] == (pytest.approx(A[1, j]), y)
        grey = fit.recipes[j] in ("recipe_c", "recipe_f")
        assert medians[y][2].upper() == (FAINT if grey else COLORS[0]).upper()
        assert [x for x, _, _ in seeds[3 * y : 3 * y + 3]] == pytest.approx(
            of_run[3 * j : 3 * j + 3]
        )
        assert bars.patches[y].get_width() == pytest.approx(best[j])
        text = bars.texts[y].get_text()
        assert text.startswith(f"{best[j]:.2f}")
        assert text.endswith(fit.status("recipe")[j]) if grey else len(text) == 4
    assert not marks(ax, "D")


def test_exact_ceilings_are_marked_where_known(two):
    fit, _ = two
    ax = plot.ceilings(fit, prob=0.5).axes[0]
    names = [t.get_text() for t in ax.get_yticklabels()]
    truths = {names[int(y)]: x for x, y, _ in marks(ax, "D")}
    assert truths == {
        f"{r}, tokens={k}": x for r in ("fast", "slow") for k, x in ((9, 0.6), (11, 0.95))
    }
    width = {n: np.ptp(line.get_xdata()) for n, line in zip(names, ax.lines[::4], strict=True)}
    for name in names:
        A = fit.param("A").sel(recipe=name).values
        assert width[name] == pytest.approx(np.subtract(*np.quantile(A, (0.75, 0.25))))


def test_the_ridge_shows_draws_outlines_and_the_last_compute(two):
    fit, _ = two
    figure = plot.ridge(fit, ["slow, tokens=9", "fast, tokens=11"])
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"
    for name, line, outline in zip(
        ("slow, tokens=9", "fast, tokens=11"), the_lines(ax, "None"), ax.collections, strict=True
    ):
        C = fit.param("C_mid").sel(recipe=name).values.ravel()
        A = fit.param("asymptote").sel(recipe=name).values.ravel()
        np.testing.assert_allclose(line.get_data(), [C, A])
        outer, inner = outline.get_paths()
        points = np.stack([C, A], 1)
        assert np.mean(outer.contains_points(points)) == pytest.approx(0.9, abs=0.03)
        assert np.mean(inner.contains_points(points)) == pytest.approx(0.5, abs=0.03)
    verticals = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2]
    assert verticals == pytest.approx([2.0, 2.0])
    text = figure.legends[0].get_texts()[0].get_text()
    both = (fit.param(k).sel(recipe="slow, tokens=9") for k in ("C_mid", "asymptote"))
    C, A = (x.values.ravel() for x in both)
    assert text == f"slow, tokens=9:  correlation {np.corrcoef(np.log(C), A)[0, 1]:.2f}"


def test_the_ridge_takes_one_name_or_the_highest_six(eight):
    fit, _ = eight
    assert len(plot.ridge(fit, "recipe_a").axes[0].collections) == 1
    names = [t.get_text().split(":")[0] for t in plot.ridge(fit).legends[0].get_texts()[:6]]
    A = np.median(fit.param("asymptote").values, axis=(0, 1))
    assert names == [fit.recipes[j] for j in np.argsort(-A)[:6]]
    with pytest.raises(sc.InputError, match="recipe=x: not in this fit"):
        plot.ridge(fit, "x")
    with pytest.raises(sc.InputError, match="recipes=7: cannot be told apart"):
        plot.ridge(fit, fit.recipes[:7])


# ------------------------------------------------------------------ effects, calibration


def effect(level, dA, ratio, pace, verdict, axis="loss"):
    row = {"axis": axis, "level": level, "reference": "base", "matched": 1, "verdict": verdict}
    for name, q in (("dA", dA), ("compute_ratio", ratio), ("pace_ratio", pace)):
        row |= dict(zip((f"{name}_q05", f"{name}_q50", f"{name}_q95"), q, strict=True))
    return row


inf, nan = np.inf, np.nan
LOSS = pd.DataFrame(
    [
        effect("up", (0.05, 0.08, 0.12), (0.5, 0.6, 0.8), (0.9, 1.0, 1.2), "ceiling mover"),
        effect("dead", (-0.4, -0.3, -0.2), (3.0, inf, inf), (0.7, 1.1, 1.6), "both"),
        effect("same", (-0.01, 0.0, 0.01), (nan, nan, nan), (0.95, 1.0, 1.05), "neither"),
    ]
)
PRECISION = pd.DataFrame(
    [effect("16", (-0.1, 0.0, 0.1), (0.0, 0.5, 0.9), (0.4, 0.5, 0.9), "undecided", "precision")]
)


def test_effects_have_a_row_each():
    figure = plot.effects([LOSS, PRECISION], margin_A=0.03, margin_compute=0.25)
    left, right = figure.axes
    names = [t.get_text() for t in left.get_yticklabels()]
    assert names == [f"loss: {x} vs base" for x in ("up", "dead", "same")] + [
        "precision: 16 vs base"
    ]
    y = left.get_yticks()
    assert list(y) == [0, -1, -2, -3.5]
    assert [t.get_text() for t in right.texts] == ["ceiling mover", "both", "neither", "undecided"]
    assert [t.get_position()[1] for t in right.texts] == list(y)
    table = pd.concat([LOSS, PRECISION])
    middle = [(x, at) for x, at, _ in marks(left, "o")]
    assert middle == list(zip(table["dA_q50"], y, strict=True))
    stretches = [list(line.get_xdata()) for line in left.lines if line.get_linewidth() == 2.4]
    assert stretches == table[["dA_q05", "dA_q95"]].to_numpy().tolist()
    for ax, lo, hi in ((left, -0.03, 0.03), (right, 1 / 1.25, 1.25)):
        (margin,) = ax.patches
        assert (margin.get_x(), margin.get_x() + margin.get_width()) == pytest.approx((lo, hi))


def test_effects_that_do_not_end_are_arrows():
    right = plot.effects([LOSS, PRECISION]).axes[1]
    low, high = right.get_xlim()
    bold = {y: x for x, y, _ in marks(right, "o") if y in (0, -1, -2, -3.5)}
    assert bold == {0: 0.6, -3.5: 0.5}  # no median where it is infinite, nothing where unknown
    assert [(x, y) for x, y, _ in marks(right, ">")] == [(high, -1)]
    assert [(x, y) for x, y, _ in marks(right, "<")] == [(low, -3.5)]
    reach = [list(line.get_xdata()) for line in right.lines if list(line.get_ydata()) == [-1, -1]]
    assert reach == [[3.0, high]]
    thin = [x for x, y, face in marks(right, "o") if face == "#ffffff"]
    assert thin == [1.0, 1.1, 1.0, 0.5]
    assert low < 0.4 and high > 3.0
    assert plot.effects(LOSS).axes[1].get_xscale() == "log"  # one table will do


def test_no_effects_are_refused():
    for tables in ([], LOSS.iloc[:0]):
        with pytest.raises(sc.InputError, match="tables=: no effect to draw"):
            plot.effects(tables)


def a_backtest():
    """Two curves of ten runs; `power` is covered too rarely from a quarter of the compute at 4."""
    rows = []
    for name in ("burr", "power"):
        for origin, horizon, coverage in ((0.5, 2.0, 9), (0.25, 2.0, 10), (0.25, 4.0, 8)):
            cover = 3 if name == "power" and horizon == 4 else coverage
            key = {"curve": name, "origin": origin, "band": horizon, "horizon": horizon * 1.1}
            for run in range(10):
                point = {"run": f"r{run}", "inside": run < cover, "observed": 0.5}
                rows += [key | point | {"mean": 0.5, "log_score": 1.0, "crps": 0.01}] * 2
    return Backtest(pd.DataFrame(rows))


def test_calibration_shows_coverage_and_trust():
    figure = plot.calibration(a_backtest())
    burr, power = figure.axes
    assert burr.get_title(loc="left") == "burr: trusted to 4.4"
    assert power.get_title(loc="left") == "power: trusted to 2.2"
    for ax, reach in ((burr, 4.4), (power, 2.2)):
        (span,) = ax.patches
        assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx((1, reach))
        (nominal,) = [line for line in ax.lines if list(line.get_ydata()) == [0.9, 0.9]]
        assert list(nominal.get_xdata()) == [0, 1]
    assert sorted(y for _, y, _ in marks(burr, "o")) == [0.8, 0.9, 1.0]
    assert all(face != "#ffffff" for _, _, face in marks(burr, "o"))
    beside = sorted(x for x, y, _ in marks(burr, "o") if x < 3)
    assert beside[1] / beside[0] == pytest.approx(1.05) and np.prod(beside) == pytest.approx(4)
    assert [y for _, y, face in marks(power, "o") if face == "#ffffff"] == [0.3]
    bars = [segment[:, 1] for c in burr.collections for segment in c.get_segments()]
    expected = [plot.jeffreys(coverage, 10, 0.9) for coverage in (1.0, 0.8, 0.9)]
    np.testing.assert_allclose(bars, expected)
    key = [t.get_text() for t in figure.legends[0].get_texts()]
    assert key[:3] == ["from 25 % of compute", "from 50 % of compute", "covered too rarely"]
    assert 0 < power.get_ylim()[0] < bars[0].min() and burr.get_xlim()[1] > 4.4
    with pytest.raises(sc.InputError, match="prob=0: not in"):
        plot.calibration(a_backtest(), prob=0)


@pytest.mark.parametrize(("k", "n"), [(3, 10), (9, 10), (1, 2)])
def test_jeffreys_against_quadrature(k, n):
    lo, hi = plot.jeffreys(k / n, n, 0.9)
    p = (np.arange(200_000) + 0.5) / 200_000
    density = p ** (k - 0.5) * (1 - p) ** (n - k - 0.5)
    mass = np.cumsum(density) / density.sum()
    assert p[np.searchsorted(mass, (0.05, 0.95))] == pytest.approx([float(lo), float(hi)], abs=1e-3)
    assert plot.jeffreys(0.0, n, 0.9)[0] == 0 and plot.jeffreys(1.0, n, 0.9)[1] == 1


# ------------------------------------------------------------------ all figures


def test_figures_are_legible(two, eight, tmp_path, monkeypatch):
    one = posterior(simulate(ONE, 1).until(share=0.5), ONE)
    figures = [plot.effects([LOSS, PRECISION]), plot.calibration(a_backtest())]
    for fit, evals in (two, eight, (one, simulate(ONE, 1))):
        figures += [plot.curves(fit, held_out=evals), plot.curves(fit, by="recipe")]
        figures += [plot.ceilings(fit), plot.ridge(fit)]
    for figure in figures:
        assert_legible(figure, monkeypatch)
    figures[2].savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("limits", "labels"),
    [
        ((1.2, 7.5), ["2", "3", "5", "7"]),
        ((0.4, 12), ["0.5", "1", "2", "5", "10"]),
        ((800, 90_000), ["1k", "3k", "10k", "30k"]),
        ((1e10, 9e10), [r"$10^{10}$", r"$2\times 10^{10}$", r"$5\times 10^{10}$"]),
        ((0.5, 5e5), ["1", "10", "100", "1k", "10k", "100k"]),
    ],
)
def test_ticks_of_a_log_axis(limits, labels):
    ax = Figure().subplots()
    ax.set_xscale("log")
    ax.set_xlim(*limits)
    log_ticks(ax)
    inside = [t for t in ax.get_xticks() if limits[0] <= t <= limits[1]]
    assert [tick(t, 0) for t in inside] == labels


def test_the_package_draws_nothing_by_itself():
    code = (
        "import sys, rlx.scaling; assert 'matplotlib' not in sys.modules;"
        "from rlx.scaling import plot;"
        "assert not {'jax', 'matplotlib.pyplot'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
