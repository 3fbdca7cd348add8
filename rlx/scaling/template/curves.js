// What the chart shows: which curves, against which measure of compute, how far.

const state = {
  window: D.own,
  axis: 0,
  log: true,
  by: "run",
  fresh: false,
  ahead: true,
  shown: new Set(),
};

// From C to another measure of compute: by a line between a run's evaluations, and beyond them
// at its mean rate.
function converter(r, axis) {
  if (axis === 0) return C => C;
  const pairs = D.runs[r].x[0]
    .map((C, i) => [num(C), num(D.runs[r].x[axis][i])])
    .filter(([C, x]) => C > 0 && Number.isFinite(x));
  if (!pairs.length) return () => NaN;
  const [endC, endX] = pairs[pairs.length - 1];
  const known = [[0, 0], ...pairs];
  return C => {
    if (C >= endC) return (C * endX) / endC;
    let i = 1;
    while (known[i][0] < C) i++;
    const [[c0, x0], [c1, x1]] = [known[i - 1], known[i]];
    return x0 + ((x1 - x0) * (C - c0)) / (c1 - c0);
  };
}

function curvesShown() {
  const W = D.windows[state.window],
    names = state.by === "run" ? D.runs : D.recipes;
  const made = [];
  names.forEach((one, n) => {
    const j = state.by === "run" ? one.recipe : n,
      recipe = D.recipes[j];
    if (!state.shown.has(j)) return;
    const members =
      state.by === "run" ? [n] : D.runs.flatMap((run, r) => (run.recipe === j ? [r] : []));
    const maps = members.map(r => converter(r, state.axis));
    const toX = C => maps.reduce((sum, map) => sum + map(C), 0) / maps.length;
    const seed = recipe.runs.indexOf(one.name);
    const color =
      state.by === "run" ? shadeOf(recipe.color, seed, recipe.runs.length) : recipe.color;
    const own = W[state.by],
      last = num(own.last[n]);
    const columns = [...own.curve, ...own.new].map(q => q[n]);
    made.push({
      name: state.by === "run" ? one.name : recipe.label,
      color,
      mark: recipe.mark,
      members,
      last,
      toX,
      columns,
    });
  });
  return made;
}

// [lower, median, upper, new lower, new upper] of a curve at C, by a line in log C between points
// of the grid.
function valuesAt(curve, C) {
  const g = D.grid;
  let i = 1;
  while (i < g.length - 1 && g[i] < C) i++;
  const part = Math.min(1, Math.max(0, Math.log(C / g[i - 1]) / Math.log(g[i] / g[i - 1])));
  return curve.columns.map(y => y[i - 1] + part * (y[i] - y[i - 1]));
}

// Points {C, x, y: [...]} of a curve from one C to another.
function stretch(curve, from, to) {
  const inner = D.grid.filter(C => C > from && C < to);
  return [from, ...inner, to].map(C => ({ C, x: curve.toX(C), y: valuesAt(curve, C) }));
}

// C at which a curve's other measure of compute is x.
function inverse(curve, x) {
  let [lo, hi] = [D.grid[0], D.grid[D.grid.length - 1]];
  for (let i = 0; i < 50; i++) {
    const mid = Math.sqrt(lo * hi);
    if (curve.toX(mid) < x) lo = mid;
    else hi = mid;
  }
  return Math.sqrt(lo * hi);
}

function extent(curves) {
  const xs = [],
    ys = [];
  for (const curve of curves) {
    for (const r of curve.members) {
      xs.push(...D.runs[r].x[state.axis].map(num).filter(x => x > 0));
      ys.push(...D.runs[r].y.map(num));
    }
  }
  const most_x = Math.max(...xs); // a linear axis has less room for the forecast
  if (state.ahead)
    for (const curve of curves) {
      const end = curve.toX(D.grid[D.grid.length - 1]);
      xs.push(state.log ? end : Math.min(end, 2 * most_x));
    }
  const fitted = D.windows[D.own][state.by].curve;
  const names = state.by === "run" ? D.runs.map(run => run.recipe) : D.recipes.map((_, j) => j);
  const most = state.ahead
    ? D.grid.length
    : D.grid.findIndex(C => C >= Math.max(...D.runs.flatMap(run => run.x[0])));
  for (const q of fitted)
    q.forEach((row, n) => {
      if (state.shown.has(names[n])) ys.push(...row.slice(0, most).map(num));
    });
  const lo = Math.min(...ys),
    hi = Math.max(...ys),
    pad = 0.04 * (hi - lo) + 1e-3;
  const far = Math.max(...xs),
    near = Math.min(...xs);
  return {
    x: state.log ? [near / 1.15, far * 1.02] : [0, far * 1.02],
    y: [Math.max(lo - pad, 0), Math.min(hi + pad, 1.02)],
  };
}
