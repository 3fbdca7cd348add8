"""Figures of arXiv 2510.13786 that need no runs: its curve, its table and its digitised Fig. 1a.

    python -m analysis.paper fig=3|12|13|table1|power_vs_sigmoid|fit_windows|all [out=DIR]

`table1` draws the published parameters; `power_vs_sigmoid` and `fit_windows` fit the digitised
points (tests/data) and print, draw and write (CSV) our numbers beside the published ones. Bad
options end with exit code 2 and one line on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import brentq

from analysis.drawing import Drawing
from experiments.options import exit_status, read_options
from rlx.errors import InputError
from rlx.scaling.curve import sigmoid
from rlx.scaling.paper import PAPER_C_MID_LONG, fit_paper, fit_power
from rlx.scaling.point import fit_point
from rlx.scaling.profile import profile_A
from rlx.scaling.style import (
    COLORS,
    DASHES,
    FAINT,
    INK,
    canvas,
    log_ticks,
    note,
    panel_title,
    rows_axis,
    tidy,
)

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
STYLE = {"markersize": 4.5, "markeredgewidth": 0.8, "linestyle": "none"}
R0_ASSUMED = (0.38, 0.40, 0.42)  # the paper prints no R0; Fig. 1a starts near 0.40

# Windows of the 8B run in GPU-hours, and the (A, B) printed for them.
WINDOWS = {  # A.7
    (1500, 50_000): (0.645, 1.70),
    (0, 50_000): (0.645, 1.70),
    (5000, 50_000): (0.645, 1.67),
    (0, 100_000): (0.655, 1.56),
}
POWER_A = {(1500, 50_000): 1.0, (5000, 50_000): 0.74}  # A.4

# Rows of Table 1 in each panel: label in the figure, and name in the table.
PANELS = {
    "Fig. 9a: generation length": {"14k": "ScaleRL", "32k": "ScaleRL-32k"},
    "Fig. 10a: batch size": {"512": "ScaleRL-bs512", "768": "ScaleRL", "2048": "ScaleRL-bs2048"},
    "Fig. 11: math + code": {
        "math": "ScaleRL-math+code:math",
        "code": "ScaleRL-math+code:code",
        "math, trained alone": "ScaleRL",
    },
    "Fig. 17a: generations per prompt": {
        "8": "ScaleRL-8gen",
        "16": "ScaleRL",
        "24": "ScaleRL-24gen",
        "32": "ScaleRL-32gen",
    },
}

NAME = {"A": "A", "B": "B", "C_mid": r"$C_\mathrm{mid}$", "R0": "$R_0$"}
BASE = {"A": 0.65, "B": 1.7, "C_mid": 5000.0, "R0": 0.40}
FAST = {"A": 0.58, "B": 2.0, "C_mid": 1500.0, "R0": 0.40}
SLOW = {"A": 0.68, "B": 1.3, "C_mid": 6000.0, "R0": 0.40}


# ---------------------------------------------------------------- numbers


def digitised() -> pd.DataFrame:
    """The 8B run of Fig. 1a: columns gpu_hours, pass_rate, split."""
    return pd.read_csv(DATA / "digitized_fig1a.csv").query("run == '8B_dense'")


def power_vs_sigmoid() -> pd.DataFrame:
    """Both curves on both windows of A.4; for the sigmoid, R0 = 0.40 and a 90 % interval of A."""
    points = digitised()
    later = points[points["gpu_hours"] > 50_000]
    rows = []
    for (lo, hi), published in POWER_A.items():
        C, y = _until(points, hi)
        fits = {
            "power law": (fit_power(C, y, drop_below=lo), published, (np.nan, np.nan)),
            "sigmoid": (
                fit_point(C, y, r0=0.40, drop_below=lo),
                WINDOWS[lo, hi][0],
                profile_A(C, y, r0=0.40, drop_below=lo),
            ),
        }
        for curve, (fit, A_published, (A_lo, A_hi)) in fits.items():
            error = fit.at(later["gpu_hours"]) - later["pass_rate"]
            rows.append(
                {
                    "from": lo,
                    "to": hi,
                    "curve": curve,
                    "A_published": A_published,
                    "A": fit.A,
                    "A_lo": A_lo,
                    "A_hi": A_hi,
                    "B": fit.B,
                    "n": fit.n,
                    "rmse": fit.rmse,
                    "rmse_after_50k": float(np.sqrt(np.mean(error**2))),
                    "status": fit.status,
                }
            )
    return pd.DataFrame(rows)


def fit_windows() -> pd.DataFrame:
    """The windows of A.7 for each assumed R0: least squares with intervals of A, and grid fits."""
    points = digitised()
    rows = []
    for (lo, hi), (A_published, B_published) in WINDOWS.items():
        C, y = _until(points, hi)
        for R0 in R0_ASSUMED:
            fit = fit_point(C, y, r0=R0, drop_below=lo)
            grid = fit_paper(C, y, r0=R0, drop_below=lo, C_mid_grid=PAPER_C_MID_LONG)
            A_lo, A_hi = profile_A(C, y, r0=R0, drop_below=lo)
            rows.append(
                {
                    "from": lo,
                    "to": hi,
                    "R0": R0,
                    "A_published": A_published,
                    "A": fit.A,
                    "A_lo": A_lo,
                    "A_hi": A_hi,
                    "A_grid": grid.A,
                    "B_published": B_published,
                    "B": fit.B,
                    "B_grid": grid.B,
                    "C_mid": fit.C_mid,
                    "C_mid_grid": grid.C_mid,
                    "n": fit.n,
                    "first_point": C[C >= lo].min(),
                    "rmse": fit.rmse,
                    "status": fit.status,
                }
            )
    return pd.DataFrame(rows)


def overtaking() -> float:
    """Compute at which SLOW passes FAST."""
    return float(brentq(lambda C: float(sigmoid(C, **SLOW) - sigmoid(C, **FAST)), 1e3, 1e6))


def _until(points: pd.DataFrame, C_last: float) -> tuple[np.ndarray, np.ndarray]:
    seen = points[points["gpu_hours"] <= C_last]
    return seen["gpu_hours"].to_numpy(), seen["pass_rate"].to_numpy()


# ---------------------------------------------------------------- figures


def draw_3() -> Figure:
    """Fig. 3: what A, B, C_mid and R0 mean, on one curve."""
    figure, (ax,) = _figure(1, width=6.6, height=4.2)
    A, B, C_mid, R0 = (BASE[name] for name in ("A", "B", "C_mid", "R0"))
    half = (A + R0) / 2
    C = np.geomspace(200, 200_000, 300)
    ax.plot(C, sigmoid(C, **BASE), color=COLORS[0], linewidth=2)
    for level in (A, R0):
        ax.axhline(level, color=FAINT, linewidth=0.9, linestyle=DASHES)
    ax.plot([C_mid, C_mid, 200], [0, half, half], color=FAINT, linewidth=0.9, linestyle=DASHES)
    ax.plot(C_mid, half, "o", color=COLORS[0], markersize=6)
    near = C_mid * np.exp([-0.75, 0.75])  # the tangent: (A - R0) B / 4 per factor e of compute
    ax.plot(near, half + (A - R0) * B / 4 * np.log(near / C_mid), color=COLORS[1], linewidth=1.6)
    say = {"fontsize": 9.5, "color": INK}
    ax.text(220, A + 0.006, f"A = {A:.2f}: ceiling, approached as C grows", **say)
    ax.text(190_000, R0 + 0.006, f"$R_0$ = {R0:.2f}: pass rate before RL", ha="right", **say)
    ax.text(220, half + 0.006, "half of the gain $A - R_0$", **say)
    ax.text(C_mid * 1.1, 0.455, f"{NAME['C_mid']} = {C_mid / 1000:g}k GPU-hours", **say)
    ax.text(
        near[1] * 1.1,
        half + 0.006,
        f"B = {B:g}: steepness\n(slope $(A - R_0) B / 4$ at {NAME['C_mid']})",
        **say,
    )
    _axes(
        ax, r"$R = R_0 + (A - R_0)\,/\,(1 + (C_\mathrm{mid} / C)^B)$", (200, 200_000), (0.365, 0.68)
    )
    return figure


def draw_12() -> Figure:
    """Fig. 12: B and C_mid change how soon the ceiling is reached, not how high it is."""
    figure, panels = _figure(2)
    _family(panels[0], "(a) steepness", "B", [0.8, 1.2, 1.7, 3.0])
    _family(panels[1], "(b) midpoint", "C_mid", [2500.0, 5000.0, 10_000.0, 20_000.0])
    return figure


def draw_13() -> Figure:
    """Fig. 13: A moves the ceiling; a slow run with a higher ceiling wins in the end."""
    figure, panels = _figure(2)
    _family(panels[0], "(a) ceiling", "A", [0.55, 0.60, 0.65, 0.70])
    C, C_cross = np.geomspace(200, 200_000, 300), overtaking()
    for i, (name, p) in enumerate((("fast start", FAST), ("slow start", SLOW))):
        label = f"{name}: " + ", ".join(
            f"{NAME[k]} = {_shown(k, v)}" for k, v in p.items() if k != "R0"
        )
        panels[1].plot(C, sigmoid(C, **p), color=COLORS[i], linewidth=1.8, label=label)
    y_cross = float(sigmoid(C_cross, **SLOW))
    panels[1].plot(C_cross, y_cross, "o", color=INK, markersize=5, zorder=5)
    panels[1].annotate(
        f"overtakes at {C_cross / 1000:.1f}k GPU-hours",
        (C_cross, y_cross),
        (C_cross * 1.4, y_cross - 0.055),
        fontsize=8.5,
        color=INK,
        arrowprops={"arrowstyle": "-", "color": FAINT, "shrinkB": 4},
    )
    _axes(panels[1], "(b) slow start, higher ceiling; $R_0$ = 0.40", (200, 200_000), (0.38, 0.72))
    _legend(panels[1])
    return figure


def _family(ax: Axes, title: str, name: str, values: Sequence[float]) -> None:
    """BASE with one parameter varied."""
    C = np.geomspace(200, 200_000, 300)
    for color, value in zip(COLORS, values, strict=False):
        label = f"{NAME[name]} = {_shown(name, value)}"
        ax.plot(C, sigmoid(C, **(BASE | {name: value})), color=color, linewidth=1.8, label=label)
    fixed = _listed(BASE, name)
    _axes(ax, f"{title}; {fixed}", (200, 200_000), (0.38, 0.72))
    _legend(ax)


def _listed(parameters: dict[str, float], but: str) -> str:
    return ", ".join(f"{NAME[k]} = {_shown(k, v)}" for k, v in parameters.items() if k != but)


def _shown(name: str, value: float) -> str:
    """A parameter as labels print it."""
    if name == "C_mid":
        return f"{value / 1000:g}k"
    return f"{value:.1f}" if name == "B" else f"{value:.2f}"


def draw_table1() -> Figure:
    """Figs. 9a, 10a, 11 and 17a: the published curves, from an assumed R0."""
    table = pd.read_csv(DATA / "table1.csv").set_index("experiment")
    figure, axes = _figure(2, rows=2)
    C = np.geomspace(300, 100_000, 300)
    for ax, (title, rows) in zip(axes, PANELS.items(), strict=True):
        for color, (name, row) in zip(COLORS, rows.items(), strict=False):
            A, B, C_mid = (float(table.loc[row, k]) for k in ("A", "B", "C_mid_gpu_hours"))
            label = f"{name}:  A = {A:.3f}, B = {B:.2f}, {NAME['C_mid']} = {C_mid:,.0f}"
            curve = sigmoid(C, A=A, B=B, C_mid=C_mid, R0=0.40)
            ax.plot(C, curve, color=color, linewidth=1.6, label=label)
        _axes(ax, title, (300, 100_000), (0.39, 0.70))
        _legend(ax)
    note(
        figure,
        r"A, B and $C_\mathrm{mid}$ (GPU-hours) as printed in Table 1 of arXiv 2510.13786. "
        "$R_0$ is not printed: 0.40 is assumed for every curve.",
    )
    return figure


def draw_power_vs_sigmoid(table: pd.DataFrame) -> Figure:
    """A.4: what each curve forecasts from each window of the 8B run."""
    points = digitised()
    figure, axes = _figure(2, height=4.4)
    for ax, (lo, hi) in zip(axes, POWER_A, strict=True):
        C, y = _until(points, hi)
        _points(ax, points, points["gpu_hours"].between(lo, hi))
        fits = {
            "power law": fit_power(C, y, drop_below=lo),
            "sigmoid": fit_point(C, y, r0=0.40, drop_below=lo),
        }
        for color, (curve, fit) in zip((COLORS[1], COLORS[2]), fits.items(), strict=True):
            row = table.query(f"curve == '{curve}' and `from` == {lo}").iloc[0]
            label = (
                f"{curve}: A = {row['A']:.3f} (published {row['A_published']:.3f}),\n"
                f"rmse after 50k {row['rmse_after_50k']:.3f}"
            )
            for a, b, dashes in ((lo, 50_000, "-"), (50_000, 400_000, DASHES)):
                line = np.geomspace(a, b, 200)
                ax.plot(line, fit.at(line), color=color, linewidth=1.7, linestyle=dashes)
            ax.plot([], [], color=color, linewidth=1.7, label=label)
        _axes(ax, f"fitted on {_range(lo, hi)} GPU-hours", (1000, 400_000), (0.38, 0.80))
        _legend(ax)
    note(
        figure,
        "Points: Fig. 1a of arXiv 2510.13786 (8B), read off the plot; filled: fitted, open: not. "
        "Dashed: forecast. Sigmoid with $R_0$ = 0.40 (assumed).",
    )
    return figure


def draw_fit_windows(table: pd.DataFrame) -> Figure:
    """A.7: the fitted curve for each window, and how A and B move with the window and with R0."""
    figure = canvas(12.4, 5.6)
    mosaic = [["left", "middle", "right"], ["apart", "middle", "right"]]
    panels = figure.subplot_mosaic(mosaic, width_ratios=[1.35, 1, 1], height_ratios=[2, 1])
    left, middle, right, apart = (panels[name] for name in ("left", "middle", "right", "apart"))
    points = digitised()
    _points(left, points, points["gpu_hours"] <= 50_000)
    C = np.geomspace(300, 200_000, 300)
    main, first = table[table["R0"] == 0.40], None
    for color, row in zip(COLORS, main.to_dict("records"), strict=False):
        curve = sigmoid(C, A=row["A"], B=row["B"], C_mid=row["C_mid"], R0=0.40)
        label = f"{_range(row['from'], row['to'])}:  A = {row['A']:.3f}, B = {row['B']:.2f}"
        left.plot(C, curve, color=color, linewidth=1.4, label=label, zorder=2)
        first = curve if first is None else first
        apart.plot(C, curve - first, color=color, linewidth=1.4)
    _axes(left, "least squares, $R_0$ = 0.40", (300, 200_000), (0.39, 0.70))
    _legend(left, title="window, GPU-hours")
    _axes(apart, "difference from the first window", (300, 200_000), (-0.006, 0.016))
    apart.set_ylabel("difference", fontsize=9)
    _ladder(middle, table, "A", "{:.3f}")
    _ladder(right, table, "B", "{:.2f}")
    right.tick_params(labelleft=False)
    right.legend(loc="lower right", fontsize=8, frameon=False)
    note(
        figure,
        "Points: Fig. 1a of arXiv 2510.13786 (8B), read off the plot; filled: C ≤ 50k. The first "
        "lies at 1,328 GPU-hours, so (0, 50k) differs from (1.5k, 50k) by that one point.\n"
        "Bars: 90 % profile intervals of A given $R_0$ (not printed), for independent noise.",
    )
    return figure


def _ladder(ax: Axes, table: pd.DataFrame, name: str, form: str) -> None:
    """One row per window: the estimate for each assumed R0, and the published one."""
    for i, window in enumerate(WINDOWS):
        rows = table[(table["from"] == window[0]) & (table["to"] == window[1])]
        for j, row in enumerate(rows.to_dict("records")):
            y = -i + 0.22 - 0.2 * j
            label = f"$R_0$ = {row['R0']:.2f}" if i == 0 else None
            ax.plot(row[name], y, marker="o", color=COLORS[j], label=label, **STYLE)
            if name == "A":
                ax.plot([row["A_lo"], row["A_hi"]], [y, y], color=COLORS[j], linewidth=1.2)
            end = row["A_hi"] if name == "A" else row[name]
            ax.annotate(
                form.format(row[name]),
                (end, y),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=INK,
            )
        published = rows[f"{name}_published"].iloc[0]
        label = "published" if i == 0 else None
        ax.plot(published, -i - 0.36, "x", color=INK, markersize=6, label=label)
        ax.annotate(
            form.format(published),
            (published, -i - 0.36),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=INK,
        )
    rows_axis(ax, [-i for i in range(len(WINDOWS))], [_range(*window) for window in WINDOWS])
    ax.margins(x=0.18)
    panel_title(ax, f"{name} by window")
    ax.set_xlabel({"A": "ceiling A", "B": "steepness B"}[name], fontsize=9)


def _range(lo: float, hi: float) -> str:
    return f"({lo / 1000:g}k, {hi / 1000:g}k)".replace("(0k", "(0")


def _points(ax: Axes, points: pd.DataFrame, seen: Iterable[bool]) -> None:
    """Digitised points, filled where `seen`."""
    C, y, seen = points["gpu_hours"], points["pass_rate"], np.asarray(seen)
    ax.plot(C[seen], y[seen], marker="o", color=INK, zorder=3, **STYLE)
    ax.plot(C[~seen], y[~seen], marker="o", color=INK, mfc="white", zorder=3, **STYLE)


def _figure(
    columns: int, rows: int = 1, width: float = 4.7, height: float = 3.5
) -> tuple[Figure, list[Axes]]:
    figure = canvas(columns * width, rows * height)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _axes(ax: Axes, title: str, x: tuple[float, float], y: tuple[float, float]) -> None:
    ax.set_xscale("log")
    ax.set_xlim(*x)
    ax.set_ylim(*y)
    panel_title(ax, title)
    ax.set_xlabel("training compute C (GPU-hours)", fontsize=9)
    ax.set_ylabel("pass rate (held-out)", fontsize=9)
    log_ticks(ax)
    tidy(ax)


def _legend(ax: Axes, title: str | None = None) -> None:
    ax.legend(
        loc="upper left", fontsize=8, frameon=False, title=title, title_fontsize=8, alignment="left"
    )


# ---------------------------------------------------------------- command


def _with_table(
    numbers: Callable[[], pd.DataFrame], draw: Callable[[pd.DataFrame], Figure], path: Path | None
) -> Figure:
    """Draw the figure; given a path, also print its table and write it beside the figure."""
    table = numbers()
    if path is None:
        return draw(table)
    table.round(4).to_csv(path.with_suffix(".csv"), index=False)
    print(f"{path.stem}\n{table.round(3).to_string(index=False)}\n")
    return draw(table)


FIGURES: dict[str, tuple[str, Callable[[Path | None], Figure]]] = {
    "3": ("fig3", lambda _: draw_3()),
    "12": ("fig12", lambda _: draw_12()),
    "13": ("fig13", lambda _: draw_13()),
    "table1": ("table1", lambda _: draw_table1()),
    "power_vs_sigmoid": (
        "power_vs_sigmoid",
        lambda path: _with_table(power_vs_sigmoid, draw_power_vs_sigmoid, path),
    ),
    "fit_windows": (
        "fit_windows",
        lambda path: _with_table(fit_windows, draw_fit_windows, path),
    ),
}


def figures(results: Path) -> dict[str, Drawing]:
    source = "tests/data, by python -m analysis.paper"
    return {
        f"paper/{stem}": Drawing(lambda make=make: make(None), source)
        for stem, make in FIGURES.values()
    }


@dataclass(frozen=True)
class Options:
    fig: str = ""
    out: str = str(ROOT / "analysis" / "results" / "paper")


def main(argv: Sequence[str]) -> list[Path]:
    """Make the figures that the options ask for; returns the PNGs.

    Raises:
        InputError: an option or a figure is unknown.
    """
    options = read_options(Options, argv)
    names = list(FIGURES) if options.fig == "all" else [options.fig]
    if names[0] not in FIGURES:
        raise InputError("fig", options.fig, "no such figure", f"use {'|'.join(FIGURES)}|all")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in names:
        stem, make = FIGURES[name]
        path = out / f"{stem}.png"
        make(path).savefig(path)
        paths.append(path)
    return paths


if __name__ == "__main__":
    sys.exit(exit_status(main))
