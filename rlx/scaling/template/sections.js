// Everything below the chart, and the start.

function head() {
  document.title = D.title;
  $("title").textContent = D.title;
  const most = Math.max(...D.runs.flatMap(run => run.x[0].map(num)));
  $("summary").textContent = `${D.summary}, ${D.axes[0]} up to ${compute(most)}. ${D.fit}.`;
  const n = D.check.problems.length;
  const words = !D.converged
    ? "The sampler has not converged: do not use these numbers."
    : n
      ? `${plural(n, "finding")} of the check.`
      : "The check finds no problem.";
  fill(
    "verdict",
    ...(n ? [`${words} `, el("a", { href: "#check" }, "Read what it says")] : [words]),
  );
  if (n || !D.converged) $("verdict").className = "warn";
  for (const section of document.querySelectorAll("section[data-nav]")) {
    const title = section.querySelector("h2");
    title.id = `${section.id}-title`;
    section.setAttribute("aria-labelledby", title.id);
    document.querySelector("nav").append(el("a", { href: `#${section.id}` }, section.dataset.nav));
  }
  const versions = Object.entries(D.versions)
    .map(([name, version]) => `${name} ${version}`)
    .join(", ");
  $("made").textContent =
    `Made by rlx.scaling. SHA-256 of the evaluations: ${D.data_sha256.slice(0, 12)}.${versions ? ` Fitted with ${versions}.` : ""}`;
}

const colorOf = name => D.recipes.find(recipe => recipe.name === name);

function range(values, pad = 0.05) {
  const known = values.map(num).filter(Number.isFinite);
  const [lo, hi] = [Math.min(...known), Math.max(...known)],
    more = pad * (hi - lo) + 1e-4;
  return known.length ? { lo: lo - more, hi: hi + more } : { lo: 0, hi: 1 };
}

function bar(p) {
  return el(
    "span",
    {},
    el("span", { className: "share", style: { width: `${num(p) * 3}rem` }, ariaHidden: "true" }),
    num(p).toFixed(2),
  );
}

function ceilings() {
  const rows = D.ceilings
    .map(row => ({ ...row, recipe: D.recipes[row.recipe] }))
    .sort((a, b) => num(b.q50) - num(a.q50));
  const ends = range(rows.flatMap(row => [row.q05, row.q95, ...row.seeds]));
  const truths = rows.flatMap(row => row.truth).filter(v => num(v) > ends.hi);
  const asymptote = `Limit of each run's own curve, by least squares, with its ${PERCENT} profile interval. Grey: the data do not determine it.`;
  $("ceilings-text").textContent = POINT
    ? asymptote
    : `Pass rate at ${D.horizon} times the largest compute of the study, with the doubt beyond the data: ` +
      `median and ${PERCENT}; thin strokes are the medians of single seeds${rows.some(row => row.truth.length) ? ", diamonds the exact ceilings" : ""}. ` +
      "Grey: the data do not identify it, or a run left its curve." +
      (truths.length
        ? ` Exact ceilings beyond the axis: ${[...new Set(truths.map(rate))].join(", ")}.`
        : "");
  forest($("ceilings-forest"), {
    heads: POINT ? ["run", `best [${PERCENT}]`] : ["recipe", `median [${PERCENT}]`, "P(highest)"],
    form: v => digits(v, 3),
    lo: Math.max(ends.lo, 0),
    hi: Math.min(ends.hi, 1),
    rows: rows.map(row => {
      const grey = row.status !== "ok";
      return {
        label: row.label ?? row.recipe.label,
        color: grey ? css("--faint") : row.recipe.color,
        grey,
        lo: row.q05,
        mid: row.q50,
        hi: row.q95,
        seeds: row.seeds.length > 1 ? row.seeds : [],
        truth: row.truth,
        more: row.p_best === undefined ? "" : bar(row.p_best),
        value: `${rate(row.q50)} ${between(row.q05, row.q95, rate)}${grey ? ` ${row.status}` : ""}`,
      };
    }),
  });
}

function costs() {
  const { targets, rows, start } = D.costs;
  const seen = Math.max(...D.runs.flatMap(run => run.x[0].map(num)));
  const finite = [seen, ...rows.flat().flatMap(row => [row.q05, row.q50, row.q95].map(num))].filter(
    v => v > 0 && Number.isFinite(v),
  );
  const [lo, hi] = [Math.min(...finite) / 1.2, Math.min(Math.max(...finite) * 1.2, 30 * seen)];
  $("target").max = targets.length - 1;
  $("target").value = start;
  const show = () => {
    const i = Number($("target").value);
    $("target-value").textContent = digits(targets[i], 3);
    $("target").setAttribute("aria-valuetext", `pass rate ${digits(targets[i], 3)}`);
    fill("costs-forest");
    forest($("costs-forest"), {
      heads: ["recipe", `median [${PERCENT}]`, "P(reached)"],
      form: v => compute(v, 2),
      log: true,
      lo,
      hi,
      caption: D.axes[0],
      rows: rows[i].map(row => {
        const recipe = colorOf(row.name);
        return {
          label: recipe.label,
          color: recipe.color,
          lo: row.q05,
          mid: row.q50,
          hi: row.q95,
          more: bar(row.prob_reachable),
          value: computes(row.q50, row.q05, row.q95),
        };
      }),
    });
  };
  $("target").oninput = show;
  if (targets.length === 1) $("target").disabled = true;
  show();
}

function effects() {
  const box = $("effects");
  for (const { axis, rows } of D.effects) {
    const reference = rows[0].reference;
    box.append(el("h3", {}, `${axis}: levels against ${reference}`));
    const A = range([
      ...rows.flatMap(row => [row.dA_q05, row.dA_q95]),
      -2 * D.margins.A,
      2 * D.margins.A,
    ]);
    forest(box, {
      heads: ["level", `difference of ceilings [${PERCENT}]`, "verdict"],
      form: v => digits(v, 2),
      ...A,
      margin: [-D.margins.A, D.margins.A],
      rules: [0],
      caption: `Ceiling: pass rate above that of ${reference} at the horizon; shaded, ±${D.margins.A} does not count`,
      rows: rows.map(row => ({
        label: row.level,
        color: D.recipes[0].color,
        lo: row.dA_q05,
        mid: row.dA_q50,
        hi: row.dA_q95,
        value: `${rate(row.dA_q50)} ${between(row.dA_q05, row.dA_q95, rate)}`,
        more: row.verdict,
      })),
    });
    const known = rows
      .flatMap(row =>
        ["compute_ratio", "pace_ratio"].flatMap(q => [row[`${q}_q05`], row[`${q}_q95`]]),
      )
      .map(num)
      .filter(v => v > 0 && Number.isFinite(v));
    const m = 1 + D.margins.compute;
    forest(box, {
      heads: ["level", `compute over that of ${reference} [${PERCENT}]`, "P(cheaper)"],
      form: ratio,
      log: true,
      lo: Math.min(...known, 1 / (m * m)),
      hi: Math.max(...known, m * m),
      margin: [1 / m, m],
      rules: [1],
      caption: `Efficiency: compute to the same pass rate over what ${reference} needs; thin, to 80 % of its own gain; shaded, ±${Math.round(100 * D.margins.compute)} % does not count`,
      rows: rows.map(row => ({
        label: row.level,
        color: D.recipes[0].color,
        lo: row.compute_ratio_q05,
        mid: row.compute_ratio_q50,
        hi: row.compute_ratio_q95,
        thin: [row.pace_ratio_q05, row.pace_ratio_q50, row.pace_ratio_q95],
        more: num(row.p_cheaper).toFixed(2),
        value: `${ratio(row.compute_ratio_q50)} ${between(row.compute_ratio_q05, row.compute_ratio_q95, ratio)}`,
      })),
    });
  }
}

function budgets() {
  const own = D.budgets;
  $("spend").max = own.length - 1;
  $("spend").value = Math.floor(own.length / 2);
  const show = () => {
    const B = own[Number($("spend").value)],
      words = `${compute(B.budget)}, ${digits(B.factor, 2)} times the largest run's`;
    $("spend-value").textContent = words;
    $("spend").setAttribute("aria-valuetext", words);
    fill("budget-table");
    if (B.refused) {
      $("budget-text").textContent = `No plan: ${B.refused}`;
      return;
    }
    $("budget-text").textContent =
      (num(B.spent) > 0
        ? `Before a recipe is chosen by its ceiling, evaluations for ${compute(B.spent)} are worth ${rate(B.value)} of pass rate. `
        : "Before a recipe is chosen by its ceiling, no further evaluations are worth their compute. ") +
      `To know all ceilings would be worth ${rate(B.perfect)} (± ${rate(B.error)}). Gain: what a run's pass rate rises by if it alone gets the budget.`;
    table(
      "budget-table",
      [
        { label: "run, or recipe for a new seed" },
        { label: "plan" },
        { label: "compute", form: compute },
        { label: "gain, mean", form: rate },
        { label: "5 %", form: rate },
        { label: "95 %", form: rate },
        { label: "worth alone", form: rate },
        { label: "P(best)", form: v => num(v).toFixed(2) },
        { label: "status", long: true },
      ],
      B.rows.map(row => [
        row.kind === "run" ? row.name : `new seed of ${colorOf(row.name).label}`,
        row.action,
        row.compute,
        row.gain_mean,
        row.gain_q05,
        row.gain_q95,
        row.value,
        row.p_best,
        row.status,
      ]),
      { plan: row => num(row[2]) > 0 },
    );
  };
  $("spend").oninput = show;
  show();
}

function trust() {
  const T = D.trust;
  $("trust-text").textContent =
    `Earlier forecasts of this study, compared with what came: ${T.says}. Trusted are horizons at which at least ${percent(T.least)} of the later evaluations lay inside their ${PERCENT} intervals, over at least three runs.`;
  if (!T.evidence.length) {
    $("trust").querySelector("details").hidden = true;
    return;
  }
  const least = Math.min(0.5, ...T.evidence.map(row => num(row.coverage)));
  forest($("trust-forest"), {
    heads: ["C / C seen", "inside their intervals", "verdict"],
    form: percent,
    lo: Math.max(0, least - 0.05),
    hi: 1.02,
    rules: [D.prob],
    caption: `Share of later evaluations inside their ${PERCENT} intervals; the line is ${PERCENT}`,
    rows: T.evidence.map(row => ({
      label: `up to ${digits(num(row.reach), 3)}`,
      color: row.verdict === "trusted" ? css("--focus") : css("--faint"),
      lo: null,
      mid: row.coverage,
      hi: null,
      value: `${percent(row.coverage)} over ${plural(row.runs, "run")}, ${plural(row.forecasts, "forecast")}`,
      more: row.verdict,
    })),
  });
  table(
    "trust-table",
    [
      { label: "share seen", form: percent },
      { label: "horizon", form: v => digits(num(v), 3) },
      { label: "evaluations", form: v => String(v) },
      { label: "coverage", form: percent },
      { label: "log score", form: v => num(v).toFixed(2) },
      { label: "CRPS", form: v => num(v).toFixed(4) },
      { label: "bias", form: v => num(v).toFixed(4) },
      { label: "RMSE", form: v => num(v).toFixed(4) },
    ],
    T.scores.map(row => [
      row.origin,
      row.horizon,
      row.n,
      row.coverage,
      row.log_score,
      row.crps,
      row.bias,
      row.rmse,
    ]),
    { sort: false },
  );
}

function check() {
  const { problems, sampler, runs, residuals } = D.check;
  fill(
    "problems",
    ...(problems.length ? problems : ["no problems"]).map(line => el("li", {}, line)),
  );
  for (const note of D.notes) $("problems").append(el("li", { className: "note" }, note));
  const form = v => (v === null ? "–" : typeof v === "number" ? digits(v, 4) : String(v));
  if (sampler.length)
    table(
      "check-tables",
      [{ label: "sampler" }, { label: "value", form }, { label: "bound" }, { label: "met" }],
      sampler.map(row => [row.diagnostic, row.value, row.bound, row.ok ? "yes" : "no"]),
      { caption: "The sampler", sort: false },
    );
  if (runs.length)
    table(
      "check-tables",
      [
        { label: "run" },
        { label: "gain seen 5 %", form: rate },
        { label: "50 %", form: rate },
        { label: "95 %", form: rate },
        { label: "P(past C_mid)", form: rate },
        { label: "prior share", form: rate },
        { label: "risen" },
        { label: "departure z", form },
      ],
      runs.map(row => [
        row.run,
        row.seen_q05,
        row.seen_q50,
        row.seen_q95,
        row.past_C_mid,
        row.prior_share,
        row.risen ? "yes" : "no",
        row.departure,
      ]),
      { caption: "Runs: how much of each curve is seen" },
    );
  $("left-over").hidden = !residuals.length;
  if (!residuals.length) return;
  const columns = Object.keys(residuals[0]);
  table(
    "residuals",
    columns.map(name => ({
      label: name.replace("_", " "),
      form: typeof residuals[0][name] === "number" ? form : undefined,
    })),
    residuals.map(row => columns.map(name => row[name])),
    { caption: "What the curves leave over of the evaluations that were fitted" },
  );
}

function configs() {
  const { known, apart, shared } = D.configs,
    keys = Object.keys(apart),
    same = Object.keys(shared);
  $("configs-text").textContent =
    (known ? "" : "The source of these evaluations holds no configurations. ") +
    (keys.length ? "What tells the runs apart:" : "Nothing that is known tells the runs apart.");
  if (keys.length)
    table(
      "configs-apart",
      [{ label: "run" }, ...keys.map(label => ({ label }))],
      D.runs.map((run, r) => [run.name, ...keys.map(name => apart[name][r])]),
    );
  $("configs-same").hidden = !same.length;
  $("configs-same").querySelector("summary").textContent =
    `${plural(same.length, "option")} that all runs share`;
  if (same.length)
    table(
      "configs-shared",
      [{ label: "option" }, { label: "value", long: true }],
      same.map(name => [name, shared[name]]),
      { caption: "Options that all runs share" },
    );
}

function runs() {
  const forms = {
    A: rate,
    B: v => digits(num(v)),
    C_mid: compute,
    R0: rate,
    "RMSE held out": v => (v === null ? "–" : num(v).toFixed(4)),
    "last compute": compute,
    "last value": rate,
    "best value": rate,
    "ceiling 5 %": rate,
    "ceiling 50 %": rate,
    "ceiling 95 %": rate,
    "gain seen": percent,
    "C / C_mid": v => digits(num(v), 3),
    evaluations: v => String(v),
    fitted: v => String(v),
  };
  table(
    "runs-table",
    D.table.columns.map(label => ({ label, form: forms[label], long: label === "status" })),
    D.table.rows,
    { caption: `Runs, ${D.axes[0]}` },
  );
}

for (const [id, known] of [
  ["efficiency", D.costs],
  ["budget", D.budgets],
  ["trust", D.trust],
])
  if (!known) $(id).remove();
head();
controls();
chooser();
key();
noteAxis();
build();
describe();
ceilings();
if (D.costs) {
  costs();
  effects();
}
if (D.budgets) budgets();
if (D.trust) trust();
check();
configs();
runs();
