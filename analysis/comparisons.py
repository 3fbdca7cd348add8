"""Figures of arXiv 2510.13786 that need runs, from our studies: drawn from committed tables.

`python -m analysis.studies` fits each study and writes the tables (curves, parameters, effects);
`python -m analysis.all` draws them. Our numbers come from a model of 100,000 parameters that adds
digits; only the order of recipes can be compared with the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.cells import COLOR_OF
from analysis.drawing import METHODS, Drawing
from analysis.studies import SMOOTHED, read_table, tables
from rlx.scaling import Evals, ScalingFit
from rlx.scaling.effects import MARGIN_A, MARGIN_COMPUTE
from rlx.scaling.paths import HORIZON
from rlx.scaling.plot.forests import forest, stretch
from rlx.scaling.style import (
    INK,
    Color,
    canvas,
    label_outside,
    level,
    log_ticks,
    note,
    panel_title,
    rate_limits,
    rows_axis,
    shade,
    tidy,
    title,
)

PARAMETERS = {
    "A": f"pass rate at\n{HORIZON:g}x the compute",
    "B_tail": "steepness B\n(exponent of the gap to the ceiling)",
}


@dataclass(frozen=True)
class Comparison:
    """A figure: recipes of one study side by side; the first is the reference."""

    study: str
    title: str
    recipes: dict[str, str]
    paper: str
    kind: str = "curves"
    match: dict[str, str] = field(default_factory=dict)  # levels that the recipes' runs must have


LOO = {
    "none": "ScaleRL",
    "off_policy_8": "PPO-off-policy-8",
    "keep": "zero variance kept",
    "dapo_loss": "DAPO's loss",
    "bf16_heads": "bfloat16 heads",
    "length_penalty": "length penalty",
    "uniform": "uniform resampling",
    "prompt_norm": "prompt norm",
    "sample_mean": "sample mean",
}
SHAPES = "efficiency_shapers"

FIGURES = {
    "2": Comparison(
        "recipes",
        "Fig. 2: five recipes",
        {
            "scalerl": "ScaleRL",
            "minimax_m1": "MiniMax-M1",
            "magistral": "Magistral",
            "qwen2_5_dapo": "Qwen2.5 (DAPO)",
            "deepseek_grpo": "DeepSeek (GRPO)",
        },
        "A 0.61, 0.61, 0.535, 0.515, 0.49",
    ),
    "4a": Comparison(
        SHAPES,
        "Fig. 4a: off-policy algorithm",
        {"none": "PipelineRL-8", "sync": "PPO-off-policy-1", "off_policy_8": "PPO-off-policy-8"},
        "A 0.52 each; B 4.6, 2.2, 2.7",
        match={"axis": "ablation"},
    ),
    "4b": Comparison(
        SHAPES,
        "Fig. 4b: k of PipelineRL",
        {"none": "k = 8", "pipeline_1": "k = 1", "sync": "k = 0"},
        "k = 4 and 8 equally good",
        match={"axis": "ablation"},
    ),
    "5a": Comparison(
        SHAPES,
        "Fig. 5a: loss",
        {"none": "CISPO", "gspo": "GSPO", "clip_wide": "DAPO's clip"},
        "A 0.595, 0.595, 0.52",
        match={"axis": "ablation"},
    ),
    "5b": Comparison(
        "loo",
        "Fig. 5b: precision of the head",
        {"none": "float32", "bf16_heads": "bfloat16"},
        "A 0.61, 0.52 (alone); 0.61, 0.61 (left out)",
        match={"axis": "ablation"},
    ),
    "6a": Comparison(
        "loo",
        "Fig. 6a: prompts without variance",
        {"none": "dropped", "keep": "kept"},
        "dropping raises A",
        match={"axis": "ablation"},
    ),
    "6b": Comparison(
        "loo",
        "Fig. 6b: resampling of prompts",
        {"none": "no positive", "uniform": "uniform"},
        "no positive resampling raises A",
        match={"axis": "ablation"},
    ),
    "7": Comparison(
        "loo",
        "Fig. 7: leave one out, ceiling and steepness",
        LOO,
        "A within 0.02, B 1.8 to 2.0",
        "parameters",
        match={"axis": "ablation"},
    ),
    "8a": Comparison(
        "loo",
        "Fig. 8a: repeats",
        {"none": "ScaleRL"},
        "A within 0.015",
        "repeats",
        match={"axis": "ablation"},
    ),
    "9a": Comparison(
        "ceiling_movers",
        "Fig. 9a: generation length",
        {"9": "9 tokens", "11": "11 tokens"},
        r"A 0.61, 0.645; $C_\mathrm{mid}$ 2.5k, 11k",
        match={"axis": "rollout.max_new_tokens", "model": "tiny", "rollout.prompts_per_step": "16"},
    ),
    "10a": Comparison(
        "ceiling_movers",
        "Fig. 10a: batch size",
        {"8": "8 x 16", "16": "16 x 16"},
        "A 0.605, 0.61, 0.645 for 512, 768, 2048",
        match={"axis": "rollout.prompts_per_step", "model": "tiny", "rollout.max_new_tokens": "11"},
    ),
    "14a": Comparison(
        SHAPES,
        "Fig. 14a: aggregation",
        {
            "none": "prompt mean",
            "sample_mean": "sample mean",
            "token_mean": "token mean",
        },
        "prompt mean has the highest A",
        match={"axis": "ablation"},
    ),
    "14b": Comparison(
        SHAPES,
        "Fig. 14b: normalisation",
        {
            "none": "batch",
            "prompt_norm": "prompt",
            "centered": "none",
        },
        "all similar",
        match={"axis": "ablation"},
    ),
    "15": Comparison(
        "loo",
        "Fig. 15: leave one out",
        LOO,
        "A within 0.02",
        "each",
        match={"axis": "ablation"},
    ),
    "16": Comparison(
        "ceiling_movers",
        "Fig. 16: entropy by batch size",
        {"8": "8 x 16", "16": "16 x 16"},
        "nearly the same per update",
        "entropy",
        match={"axis": "rollout.prompts_per_step", "model": "tiny", "rollout.max_new_tokens": "11"},
    ),
    "17a": Comparison(
        SHAPES,
        "Fig. 17a: samples per prompt, 256 in all",
        {"none": "16", "g8": "8", "g32": "32"},
        "A 0.61, 0.585, 0.595",
        match={"axis": "ablation"},
    ),
    "19a": Comparison(
        SHAPES,
        "Fig. 19a: upper clip of DAPO's loss",
        {"clip_wide": "0.28", "clip_narrow": "0.20"},
        "A rises up to an optimum",
        match={"axis": "ablation"},
    ),
    "19b": Comparison(
        SHAPES,
        "Fig. 19b: cap of CISPO",
        {"none": "5", "cap_4": "4", "cap_8": "8"},
        "no difference",
        match={"axis": "ablation"},
    ),
    "20": Comparison(
        SHAPES,
        "Fig. 20: clip of GSPO",
        {"gspo": "3e-3, 5e-3", "gspo_small": "3e-4, 4e-4"},
        "1e-4 poor, 1e-3 as good or better",
        match={"axis": "ablation"},
    ),
}


# ------------------------------------------------------------------ what is drawn


@dataclass(frozen=True)
class Study:
    """The evaluations and the tables of one study."""

    evals: Evals
    curves: pd.DataFrame
    parameters: pd.DataFrame
    effects: pd.DataFrame
    fit: pd.Series


@cache
def study(results: Path, name: str) -> Study:
    def mine(table: str) -> pd.DataFrame:
        rows = pd.read_csv(results / f"{table}.csv")
        return rows[rows["study"] == name]

    evals = read_table(results / "evals" / f"{name}.csv", "compute")
    effects = mine("effects").query("ceiling == 'horizon'").astype({"level": str, "reference": str})
    return Study(evals, mine("curves"), mine("parameters"), effects, mine("fits").iloc[0])


def of_fit(name: str, fit: ScalingFit) -> Study:
    """The same from a fit instead of committed tables."""
    found = tables(name, fit)
    effects = found["effects"].query("ceiling == 'horizon'")
    parts = (found["curves"], found["parameters"], effects, found["fits"].iloc[0])
    return Study(fit.evals, *parts)


@dataclass(frozen=True)
class Cell:
    """A recipe of a figure: its name in the tables, its label and its colour."""

    name: str
    label: str
    color: str
    rows: pd.DataFrame  # evaluations beyond C = 0


def cells(comparison: Comparison, of: Study) -> list[Cell]:
    others = dict(comparison.match)
    axis = others.pop("axis", "recipe")
    known = of.parameters.query("level == 'recipe'")["name"].unique()
    out = []
    for wanted, label in comparison.recipes.items():
        levels = others | {axis: wanted}
        name = next(name for name in known if levels.items() <= _levels(name).items())
        frame = of.evals.frame
        here = frame["compute"] > 0
        for key, x in levels.items():
            here &= frame[key].astype(str).str.removesuffix(".0") == x
        out.append(Cell(name, label, COLOR_OF[wanted], frame[here]))
    return out


def _levels(recipe: str) -> dict[str, str]:
    """Levels in a name such as "scalerl, ablation=keep", with the recipe under "recipe"."""
    name, *parts = recipe.split(", ")
    return {"recipe": name} | dict(part.split("=", 1) for part in parts)


def effects(comparison: Comparison, of: Study) -> pd.DataFrame:
    """Effects of the figure's other levels against its first."""
    reference, *levels = comparison.recipes
    axis = comparison.match.get("axis", "recipe")
    table = of.effects[(of.effects["axis"] == axis) & (of.effects["reference"] == reference)]
    return table.set_index("level").loc[levels].reset_index()


# ------------------------------------------------------------------ figures

ROW, FRAME = 0.36, 0.75  # inches: height of a row of a forest plot, and of the space around it


def draw(comparison: Comparison, of: Study) -> Figure:
    """The curves on the left; on the right, what each recipe does to ceiling and compute."""
    shown = cells(comparison, of)
    if comparison.kind == "parameters":
        return draw_parameters(comparison, of, shown)
    each = comparison.kind == "each"
    n = len(shown) if comparison.kind == "repeats" else len(shown) - 1
    high = 2 * (ROW * n + FRAME)
    figure = canvas(11.5 if each else 9.4, max(high, 4.2) + 0.8)
    left, right = figure.subfigures(1, 2, width_ratios=(1.75 if each else 1.3, 1))
    if comparison.kind == "repeats":
        repeats(left, right, of, shown[0])
    else:
        curves(left, of, shown, each)
        forests(right, effects(comparison, of), shown, of)
    title(figure, f"{comparison.title}    (the paper: {comparison.paper})")
    note(figure, said(of))
    return figure


def said(of: Study) -> str:
    """How to read the figure."""
    return (
        f"Points: evaluations. Line and band: the typical seed, median and 90 %, by "
        f"{METHODS[of.fit['method']]}. Bars: median and 90 %; "
        "differences inside the grey band do not count."
    )


def curves(figure, of: Study, shown: list[Cell], each: bool) -> None:
    """All cells in one panel or, with `each`, a panel per cell that also shows the first."""
    groups = [shown] if not each else [[shown[0], cell] for cell in shown[1:]]
    columns = 2 if each else 1
    rows = -(-len(groups) // columns)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    known = pd.concat([cell.rows for cell in shown])
    for ax, group in zip(grid.flat, groups, strict=False):
        for cell in group:
            dots = {"color": cell.color, "ms": 2, "alpha": 0.35, "mew": 0}
            ax.plot(cell.rows["compute"], cell.rows["value"], "o", **dots)
            first = cell.rows["compute"].min()
            band(ax, of, "recipe", cell.name, cell.color, cell.label, first)
        truths = pd.concat([cell.rows for cell in group])["truth"].dropna().unique()
        for truth in truths:
            level(ax, truth, f"exact ceiling {truth:.3f}")
        if each:
            panel_title(ax, group[1].label)
        else:
            ax.legend(frameon=False, fontsize=8, loc="lower right")
        tidy(ax)
    first = grid.flat[0]
    first.set_xscale("log")
    first.set_ylim(*rate_limits([*known["value"], *known["truth"] + 0.02]))
    log_ticks(first)
    label_outside(grid, len(groups), of.fit["compute_label"], of.fit["value_label"])


def band(ax: Axes, of: Study, by: str, name: str, color: Color, label: str, first: float) -> None:
    """Median and 90 % of a curve, from its first evaluation on."""
    mine = (of.curves["level"] == by) & (of.curves["name"] == name)
    line = of.curves[mine & (of.curves["compute"] >= first)]
    ax.fill_between(line["compute"], line["q05"], line["q95"], color=color, alpha=0.15, lw=0)
    ax.plot(line["compute"], line["q50"], color=color, linewidth=1.4, label=label)


def forests(figure, table: pd.DataFrame, shown: list[Cell], of: Study) -> None:
    """What each recipe does to ceiling and compute, against the first."""
    above, below = figure.subplots(2, 1)
    y_N, tints = -np.arange(len(table)), [cell.color for cell in shown[1:]]
    names = [f"{cell.label}" for cell in shown[1:]]
    forest(above, table, {"dA": 0.0}, y_N, tints, MARGIN_A)
    below.set_xscale("log")
    forest(below, table, {"compute_ratio": 0.0}, y_N, tints, MARGIN_COMPUTE)
    mean = ", mean over matched cells" if table["matched"].max() > 1 else ""
    above.set_xlabel(f"change of the pass rate at {HORIZON:g}x the compute", fontsize=9)
    below.set_xlabel(f"{measure(of)} to the same pass rate, ratio", fontsize=9)
    panel_title(above, f"against {shown[0].label}{mean}")
    for ax in (above, below):
        rows_axis(ax, y_N, names)


def measure(of: Study) -> str:
    """What the compute axis counts: seconds, tokens, or compute."""
    return "compute" if "compute" in of.fit["compute_label"] else of.fit["compute_label"]


def repeats(left, right, of: Study, cell: Cell) -> None:
    """A shade per seed of one recipe, and the ceiling of each."""
    ax, forest_ax = left.subplots(), right.subplots()
    runs = list(cell.rows["run"].unique())
    table = of.parameters.query("level == 'run' and param == 'A'").set_index("name").loc[runs]
    for i, (run, rows) in enumerate(cell.rows.groupby("run", sort=False)):
        color = shade(cell.color, i, len(runs) + 1)
        ax.plot(rows["compute"], rows["value"], "o", color=color, ms=2.5, alpha=0.5, mew=0)
        label = f"seed {rows['seed'].iloc[0]:g}"
        band(ax, of, "run", str(run), color, label, rows["compute"].min())
        stretch(forest_ax, table.loc[run, ["q05", "q50", "q95"]].to_numpy(float), -i, color)
    for truth in cell.rows["truth"].dropna().unique():
        level(ax, truth, f"exact ceiling {truth:.3f}")
        forest_ax.axvline(truth, color=INK, linewidth=0.8)
    ax.set_xscale("log")
    log_ticks(ax)
    tidy(ax)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    label_outside(np.array([[ax]]), 1, of.fit["compute_label"], of.fit["value_label"])
    rows_axis(forest_ax, -np.arange(len(runs)), [f"seed {i}" for i in range(len(runs))])
    forest_ax.set_ylim(-len(runs) - 0.5, 1.5)
    forest_ax.set_xlabel(f"pass rate at {HORIZON:g}x the compute", fontsize=9)


def draw_parameters(comparison: Comparison, of: Study, shown: list[Cell]) -> Figure:
    """Ceiling and steepness of every recipe, and its compute."""
    figure = canvas(10.5, ROW * len(shown) + 1.6)
    axes = figure.subplots(1, 3, sharey=True)
    y_N = -np.arange(len(shown))
    for ax, (param, words) in zip(axes, PARAMETERS.items(), strict=False):
        rows = of.parameters[of.parameters["level"].eq("recipe") & of.parameters["param"].eq(param)]
        q_NQ = rows.set_index("name").loc[[cell.name for cell in shown], ["q05", "q50", "q95"]]
        for q_Q, y, cell in zip(q_NQ.to_numpy(), y_N, shown, strict=True):
            stretch(ax, q_Q, y, cell.color)
        ax.set_xlabel(words, fontsize=9)
    for truth in sorted({x for cell in shown for x in cell.rows["truth"].dropna().unique()}):
        axes[0].axvline(truth, color=INK, linewidth=0.8, zorder=1)
    axes[2].set_xscale("log")
    tints = [cell.color for cell in shown[1:]]
    forest(axes[2], effects(comparison, of), {"compute_ratio": 0.0}, y_N[1:], tints, MARGIN_COMPUTE)
    axes[2].set_xlabel(f"compute to the same pass rate\nover {shown[0].label}'s", fontsize=9)
    for ax in axes:
        rows_axis(ax, y_N, [cell.label for cell in shown])
    title(figure, f"{comparison.title}    (the paper: {comparison.paper})")
    note(
        figure,
        f"Median and 90 %, by {METHODS[of.fit['method']]}. Vertical lines: exact ceilings; "
        "answers are not cut with the length penalty, so its ceiling is 1.",
    )
    return figure


def draw_entropy(comparison: Comparison, table: pd.DataFrame) -> Figure:
    """Entropy of the policy against updates, a line per seed."""
    figure = canvas(6.8, 4.4)
    ax = figure.subplots()
    others = dict(comparison.match)
    axis = others.pop("axis")
    for wanted, label in comparison.recipes.items():
        here = np.logical_and.reduce(
            [table[k].astype(str) == x for k, x in {**others, axis: wanted}.items()]
        )
        for i, (_, run) in enumerate(table[here].groupby("seed")):
            own = None if i else label
            ax.plot(run["update"], run["entropy"], color=COLOR_OF[wanted], linewidth=1, label=own)
    ax.set_yscale("log")
    ax.set_xlabel("update", fontsize=9)
    ax.set_ylabel(
        f"entropy of the policy\n(nats per token, mean of {SMOOTHED} updates)", fontsize=9
    )
    tidy(ax)
    ax.legend(frameon=False, fontsize=8, title="batch", title_fontsize=8)
    title(figure, f"{comparison.title}    (the paper: {comparison.paper})")
    return figure


def figures(results: Path) -> dict[str, Drawing]:
    folder = results / "studies"
    return {f"studies/fig{name}": _drawing(folder, one) for name, one in FIGURES.items()}


def _drawing(folder: Path, one: Comparison) -> Drawing:
    if one.kind == "entropy":
        return Drawing(
            lambda: draw_entropy(one, pd.read_csv(folder / "entropy.csv")),
            "studies/entropy.csv, by python -m analysis.studies runs=runs",
        )
    return Drawing(
        lambda: draw(one, study(folder, one.study)),
        "studies/{curves,parameters,effects}.csv, by python -m analysis.studies",
    )
