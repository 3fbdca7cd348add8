"""Figures of arXiv 2510.13786 that need runs, from our studies, and what becomes of its claims.

    python -m analysis.studies fig=2|4a|4b|5a|5b|6a|6b|7|8a|9a|10a|14a|14b|15|16|17a|19a|19b|20|
                                   verdicts|all
                               [runs=runs] [compute=compute|modelled_device_s|tokens_generated]
                               [out=analysis/results/studies]

Each figure reads one study: a directory under `runs` that `python -m experiments.study sweep=NAME`
fills, or the evaluations of one, `runs/NAME.csv`. Those committed redraw everything but Fig. 16 and
other axes of compute:

    python -m analysis.studies fig=all runs=analysis/results/studies/evals

A study is fitted once, on all of its evaluations, and for another axis of compute once per
figure, as a preview of its recipes; the posterior lies beside the runs (of a CSV, in
`outputs/studies`) and is fitted again when they change. `verdicts` (CSV) says of each claim with
what probability the posterior supports it, and the smallest effect it would have seen: "reproduced"
and "contradicted" need the claim, or its contrary, at 0.9; a posterior that is merely wide "cannot
tell". Our numbers are of a model of 100,000 parameters on sums
of digits; only their order can be compared with the paper's. Bad options end with exit code 2 and
one line on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

import rlx.scaling as sc
from experiments.options import exit_status, read_options
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows
from rlx.record import runs as run_directories
from rlx.scaling import Evals, ScalingFit
from rlx.scaling.data import COLUMNS
from rlx.scaling.style import COLORS, FAINT, INK, log_ticks, tidy

DETECTED = 2.8  # standard errors between 0 and what is seen in 80 % of studies, at 5 % two-sided


@dataclass(frozen=True)
class Options:
    fig: str = "all"
    runs: Path = Path("runs")
    compute: str = "compute"
    out: Path = Path("analysis/results/studies")


@dataclass(frozen=True)
class Comparison:
    """A figure: recipes of a study side by side, the first the reference of the others."""

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
        {"none": "PipelineRL-8", "sync": "PPO-off-policy-1", "off_policy_8": "PPO-off-p.-8"},
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
        "Fig. 7: leave one out",
        LOO,
        "A within 0.02, slopes 1.8 to 2.0",
        "slope",
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
        "A 0.61, 0.645; C_mid 2.5k, 11k",
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
        "loo", "Fig. 15: leave one out", LOO, "A within 0.02", match={"axis": "ablation"}
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


# What the paper says of a level against a reference, as an event of `fit.effects`.
CLAIMS = Path(__file__).parent / "claims.csv"
EVENTS: dict[str, Callable[[pd.Series], tuple[float, float]]] = {  # P(claim), P(its contrary)
    "same A": lambda row: (1 - row["p_ceiling"], max(row["p_raises"], row["p_lowers"])),
    "higher A": lambda row: (row["p_raises"], 1 - row["p_raises"]),
    "lower A": lambda row: (row["p_lowers"], 1 - row["p_lowers"]),
    "no higher A": lambda row: (1 - row["p_raises"], row["p_raises"]),
    "more compute": lambda row: (row["p_dearer"], 1 - row["p_dearer"] - row["p_uncompared"]),
    "more compute to 80 %": lambda row: (row["p_later"], 1 - row["p_later"]),
}
DECIDE = 0.9


# What the cells of committed evaluations are called today: recipe, and what is left out of it.
NAMES = Path(__file__).parent / "names.csv"
AXES = {
    "learning_rate": "optim.learning_rate",
    "max_new_tokens": "rollout.max_new_tokens",
    "prompts_per_step": "rollout.prompts_per_step",
}


def renamed(evals: pd.DataFrame) -> pd.DataFrame:
    """Committed evaluations of before 2026-11-26, when an ablation was a recipe of its own."""
    today = pd.read_csv(NAMES, dtype=str, keep_default_na=False).set_index("before")
    known = evals["recipe"].isin(today.index)
    level = evals["recipe"].map(today["ablation"]).fillna("none")
    recipe = evals["recipe"].map(today["recipe"]).where(known, evals["recipe"])
    evals = evals.assign(recipe=recipe, ablation=level)
    if "d_model" in evals:
        model = evals["d_model"].map({32: "mini", 64: "tiny"})
        evals = evals.drop(columns="d_model").assign(model=model)
    return evals.rename(columns=AXES)


# ------------------------------------------------------------------ posteriors


def posterior(
    study: Path, compute: str, levels: Sequence[str] = (), axis: str = "recipe"
) -> ScalingFit:
    """The fit of a study, made where it is missing or of other evaluations.

    With `levels` of an axis, a preview (Laplace) of the runs at these alone.
    """
    table = study.with_name(f"{study.name}.csv")
    if run_directories(study):
        evals, folder = Evals.read(study, compute=compute), study
    elif table.exists():
        evals, folder = read_table(table, compute), Path("outputs/studies") / study.name
    else:
        remedy = f"python -m experiments.study sweep={study.name} out={study}"
        raise InputError("runs", study, "no runs of this study", remedy)
    path = folder / f"posterior-{compute}.nc"
    if levels:
        frame = evals.frame
        evals = evals.select(list(frame.loc[frame[axis].isin(levels), "run"].unique()))
        path = folder / f"posterior-{compute}-{'-'.join(levels)}.nc"
    if path.exists():
        fit = sc.load(path)
        if fit.attrs["data_sha256"] == evals.sha256():
            return fit
    fit = sc.fit(evals, method="laplace" if levels else "nuts", progress=True)
    folder.mkdir(parents=True, exist_ok=True)
    fit.save(path)
    return fit


def read_table(table: Path, compute: str) -> Evals:
    """The evaluations of a study as they are committed: columns of `Evals`, and one per axis."""
    rows = renamed(pd.read_csv(table))
    axes = [name for name in rows if name not in COLUMNS]
    evals = Evals.from_frame(rows, compute=compute, axes=axes, start="start")
    label = "training compute (FLOPs)" if compute == "compute" else compute
    return replace(evals, compute_label=label, title=table.stem)


def verdicts(fit_of: Callable[[str], ScalingFit]) -> pd.DataFrame:
    """One row per claim: its probability, the effect, and the smallest that would be seen."""
    rows = []
    for claim in pd.read_csv(CLAIMS, dtype=str).itertuples():
        table = fit_of(claim.study).effects(claim.axis, reference=claim.reference)
        row = table[table["level"] == claim.level].iloc[0]
        probability, contrary = EVENTS[claim.event](row)
        sd_A = (row["dA_q95"] - row["dA_q05"]) / 3.29  # quantiles of a normal
        sd_log_C = np.log(row["compute_ratio_q95"] / row["compute_ratio_q05"]) / 3.29
        shown = {
            f"{name}{q}": row[f"{name}_{quantile}"]
            for name in ("dA", "compute_ratio")
            for q, quantile in (("", "q50"), ("_q05", "q05"), ("_q95", "q95"))
        }
        rows.append(
            {
                "claim": claim.claim,
                "figure": claim.figure,
                "study": claim.study,
                "event": claim.event,
                "probability": probability,
                "verdict": "reproduced"
                if probability >= DECIDE
                else "contradicted"
                if contrary >= DECIDE
                else "cannot tell",
                **shown,
                "smallest_dA": DETECTED * sd_A,
                "smallest_ratio": np.exp(DETECTED * sd_log_C),
            }
        )
    return pd.DataFrame(rows)


# ------------------------------------------------------------------ figures


def draw(comparison: Comparison, fit: ScalingFit) -> Figure:
    """The comparison on the left; on the right, what it does to ceiling and compute."""
    names = _recipes_of(comparison, fit)
    table = _effects(comparison, fit)
    wide = len(names) > 5
    figure = Figure(figsize=(11.5, 5.4 if wide else 4.3), layout="constrained", dpi=150)
    figure.get_layout_engine().set(wspace=0.04)
    columns = [2.2, 1] if table.empty else [2.2, 1, 1]
    left, ceiling, *rest = figure.subplots(1, len(columns), width_ratios=columns)
    kinds = {"curves": _curves, "slope": _slopes, "repeats": _repeats}
    kinds[comparison.kind](left, fit, names)
    left.set_xscale("log")
    left.set_xlabel(fit.evals.compute_label, fontsize=9)
    log_ticks(left)
    tidy(left)
    if comparison.kind != "slope":
        truths = pd.concat([_rows(fit, name)["truth"] for name in names])
        for truth in truths.dropna().unique():
            left.axhline(truth, color=INK, linewidth=0.8, zorder=1)
            left.text(
                0.01, truth, f"exact ceiling {truth:.3f}", transform=left.get_yaxis_transform(),
                ha="left", va="bottom", fontsize=8, color=INK,
            )  # fmt: skip
    left.legend(frameon=False, fontsize=8, loc="best")
    labels = list(comparison.recipes.values())
    if table.empty:
        _ceilings(ceiling, fit, names)
    else:
        (compute,) = rest
        _forest(ceiling, table, "dA", 0.0, (-0.02, 0.02), labels[1:])
        mean = "\n(mean over the study's matched cells)" if len(comparison.match) > 1 else ""
        ceiling.set_xlabel(f"change of A against {labels[0]}{mean}", fontsize=9)
        _forest(compute, table, "compute_ratio", 1.0, (1 / 1.1, 1.1), [""] * len(table))
        compute.set_xscale("log")
        if np.divide(*compute.get_xlim()[::-1]) < 2.5:
            compute.xaxis.set_major_locator(FixedLocator([0.6, 0.7, 0.8, 1, 1.2, 1.4, 1.6, 2]))
            compute.xaxis.set_minor_locator(NullLocator())
            compute.xaxis.set_major_formatter("{x:g}")
        else:
            log_ticks(compute)
        compute.set_xlabel("compute ratio at equal pass rate", fontsize=9)
    preview = ", preview" if fit.attrs["method"] == "laplace" else ""
    title = f"{comparison.title}{preview}    (the paper: {comparison.paper})"
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    return figure


def draw_entropy(comparison: Comparison, study: Path) -> Figure:
    """Entropy of the policy against updates, a line per seed. InputError without runs."""
    if not run_directories(study):
        remedy = f"python -m experiments.study sweep={study.name} out={study}"
        raise InputError("runs", study, "no runs of this study, which hold the entropies", remedy)
    figure = Figure(figsize=(6.8, 4.3), layout="constrained", dpi=150)
    ax = figure.subplots()
    axis, others = _axis_of(comparison)
    for color, (level, label) in zip(COLORS, comparison.recipes.items(), strict=False):
        first = True
        for path in run_directories(study):
            manifest = RunRecord(path).manifest
            levels = {name: str(value) for name, value in manifest["axes"].items()}
            if levels != others | {axis: level}:
                continue
            rows = read_rows(path / "metrics.jsonl")
            entropy = pd.Series([row["policy/entropy"] for row in rows])
            smooth = entropy.rolling(10, min_periods=1).mean()
            ax.plot(smooth, color=color, linewidth=1, label=label if first else None)
            first = False
    ax.set_yscale("log")
    ax.set_xlabel("update", fontsize=9)
    ax.set_ylabel("entropy of the policy (nats per token, mean of 10 updates)", fontsize=9)
    tidy(ax)
    ax.legend(frameon=False, fontsize=8)
    title = f"{comparison.title}    (the paper: {comparison.paper})"
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    return figure


def _axis_of(comparison: Comparison) -> tuple[str, dict[str, str]]:
    others = dict(comparison.match)
    return others.pop("axis"), others


def _levels(recipe: str) -> dict[str, str]:
    """Of a name such as "scalerl, d_model=64, max_new_tokens=9"; its recipe under "recipe"."""
    name, *parts = recipe.split(", ")
    return {"recipe": name} | dict(part.split("=", 1) for part in parts)


def _recipes_of(comparison: Comparison, fit: ScalingFit) -> dict[str, str]:
    """Label of each recipe of the fit that the figure shows. InputError if one is missing."""
    axis, others = _axis_of(comparison) if comparison.match else ("recipe", {})
    names = {}
    for level, label in comparison.recipes.items():
        wanted = others | {axis: level}
        found = [name for name in fit.recipes if wanted.items() <= _levels(name).items()]
        if not found:
            raise InputError("runs", comparison.study, f"{level} is missing", "finish the study")
        names[found[0]] = label
    return names


def _effects(comparison: Comparison, fit: ScalingFit) -> pd.DataFrame:
    names = list(comparison.recipes)
    if len(names) < 2:
        return pd.DataFrame()
    axis = comparison.match.get("axis", "recipe")
    table = fit.effects(axis, reference=names[0]).set_index("level")
    return table.loc[names[1:]].reset_index()


def _each(fit: ScalingFit, names: dict[str, str]):
    """(recipe, label, colour, evaluations beyond C = 0) of each recipe."""
    for i, (recipe, label) in enumerate(names.items()):
        yield recipe, label, COLORS[i % len(COLORS)], _rows(fit, recipe)


def _rows(fit: ScalingFit, recipe: str) -> pd.DataFrame:
    frame = fit.evals.frame
    here = frame["compute"] > 0
    for name, level in _levels(recipe).items():
        number = pd.to_numeric(frame[name], errors="coerce")
        here &= (frame[name].astype(str) == level) | (number.astype(str) == str(_number(level)))
    return frame[here]


def _number(level: str) -> float | None:
    try:
        return float(level)
    except ValueError:
        return None


def _grid(rows: pd.DataFrame) -> np.ndarray:
    return np.geomspace(rows["compute"].min(), rows["compute"].max(), 100)


def _curves(ax: Axes, fit: ScalingFit, names: dict[str, str]) -> None:
    """Evaluations, and the posterior of the recipe's typical seed: median and 90 %."""
    for i, (recipe, label, color, rows) in enumerate(_each(fit, names)):
        ax.plot(rows["compute"], rows["value"], "o", color=color, ms=2, alpha=0.35, mew=0)
        grid_C = _grid(rows)
        draws = fit.curve(grid_C).sel(recipe=recipe).values.reshape(-1, len(grid_C))
        low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
        ax.fill_between(grid_C, low, high, color=color, alpha=0.15, linewidth=0)
        style = "-" if i < len(COLORS) else "--"
        ax.plot(grid_C, middle, color=color, linewidth=1.4, linestyle=style, label=label)
    ax.set_ylabel(fit.evals.value_label, fontsize=9)


def _slopes(ax: Axes, fit: ScalingFit, names: dict[str, str]) -> None:
    """(R - R0) / (A - R) on log axes, A the reference's: a sigmoid is a line of slope B.

    Least squares over evaluations that made 5 to 95 % of the gain.
    """
    params = fit.summary().set_index(["name", "param"])["mean"]
    A = params[next(iter(names)), "A"]
    for i, (recipe, label, color, rows) in enumerate(_each(fit, names)):
        R0 = params[recipe, "R0"]
        gained = (rows["value"] - R0) / (A - R0)
        inside = rows[(gained > 0.05) & (gained < 0.95)]  # beyond, noise decides
        y = (inside["value"] - R0) / (A - inside["value"])
        ax.plot(inside["compute"], y, "o", color=color, ms=2.5, alpha=0.4, mew=0)
        slope, start = np.polyfit(np.log(inside["compute"]), np.log(y), 1)
        grid_C = _grid(inside)
        style = "-" if i < len(COLORS) else "--"
        line = np.exp(start + slope * np.log(grid_C))
        ax.plot(grid_C, line, style, color=color, linewidth=1.2, label=f"{label}: {slope:.2f}")
    ax.set_yscale("log")
    ax.set_ylabel(f"(R - R0) / (A - R), A = {A:.3f}; slope B in the legend", fontsize=9)


def _repeats(ax: Axes, fit: ScalingFit, names: dict[str, str]) -> None:
    """A colour per seed of one recipe."""
    for recipe, _, _, rows in _each(fit, names):
        grid_C = _grid(rows)
        for color, (run, mine) in zip(COLORS, rows.groupby("run", sort=False), strict=False):
            ax.plot(mine["compute"], mine["value"], "o", color=color, ms=2.5, alpha=0.5, mew=0)
            middle = fit.curve(grid_C, by="run").sel(run=run).values.reshape(-1, 100)
            ax.plot(grid_C, np.median(middle, 0), color=color, linewidth=1.4, label=str(run))
        assert recipe in fit.recipes
    ax.set_ylabel(fit.evals.value_label, fontsize=9)


def _ceilings(ax: Axes, fit: ScalingFit, names: dict[str, str]) -> None:
    """A of every run."""
    runs = [run for name in names for run in _rows(fit, name)["run"].unique()]
    draws = fit.param("A", by="run").sel(run=runs).values.reshape(-1, len(runs))
    for y, (x_X, color) in enumerate(zip(draws.T, COLORS, strict=False)):
        low, middle, high = np.quantile(x_X, [0.05, 0.5, 0.95])
        ax.plot([low, high], [-y, -y], color=color, linewidth=2.4)
        ax.plot(middle, -y, "o", color=color)
    ax.set_yticks([])
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel("A of each seed (90 %)", fontsize=9)
    tidy(ax, rules="x")


def _forest(
    ax: Axes,
    table: pd.DataFrame,
    name: str,
    zero: float,
    margin: tuple[float, float],
    labels: Sequence[str],
) -> None:
    ax.axvspan(*margin, color=FAINT, alpha=0.2, linewidth=0)
    ax.axvline(zero, color=INK, linewidth=0.8)
    for y, (_, row) in enumerate(table.iterrows()):
        color = COLORS[(y + 1) % len(COLORS)]
        low, high = row[f"{name}_q05"], row[f"{name}_q95"]
        ax.plot([low, high], [-y, -y], color=color, linewidth=2.4, solid_capstyle="butt")
        ax.plot(row[f"{name}_q50"], -y, "o", color=color, ms=5)
    ax.set_yticks(-np.arange(len(table)), labels, fontsize=8)
    ax.set_ylim(-len(table) + 0.4, 0.6)
    tidy(ax, rules="x")


# ------------------------------------------------------------------ command


def drawable(name: str, options: Options) -> bool:
    """Whether its study is there: entropies are in runs, not in tables of evaluations."""
    figure = FIGURES.get(name)
    entropy = figure is not None and figure.kind == "entropy"
    return not entropy or bool(run_directories(options.runs / figure.study))


def main(argv: Sequence[str]) -> list[Path]:
    """Make what the options ask for; returns the files. InputError on bad options, missing runs."""
    options = read_options(Options, argv)
    names = [*FIGURES, "verdicts"] if options.fig == "all" else [options.fig]
    if names[0] not in (*FIGURES, "verdicts"):
        known = "|".join([*FIGURES, "verdicts", "all"])
        raise InputError("fig", options.fig, "no such figure", f"use {known}")
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    fits: dict[str, ScalingFit] = {}
    if options.fig == "all":
        lost = [name for name in names if not drawable(name, options)]
        names = [name for name in names if name not in lost]
        print(*(f"fig{name}: needs the runs of its study; left out" for name in lost), sep="\n")

    def fit_of(study: str) -> ScalingFit:
        if study not in fits:
            fits[study] = posterior(options.runs / study, options.compute)
        return fits[study]

    suffix = "" if options.compute == "compute" else f"-{options.compute}"
    written = []
    for name in names:
        if name == "verdicts":
            table = verdicts(fit_of)
            path = out / f"verdicts{suffix}.csv"
            table.round(4).to_csv(path, index=False)
            shown = ["claim", "probability", "verdict", "dA", "compute_ratio", "smallest_dA"]
            print(table[[*shown, "smallest_ratio"]].round(3).to_string(index=False))
        else:
            comparison = FIGURES[name]
            study = options.runs / comparison.study
            path = out / f"fig{name}{suffix}.png"
            if comparison.kind == "entropy":
                figure = draw_entropy(comparison, study)
            elif options.compute == "compute" or len(comparison.match) > 1:
                figure = draw(comparison, fit_of(comparison.study))
            else:  # seconds and tokens: of the figure's cells alone
                axis = comparison.match.get("axis", "recipe")
                cells = list(comparison.recipes)
                figure = draw(comparison, posterior(study, options.compute, cells, axis))
            figure.savefig(path)
        written.append(path)
    return written


if __name__ == "__main__":
    sys.exit(exit_status(main))
