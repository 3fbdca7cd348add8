"""The numbers behind the figures of analysis/paper.py, against the paper and hand calculation."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from analysis import paper
from rlx.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("paper") / "new" / "folder"
    paths = paper.main(["fig=all", f"out={out}"])
    assert [path.stem for path in paths] == [stem for stem, _ in paper.FIGURES.values()]
    return out


def test_every_figure_is_made(made):
    images = sorted(path.name for path in made.glob("*.png"))
    assert images == [
        "fig12.png",
        "fig13.png",
        "fig3.png",
        "fit_windows.png",
        "power_vs_sigmoid.png",
        "table1.png",
    ]
    for name in images:
        assert (made / name).stat().st_size < 300_000
        pixels = imread(made / name)
        assert pixels.shape[0] > 400 and pixels.std() > 0.05


def test_the_power_law_overshoots_and_the_sigmoid_does_not(made):
    table = pd.read_csv(made / "power_vs_sigmoid.csv").set_index(["curve", "from"])
    assert len(table) == 4
    power, sigmoid = table.loc["power law"], table.loc["sigmoid"]
    assert power["A_published"].tolist() == [1.0, 0.74]
    assert power.loc[1500, "A"] == 1.0 and power.loc[1500, "status"] == "A at its bound 1"
    assert power.loc[5000, "A"] == pytest.approx(0.74, abs=0.02)
    assert sigmoid["A_published"].tolist() == [0.645, 0.645]
    assert sigmoid["A"].to_numpy() == pytest.approx(0.645, abs=0.012)
    assert ((sigmoid["A_lo"] < sigmoid["A"]) & (sigmoid["A"] < sigmoid["A_hi"])).all()
    assert table["n"].tolist() == [24, 24, 22, 22]
    # the last nine points lie beyond 50k; by hand for the sigmoid of the first window
    row, points = sigmoid.loc[1500], paper.digitised().tail(9)
    assert (points["gpu_hours"] > 50_000).all()
    assert row["rmse_after_50k"] == pytest.approx(0.011, abs=0.001)
    assert power.loc[1500, "rmse_after_50k"] > row["rmse_after_50k"]


def test_fit_windows_against_the_published_numbers(made):
    table = pd.read_csv(made / "fit_windows.csv")
    assert len(table) == 12
    published = {
        (1500, 50_000): (0.645, 1.70),
        (0, 50_000): (0.645, 1.70),
        (5000, 50_000): (0.645, 1.67),
        (0, 100_000): (0.655, 1.56),
    }
    for (lo, hi), rows in table.groupby(["from", "to"]):
        A, B = published[lo, hi]
        assert (rows["A_published"] == A).all() and (rows["B_published"] == B).all()
        main = rows[rows["R0"] == 0.40].iloc[0]
        for suffix in ("", "_grid"):  # least squares and the published grid search
            assert main[f"A{suffix}"] == pytest.approx(A, abs=0.012)
            assert main[f"B{suffix}"] == pytest.approx(B, abs=0.12)
        # a lower assumed start needs a flatter curve with a higher ceiling
        assert (np.diff(rows["A"]) < 0).all() and (np.diff(rows["B"]) > 0).all()
        assert rows["B"].min() < B < rows["B"].max()
        assert (rows["A_lo"] < rows["A"]).all() and (rows["A"] < rows["A_hi"]).all()
        assert (rows["A"] - rows["A_grid"]).abs().max() < 0.006
    first = table.groupby("from")["first_point"].first()
    assert first.tolist() == [1328, 2670, 5329]
    assert table.groupby(["from", "to"])["n"].first().to_dict() == {
        (0, 50_000): 25,  # one point more than (1.5k, 50k), and no other difference
        (0, 100_000): 34,
        (1500, 50_000): 24,
        (5000, 50_000): 22,
    }


def test_where_the_slow_horse_overtakes():
    # R0 is shared, so (A - R0) / (1 + (C_mid / C)^B) must agree: 0.18 and 0.28 of gain
    C = paper.overtaking()
    fast, slow = 0.18 / (1 + (1500 / C) ** 2.0), 0.28 / (1 + (6000 / C) ** 1.3)
    assert fast == pytest.approx(slow, rel=1e-9)
    assert C == pytest.approx(8900, abs=50)


def test_table_1_panels_name_every_published_row_but_the_mixture_of_experts():
    rows = {row for panel in paper.PANELS.values() for row in panel.values()}
    table = set(pd.read_csv(paper.DATA / "table1.csv")["experiment"])
    assert table - rows == {"ScaleRL-Scout"} and rows <= table


def test_the_annotated_curve_is_drawn_through_its_annotations():
    ax = paper.draw_3().axes[0]
    curve = ax.lines[0].get_xydata()
    mid = np.interp(np.log(5000), np.log(curve[:, 0]), curve[:, 1])
    assert mid == pytest.approx((0.65 + 0.40) / 2, abs=1e-4)
    (tangent,) = (line for line in ax.lines if line.get_color() == paper.COLORS[1])
    (x0, y0), (x1, y1) = tangent.get_xydata()
    step = curve[np.abs(np.log(curve[:, 0] / 5000)) < 0.05]
    slope = np.polyfit(np.log(step[:, 0]), step[:, 1], 1)[0]
    assert (y1 - y0) / np.log(x1 / x0) == pytest.approx(slope, rel=1e-3)


def test_the_published_curves_are_drawn():
    axes = paper.draw_table1().axes
    table = pd.read_csv(paper.DATA / "table1.csv").set_index("experiment")
    assert [len(ax.lines) for ax in axes] == [2, 3, 3, 4]
    for ax, rows in zip(axes, paper.PANELS.values(), strict=True):
        for line, row in zip(ax.lines, rows.values(), strict=True):
            A, B, C_mid = (table.loc[row, k] for k in ("A", "B", "C_mid_gpu_hours"))
            C, y = line.get_data()
            np.testing.assert_allclose(y, 0.40 + (A - 0.40) / (1 + (C_mid / C) ** B), rtol=1e-12)
            assert f"A = {A:.3f}" in line.get_label()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fig=4"], r"fig=4: no such figure; use 3\|12\|13\|table1\|"),
        ([], "fig=: no such figure"),
        (["dir=x"], "dir=x: unknown option; write KEY=VALUE with one of fig, out"),
        (["all"], "all=: unknown option"),
    ],
)
def test_options_are_checked(words, message):
    with pytest.raises(InputError, match=message):
        paper.main(words)


def test_one_figure_is_made_and_its_table_printed(tmp_path, capsys):
    paper.main(["fig=power_vs_sigmoid", f"out={tmp_path}"])
    printed = capsys.readouterr().out
    assert "A_published" in printed and "0.725" in printed
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"power_vs_sigmoid.csv", "power_vs_sigmoid.png"}


def test_the_command_refuses_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "analysis.paper", "fig=1b"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: fig=1b: no such figure; use 3|12")
