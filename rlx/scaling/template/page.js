"use strict";
// Shows the numbers of the page. Text from outside is only ever set as text, never as markup.
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const POINT = D.method === "point"; // least squares, run by run: no bands and no probabilities
const PERCENT = `${100 * D.prob} %`;
const SVG = "http://www.w3.org/2000/svg";

// ---------------------------------------------------------------- words and elements

const num = (x) => (x === null || x === undefined ? NaN : Number(x === "inf" ? Infinity : x === "-inf" ? -Infinity : x));
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(given)) {
    if (key === "style") Object.assign(made.style, value);
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const fill = (id, ...children) => $(id).replaceChildren(...children);

function rate(x) {
  const v = num(x);
  return Number.isFinite(v) ? signed(v.toFixed(3)) : "–";
}

const signed = (text) => text.replace("-", "−");

function digits(v, n = 3) {
  return signed(String(Number(v.toPrecision(n))));
}

// 1000 as 1k, 2e12 as 2 × 10¹²; as the ticks of the figures.
function compute(x, n = 3) {
  const v = num(x);
  if (Number.isNaN(v)) return "–";
  if (!Number.isFinite(v)) return "never";
  if (Math.abs(v) < 1e3) return digits(v, n);
  if (Math.abs(v) < 1e6) return `${digits(v / 1e3, n)}k`;
  const power = Math.floor(Math.log10(Math.abs(v)) + 1e-9);
  const lead = digits(v / 10 ** power, n);
  const raised = [...String(power)].map((d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]).join("");
  return `${lead === "1" ? "" : `${lead} × `}10${raised}`;
}

// Median and interval with one power of ten.
function computes(mid, lo, hi) {
  const v = num(mid), power = Math.floor(Math.log10(v) + 1e-9);
  if (!(v >= 1e6) || !Number.isFinite(v)) return `${compute(mid)} ${between(lo, hi, compute)}`;
  const form = (x) => (Number.isFinite(num(x)) ? digits(num(x) / 10 ** power) : "never");
  return `${form(mid)} ${between(lo, hi, form)} × ${compute(10 ** power)}`;
}

function ratio(x) {
  const v = num(x);
  if (Number.isNaN(v)) return "–";
  return Number.isFinite(v) ? `${v.toFixed(2)}×` : "∞";
}

function percent(x) {
  const v = num(x);
  return Number.isFinite(v) ? `${Math.round(100 * v)} %` : "–";
}

const between = (lo, hi, form) => `[${form(lo)}, ${form(hi)}]`;

function mix(color, part) {
  const rgb = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  return `rgb(${rgb.map((c) => Math.round(c + (255 - c) * part)).join(", ")})`;
}

const shadeOf = (color, i, n) => mix(color, (0.5 * i) / Math.max(n - 1, 1));

// ---------------------------------------------------------------- marks, tables, forests

function trace(path, mark, x, y, r) {
  if (mark === "x") {
    path.moveTo(x - r, y - r); path.lineTo(x + r, y + r);
    path.moveTo(x - r, y + r); path.lineTo(x + r, y - r);
  } else if (mark % 4 === 0) {
    path.moveTo(x + r, y); path.arc(x, y, r, 0, 2 * Math.PI);
  } else {
    const corners = [null, [[-1, -1], [1, -1], [1, 1], [-1, 1]], [[0, -1.2], [1.1, 0.9], [-1.1, 0.9]],
      [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]]][mark % 4];
    corners.forEach(([a, b], i) => (i ? path.lineTo(x + a * r, y + b * r) : path.moveTo(x + a * r, y + b * r)));
    path.closePath();
  }
}

const SHAPES = ["M17 7a4 4 0 1 1-8 0a4 4 0 1 1 8 0", "M9 3h8v8h-8z", "M13 2l4.6 8.6h-9.2z", "M13 1.6l5.4 5.4l-5.4 5.4l-5.4-5.4z"];

function swatch({ color = css("--faint"), line = true, dash = "", mark = null, open = false, cross = false, band = 0 }) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "mark"); svg.setAttribute("viewBox", "0 0 26 14"); svg.setAttribute("aria-hidden", "true");
  const add = (d, given) => {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", d);
    for (const [key, value] of Object.entries(given)) path.setAttribute(key, value);
    svg.append(path);
  };
  if (band) add("M0 1h26v12h-26z", { fill: color, opacity: band });
  if (line) add("M0 7h26", { stroke: color, "stroke-width": 2, "stroke-dasharray": dash, fill: "none" });
  if (mark !== null) add(SHAPES[mark % 4], { fill: open ? "none" : color, stroke: color, "stroke-width": 1.4 });
  if (cross) add("M9 3l8 8M9 11l8-8", { stroke: color, "stroke-width": 1.4 });
  return svg;
}

// A table that its headings sort. columns: {label, form?, long?}; form makes a cell of a number.
function table(id, columns, rows, { caption = "", plan = () => false, sort = true } = {}) {
  const body = el("tbody");
  const isNumber = columns.map((c) => Boolean(c.form));
  const draw = (ordered) => body.replaceChildren(...ordered.map((row) => el("tr", { className: plan(row) ? "plan" : "" },
    ...columns.map((c, i) => el("td", { className: isNumber[i] ? "number" : c.long ? "long" : "" },
      c.form ? c.form(row[i]) : row[i] === null ? "–" : String(row[i]))))));
  let last = null;
  const heads = columns.map((c, i) => {
    const head = el("th", { scope: "col", className: isNumber[i] ? "number" : "" });
    if (!sort) { head.append(c.label); return head; }
    head.append(el("button", { type: "button", onclick: () => {
      const down = last === i; last = down ? null : i;
      const key = (row) => (isNumber[i] ? num(row[i]) : String(row[i]));
      const order = [...rows].sort((a, b) => (isNumber[i] ? (key(a) - key(b)) || 0 : key(a).localeCompare(key(b), "en", { numeric: true })));
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      draw(down ? order.reverse() : order);
    } }, c.label));
    return head;
  });
  draw(rows);
  const made = el("table", {}, caption ? el("caption", {}, caption) : null, el("thead", {}, el("tr", {}, ...heads)), body);
  const label = caption || $(id).closest("section").querySelector("h2").textContent;
  $(id).append(el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": label }, made));
}

// Intervals on one axis. rows: {label, color, grey, lo, mid, hi, thin, seeds, truth, value, more}.
function forest(parent, { heads, lo, hi, log = false, form, margin = null, rules = [], rows, caption = "" }) {
  const f = log ? Math.log : (v) => v;
  const at = (v) => (f(v) - f(lo)) / (f(hi) - f(lo));
  const left = (v) => `${100 * Math.min(1, Math.max(0, at(v)))}%`;
  const span = (kind, a, b, color) => el("i", { className: kind, style: { left: left(a), width: `calc(${left(b)} - ${left(a)})`, background: color } });
  const steps = ticks(lo, hi, log, 6);
  const track = (row) => {
    const box = el("div", { className: "track" });
    if (margin) box.append(span("margin", margin[0], margin[1], ""));
    for (const v of [...steps, ...rules]) box.append(el("i", { className: "rule", style: { left: left(v) } }));
    for (const v of rules) box.append(el("i", { className: "rule", style: { left: left(v), background: css("--faint") } }));
    const [a, m, b] = [num(row.lo), num(row.mid), num(row.hi)];
    if (row.thin) box.append(span("thin", num(row.thin[0]), num(row.thin[2]), row.color));
    if (!Number.isNaN(a)) {
      box.append(span("bar", a, b, row.color));
      if (at(a) < 0) box.append(el("i", { className: "beyond", style: { left: 0, color: row.color } }, "‹"));
      if (at(b) > 1) box.append(el("i", { className: "beyond", style: { right: 0, color: row.color } }, "›"));
    }
    for (const v of row.seeds ?? []) box.append(el("i", { className: "seed", style: { left: left(num(v)), background: row.color } }));
    for (const v of row.truth ?? []) if (at(num(v)) >= 0 && at(num(v)) <= 1) box.append(el("i", { className: "truth", style: { left: left(num(v)) } }));
    if (at(m) >= 0 && at(m) <= 1) box.append(el("i", { className: "dot", style: { left: left(m), background: row.color } }));
    return box;
  };
  const axis = el("div", { className: "axis" }, ...steps.map((v) => el("span", { style: { left: left(v) } }, form(v))));
  const body = rows.map((row) => el("tr", { className: row.grey ? "grey" : "" },
    el("th", { scope: "row" }, row.label), el("td", { className: "plot" }, track(row)),
    el("td", { className: "value" }, row.value), el("td", { className: "more" }, row.more ?? "")));
  parent.append(el("table", { className: "forest" }, caption ? el("caption", {}, caption) : null,
    el("thead", {}, el("tr", {}, el("th", { scope: "col", className: "name" }, heads[0]), el("th", { scope: "col", className: "plot", "aria-label": "interval" }, axis),
      el("th", { scope: "col", className: "value" }, heads[1]), el("th", { scope: "col", className: "more" }, heads[2] ?? ""))),
    el("tbody", {}, ...body)));
}

// Round numbers between lo and hi, about n of them.
function ticks(lo, hi, log, n) {
  const made = [];
  if (!log) {
    const rough = (hi - lo) / n, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((s) => s * power >= rough);
    for (let i = Math.ceil(lo / step - 1e-9); i * step <= hi * (1 + 1e-12); i++) made.push(Number((i * step).toPrecision(12)));
    return made;
  }
  const decades = Math.log10(hi / lo);
  const leads = [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]].find((x) => x.length * decades <= n) ?? [1];
  const every = Math.max(1, Math.ceil(decades / n));
  for (let p = Math.floor(Math.log10(lo)); p <= Math.log10(hi); p++)
    for (const lead of leads) {
      const v = lead * 10 ** p;
      if (v >= lo * (1 - 1e-9) && v <= hi * (1 + 1e-9) && (lead > 1 || p % every === 0)) made.push(v);
    }
  return made;
}

// ---------------------------------------------------------------- the chart's data

const state = { window: D.own, axis: 0, log: true, by: "run", fresh: false, ahead: true, shown: new Set() };

// From C to another measure of compute: between a run's evaluations by a line, beyond them at its mean rate.
function converter(r, axis) {
  if (axis === 0) return (C) => C;
  const pairs = D.runs[r].x[0].map((C, i) => [num(C), num(D.runs[r].x[axis][i])]).filter(([C, x]) => C > 0 && Number.isFinite(x));
  if (!pairs.length) return () => NaN;
  const [endC, endX] = pairs[pairs.length - 1];
  const known = [[0, 0], ...pairs];
  return (C) => {
    if (C >= endC) return (C * endX) / endC;
    let i = 1;
    while (known[i][0] < C) i++;
    const [[c0, x0], [c1, x1]] = [known[i - 1], known[i]];
    return x0 + ((x1 - x0) * (C - c0)) / (c1 - c0);
  };
}

function curvesShown() {
  const W = D.windows[state.window], names = state.by === "run" ? D.runs : D.recipes;
  const made = [];
  names.forEach((one, n) => {
    const j = state.by === "run" ? one.recipe : n, recipe = D.recipes[j];
    if (!state.shown.has(j)) return;
    const members = state.by === "run" ? [n] : D.runs.flatMap((run, r) => (run.recipe === j ? [r] : []));
    const maps = members.map((r) => converter(r, state.axis));
    const toX = (C) => maps.reduce((sum, map) => sum + map(C), 0) / maps.length;
    const seed = recipe.runs.indexOf(one.name);
    const color = state.by === "run" ? shadeOf(recipe.color, seed, recipe.runs.length) : recipe.color;
    const own = W[state.by], last = num(own.last[n]);
    const columns = [...own.curve, ...own.new].map((q) => q[n]);
    made.push({ name: state.by === "run" ? one.name : recipe.label, color, mark: recipe.mark, members, last, toX, columns });
  });
  return made;
}

// [lower, median, upper, new lower, new upper] of a curve at C, between points of the grid by a line in log C.
function valuesAt(curve, C) {
  const g = D.grid;
  let i = 1;
  while (i < g.length - 1 && g[i] < C) i++;
  const part = Math.min(1, Math.max(0, Math.log(C / g[i - 1]) / Math.log(g[i] / g[i - 1])));
  return curve.columns.map((y) => y[i - 1] + part * (y[i] - y[i - 1]));
}

// Points {C, x, y: [...]} of a curve from one C to another.
function stretch(curve, from, to) {
  const inner = D.grid.filter((C) => C > from && C < to);
  return [from, ...inner, to].map((C) => ({ C, x: curve.toX(C), y: valuesAt(curve, C) }));
}

// C at which a curve's other measure of compute is x.
function inverse(curve, x) {
  let [lo, hi] = [D.grid[0], D.grid[D.grid.length - 1]];
  for (let i = 0; i < 50; i++) {
    const mid = Math.sqrt(lo * hi);
    if (curve.toX(mid) < x) lo = mid; else hi = mid;
  }
  return Math.sqrt(lo * hi);
}

function extent(curves) {
  const xs = [], ys = [];
  for (const curve of curves) {
    for (const r of curve.members) {
      xs.push(...D.runs[r].x[state.axis].map(num).filter((x) => x > 0));
      ys.push(...D.runs[r].y.map(num));
    }
  }
  const most_x = Math.max(...xs); // a linear axis has less room for the forecast
  if (state.ahead) for (const curve of curves) {
    const end = curve.toX(D.grid[D.grid.length - 1]);
    xs.push(state.log ? end : Math.min(end, 2 * most_x));
  }
  const fitted = D.windows[D.own][state.by].curve;
  const names = state.by === "run" ? D.runs.map((run) => run.recipe) : D.recipes.map((_, j) => j);
  const most = state.ahead ? D.grid.length : D.grid.findIndex((C) => C >= Math.max(...D.runs.flatMap((run) => run.x[0])));
  for (const q of fitted) q.forEach((row, n) => { if (state.shown.has(names[n])) ys.push(...row.slice(0, most).map(num)); });
  const lo = Math.min(...ys), hi = Math.max(...ys), pad = 0.04 * (hi - lo) + 1e-3;
  const far = Math.max(...xs), near = Math.min(...xs);
  return { x: state.log ? [near / 1.15, far * 1.02] : [0, far * 1.02], y: [Math.max(lo - pad, 0), Math.min(hi + pad, 1.02)] };
}

// ---------------------------------------------------------------- the chart

let plot = null, drawn = [], limits = null, held = null;

function paint(u) {
  const { ctx, bbox } = u;
  const X = (x) => u.valToPos(x, "x", true), Y = (y) => u.valToPos(y, "y", true);
  const dpr = devicePixelRatio;
  const polygon = (points, a, b, color, alpha) => {
    if (points.length < 2) return;
    ctx.globalAlpha = alpha; ctx.fillStyle = color; ctx.beginPath();
    points.forEach((p, i) => (i ? ctx.lineTo(X(p.x), Y(p.y[a])) : ctx.moveTo(X(p.x), Y(p.y[a]))));
    for (let i = points.length - 1; i >= 0; i--) ctx.lineTo(X(points[i].x), Y(points[i].y[b]));
    ctx.fill();
  };
  const line = (points, color, dash) => {
    ctx.globalAlpha = 1; ctx.strokeStyle = color; ctx.lineWidth = 1.8 * dpr; ctx.setLineDash(dash.map((d) => d * dpr));
    ctx.beginPath();
    points.forEach((p, i) => (i ? ctx.lineTo(X(p.x), Y(p.y[1])) : ctx.moveTo(X(p.x), Y(p.y[1]))));
    ctx.stroke(); ctx.setLineDash([]);
  };
  ctx.save();
  ctx.beginPath(); ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height); ctx.clip();
  const end = D.grid[D.grid.length - 1], many = drawn.length, layer = (opacity) => 1 - (1 - opacity) ** (1 / Math.min(many, 3));
  const parts = drawn.map((curve) => ({ curve, seen: stretch(curve, D.grid[0], Math.max(curve.last, D.grid[0] * 1.0001)),
    ahead: state.ahead ? stretch(curve, curve.last, end) : [] }));
  ctx.fillStyle = css("--faint");
  for (const { curve } of parts) {
    ctx.globalAlpha = 0.12 / many;
    ctx.fillRect(X(curve.toX(curve.last)), bbox.top, bbox.left + bbox.width, bbox.height);
  }
  for (const { curve, seen, ahead } of parts) {
    if (state.fresh) { polygon(state.by === "run" ? ahead : [...seen, ...ahead], 3, 4, curve.color, layer(0.14)); }
    polygon(ahead, 0, 2, curve.color, layer(0.26)); polygon(seen, 0, 2, curve.color, 0.4);
  }
  ctx.globalAlpha = 1; ctx.strokeStyle = css("--ink"); ctx.lineWidth = dpr;
  for (const truth of new Set(drawn.flatMap((c) => c.members.map((r) => num(D.runs[r].truth))).filter(Number.isFinite))) {
    ctx.beginPath(); ctx.moveTo(bbox.left, Y(truth)); ctx.lineTo(bbox.left + bbox.width, Y(truth)); ctx.stroke();
  }
  for (const { curve } of parts) for (const r of curve.members) points(u, r, curve, X, Y, dpr);
  for (const { curve, seen, ahead } of parts) { line(seen, curve.color, []); line(ahead, curve.color, [5, 3]); }
  ctx.restore();
}

function points(u, r, curve, X, Y, dpr) {
  const { ctx, bbox } = u, run = D.runs[r], W = D.windows[state.window], recipe = D.recipes[run.recipe];
  const dense = drawn.length * run.y.length > 600;
  const last = num(W.run.last[r]) * (1 + 1e-9), size = (dense ? 2 : 3) * dpr;
  const color = shadeOf(recipe.color, recipe.runs.indexOf(run.name), recipe.runs.length);
  ctx.strokeStyle = color; ctx.lineWidth = 1.2 * dpr;
  run.y.forEach((y, i) => {
    const C = num(run.x[0][i]), x = num(run.x[state.axis][i]), seen = C <= last;
    if (state.log && !(x > 0)) {
      if (C === 0) { ctx.globalAlpha = 1; ctx.fillStyle = color; ctx.beginPath(); trace(ctx, 3, bbox.left + size, Y(num(y)), size * 1.3); ctx.fill(); }
      return;
    }
    ctx.globalAlpha = dense ? 0.55 : 0.9;
    ctx.beginPath(); trace(ctx, !seen && W.departed[r] ? "x" : recipe.mark, X(x), Y(num(y)), size);
    ctx.fillStyle = seen ? color : css("--ground");
    if (seen || !W.departed[r]) ctx.fill();
    ctx.stroke();
  });
}

function place(u) {
  const { left, top } = u.cursor;
  if (left === undefined || left < 0 || !drawn.length) { $("tip").hidden = true; return; }
  const x = u.posToVal(left, "x");
  let best = held;
  if (best === null) {
    let least = Infinity;
    drawn.forEach((curve, n) => {
      const away = Math.abs(u.valToPos(valuesAt(curve, inverse(curve, x))[1], "y") - top);
      if (away < least) [least, best] = [away, n];
    });
  }
  const curve = drawn[best], C = inverse(curve, x);
  const [lo, mid, hi, newLo, newHi] = valuesAt(curve, C);
  let near = null;
  for (const r of curve.members) D.runs[r].x[state.axis].forEach((own, i) => {
    const away = Math.abs(u.valToPos(num(own), "x") - left);
    if (away < 12 && (near === null || away < near.away)) near = { away, y: num(D.runs[r].y[i]), x: num(own), later: num(D.runs[r].x[0][i]) > num(D.windows[state.window].run.last[r]) * (1 + 1e-9) };
  });
  const where = `${D.axes[state.axis]} ${compute(x)} (${digits(C / curve.last, 2)} times what was fitted)`;
  const words = POINT ? [`curve ${rate(mid)}`] : [`curve ${rate(mid)} ${between(lo, hi, rate)}`, `new evaluation ${between(newLo, newHi, rate)}`];
  if (near) words.push(`evaluation ${rate(near.y)} at ${compute(near.x)}${near.later ? ", later than the fit" : ""}`);
  $("readout").textContent = `${curve.name}: ${where}: ${words.join("; ")}.${POINT ? "" : ` Brackets hold ${PERCENT}.`}`;
  fill("tip", el("strong", {}, curve.name), ...[`at ${compute(x)}`, ...words].map((text) => el("div", {}, text)));
  $("tip").hidden = false;
  const box = $("chart").getBoundingClientRect(), over = u.over.getBoundingClientRect();
  const wide = $("tip").offsetWidth, at = over.left - box.left + left;
  $("tip").style.left = `${Math.max(0, at + 14 + wide > box.width ? at - 14 - wide : at + 14)}px`;
  $("tip").style.top = `${Math.max(0, Math.min(over.top - box.top + top + 10, box.height - $("tip").offsetHeight))}px`;
}

function build() {
  if (plot) plot.destroy();
  drawn = curvesShown(); held = null; $("tip").hidden = true;
  if (!drawn.length) { plot = null; $("readout").textContent = "No recipe is chosen."; return; }
  limits = extent(drawn);
  const width = $("chart").clientWidth, narrow = width < 500;
  const rule = { stroke: () => css("--faint"), grid: { stroke: () => css("--rule"), width: 1 }, ticks: { stroke: () => css("--rule"), width: 1 }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
  const span = (u, lo, hi) => [lo, hi];
  plot = new uPlot({
    width, height: narrow ? 300 : Math.max(320, Math.min(520, Math.round(width * 0.48))),
    scales: { x: { time: false, distr: state.log ? 3 : 1, range: span }, y: { auto: false, range: span } },
    series: [{}, { paths: () => null, points: { show: false } }],
    axes: [
      { ...rule, label: D.axes[state.axis], labelSize: 18, splits: (u, i, lo, hi) => ticks(lo, hi, state.log, width / 90), filter: (u, v) => v, values: (u, v) => v.map((x) => compute(x)) },
      { ...rule, label: narrow ? "" : D.value_label, labelSize: narrow ? 0 : 18, size: 46, splits: (u, i, lo, hi) => ticks(lo, hi, false, 6), values: (u, v) => v.map((y) => digits(y, 3)) },
    ],
    cursor: { drag: { x: true, y: true, uni: 30 }, points: { show: false }, bind: { dblclick: () => () => { showAll(); return null; } } },
    legend: { show: false },
    hooks: { draw: [paint], setCursor: [place] },
  }, [[...limits.x], [...limits.y]], $("chart"));
  showAll();
}

function showAll() {
  if (!plot) return;
  $("readout").textContent = HINT;
  plot.batch(() => {
    plot.setScale("x", { min: limits.x[0], max: limits.x[1] });
    plot.setScale("y", { min: limits.y[0], max: limits.y[1] });
  });
}

function move() { // another window: same axes, other curves
  drawn = curvesShown();
  if (plot) plot.redraw(false);
  describe();
}

const HINT = "Move the pointer over the chart, or go there with the Tab key and use the arrow keys: values are read out here. Drag over a part to enlarge it.";

function describe() {
  const W = D.windows[state.window], share = `${digits(100 * W.share, 3)} %`;
  $("share").textContent = share;
  $("window").setAttribute("aria-valuetext", `${share} of compute, ${W.method}`);
  const how = { nuts: "by NUTS", laplace: "by a normal at the mode (method=laplace)", point: "by least squares" }[W.method];
  const own = state.window === D.own ? "This is the fit of which the rest of the page speaks. " : "";
  const fits = `${own}Fitted ${how} on the first ${share} of every run's compute. `;
  const gone = D.runs.filter((_, r) => W.departed[r]).map((run) => run.name);
  const left = gone.length ? ` Left their curve, and are not counted: ${gone.join(", ")}.` : "";
  const off = `The ${plural(W.later, "later evaluation")} lie ${rate(W.rmse)} from the curves (root mean square).`;
  $("score").textContent = fits + (W.later && POINT ? off : W.later
    ? `Of ${plural(W.later, "later evaluation")} ${W.inside} (${percent(W.inside / W.later)}) lay inside ${W.later === 1 ? "its" : "their"} ${PERCENT} interval${W.later === 1 ? "" : "s"}.`
    : "No later evaluation is there to compare it with.") + left;
}

function keys(event) {
  if (!plot || !drawn.length) return;
  const wide = plot.over.clientWidth, step = Math.max(1, wide / 60);
  let { left } = plot.cursor;
  if (left === undefined || left < 0) left = wide / 2;
  if (held === null) held = 0;
  if (event.key === "ArrowLeft") left = Math.max(0, left - step);
  else if (event.key === "ArrowRight") left = Math.min(wide - 1, left + step);
  else if (event.key === "Home") left = 0;
  else if (event.key === "End") left = wide - 1;
  else if (event.key === "ArrowDown") held = (held + 1) % drawn.length;
  else if (event.key === "ArrowUp") held = (held + drawn.length - 1) % drawn.length;
  else if (event.key === "Escape") { held = null; plot.setCursor({ left: -10, top: -10 }); $("readout").textContent = HINT; return; }
  else return;
  event.preventDefault();
  const curve = drawn[held], y = valuesAt(curve, inverse(curve, plot.posToVal(left, "x")))[1];
  plot.setCursor({ left, top: plot.valToPos(y, "y") });
}

function controls() {
  $("window").max = D.windows.length - 1; $("window").value = D.own;
  $("window").disabled = D.windows.length === 1;
  for (const input of document.querySelectorAll("input[value=recipe], #new")) input.disabled = POINT;
  fill("shares", ...D.windows.map((W, i) => el("option", { value: i, label: percent(W.share) })));
  fill("axis", ...D.axes.map((label, i) => el("option", { value: i }, label)));
  $("axis").disabled = D.axes.length === 1;
  $("window").oninput = () => { state.window = Number($("window").value); move(); };
  $("axis").onchange = () => { state.axis = Number($("axis").value); noteAxis(); build(); };
  $("new").onchange = () => { state.fresh = $("new").checked; move(); };
  $("ahead").onchange = () => { state.ahead = $("ahead").checked; build(); };
  $("reset").onclick = showAll;
  for (const input of document.querySelectorAll("input[name=scale]")) input.onchange = () => { state.log = input.value === "log"; build(); };
  for (const input of document.querySelectorAll("input[name=by]")) input.onchange = () => { state.by = input.value; build(); };
  $("controls").onsubmit = (event) => event.preventDefault();
  $("chart").onkeydown = keys;
  $("chart").onmousemove = (event) => { if (event.movementX || event.movementY) held = null; };
  new ResizeObserver(() => { if (plot && plot.width !== $("chart").clientWidth) build(); }).observe($("chart"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { key(); if (plot) plot.redraw(); });
}

const CROWDED = 6; // recipes that are shown at first

function chooser() {
  const order = D.recipes.map((_, j) => j);
  const top = (j) => Math.max(...D.ceilings.filter((row) => row.recipe === j).map((row) => num(row.q50) || 0));
  if (order.length > CROWDED) order.sort((a, b) => top(b) - top(a));
  order.slice(0, CROWDED).forEach((j) => state.shown.add(j));
  const boxes = D.recipes.map((recipe, j) => {
    const box = el("input", { type: "checkbox", checked: state.shown.has(j) });
    box.onchange = () => { if (box.checked) state.shown.add(j); else state.shown.delete(j); build(); };
    return { box, label: el("label", {}, box, swatch({ color: recipe.color, mark: recipe.mark }), recipe.label) };
  });
  const all = (on) => () => { boxes.forEach(({ box }, j) => { box.checked = on; if (on) state.shown.add(j); else state.shown.delete(j); }); build(); };
  $("recipes").append(...boxes.map(({ label }) => label));
  if (D.recipes.length > 1) $("recipes").append(el("button", { type: "button", onclick: all(true) }, "all"), el("button", { type: "button", onclick: all(false) }, "none"));
  if (D.recipes.length > CROWDED) $("recipes").querySelector("legend").textContent = `Recipes: the ${CROWDED} with the highest ceilings are chosen`;
}

function key() {
  const item = (what, text) => el("li", {}, swatch(what), text);
  const truths = [...new Set(D.runs.map((run) => num(run.truth)).filter(Number.isFinite))].map(rate);
  const of = POINT ? "" : `, ${PERCENT}`;
  const items = [item({ line: false, mark: 0 }, "fitted"), item({ line: false, mark: 0, open: true }, "later"),
    item({ band: POINT ? 0 : 0.4 }, `curve${of}`), item({ dash: "5 3", band: POINT ? 0 : 0.26 }, `forecast${of}`)];
  if (D.windows.some((W) => W.departed.some(Boolean))) items.splice(2, 0, item({ line: false, cross: true }, "after it left its curve"));
  if (D.runs.some((run) => run.x[0].some((C) => num(C) === 0))) items.push(item({ line: false, mark: 3 }, "no compute yet (on a log axis at its edge)"));
  if (truths.length) items.push(item({ color: css("--ink") }, `exact ceiling ${truths.slice(0, 4).join(", ")}`));
  fill("key", ...items);
}

function noteAxis() {
  $("axis-note").textContent = state.axis === 0 ? "" : `Fitted against ${D.axes[0]}. Here every run is drawn against ${D.axes[state.axis]} by its own record, and beyond it at its mean rate; a recipe by the mean of its runs.`;
}

// ---------------------------------------------------------------- the other sections

function head() {
  document.title = D.title;
  $("title").textContent = D.title;
  const most = Math.max(...D.runs.flatMap((run) => run.x[0].map(num)));
  $("summary").textContent = `${D.summary}, ${D.axes[0]} up to ${compute(most)}. ${D.fit}.`;
  const n = D.check.problems.length;
  const words = !D.converged ? "The sampler has not converged: do not use these numbers."
    : n ? `${plural(n, "finding")} of the check.` : "The check finds no problem.";
  fill("verdict", ...(n ? [`${words} `, el("a", { href: "#check" }, "Read what it says")] : [words]));
  if (n || !D.converged) $("verdict").className = "warn";
  for (const section of document.querySelectorAll("section[data-nav]")) {
    const title = section.querySelector("h2");
    title.id = `${section.id}-title`; section.setAttribute("aria-labelledby", title.id);
    document.querySelector("nav").append(el("a", { href: `#${section.id}` }, section.dataset.nav));
  }
  const versions = Object.entries(D.versions).map(([name, version]) => `${name} ${version}`).join(", ");
  $("made").textContent = `Made by rlx.scaling. SHA-256 of the evaluations: ${D.data_sha256.slice(0, 12)}.${versions ? ` Fitted with ${versions}.` : ""}`;
}

const colorOf = (name) => D.recipes.find((recipe) => recipe.name === name);

function range(values, pad = 0.05) {
  const known = values.map(num).filter(Number.isFinite);
  const [lo, hi] = [Math.min(...known), Math.max(...known)], more = pad * (hi - lo) + 1e-4;
  return known.length ? { lo: lo - more, hi: hi + more } : { lo: 0, hi: 1 };
}

function bar(p) {
  return el("span", {}, el("span", { className: "share", style: { width: `${num(p) * 3}rem` }, ariaHidden: "true" }), num(p).toFixed(2));
}

function ceilings() {
  const rows = D.ceilings.map((row) => ({ ...row, recipe: D.recipes[row.recipe] })).sort((a, b) => num(b.q50) - num(a.q50));
  const ends = range(rows.flatMap((row) => [row.q05, row.q95, ...row.seeds]));
  const truths = rows.flatMap((row) => row.truth).filter((v) => num(v) > ends.hi);
  const asymptote = `Limit of each run's own curve, by least squares, with its ${PERCENT} profile interval. Grey: the data do not determine it.`;
  $("ceilings-text").textContent = POINT ? asymptote : `Pass rate at ${D.horizon} times the largest compute of the study, with the doubt beyond the data: `
    + `median and ${PERCENT}; thin strokes are the medians of single seeds${rows.some((row) => row.truth.length) ? ", diamonds the exact ceilings" : ""}. `
    + "Grey: the data do not identify it, or a run left its curve."
    + (truths.length ? ` Exact ceilings beyond the axis: ${[...new Set(truths.map(rate))].join(", ")}.` : "");
  forest($("ceilings-forest"), {
    heads: POINT ? ["run", `best [${PERCENT}]`] : ["recipe", `median [${PERCENT}]`, "P(highest)"], form: (v) => digits(v, 3),
    lo: Math.max(ends.lo, 0), hi: Math.min(ends.hi, 1),
    rows: rows.map((row) => {
      const grey = row.status !== "ok";
      return { label: row.label ?? row.recipe.label, color: grey ? css("--faint") : row.recipe.color, grey, lo: row.q05, mid: row.q50, hi: row.q95,
        seeds: row.seeds.length > 1 ? row.seeds : [], truth: row.truth, more: row.p_best === undefined ? "" : bar(row.p_best),
        value: `${rate(row.q50)} ${between(row.q05, row.q95, rate)}${grey ? ` ${row.status}` : ""}` };
    }),
  });
}

function costs() {
  const { targets, rows, start } = D.costs;
  const finite = rows.flat().flatMap((row) => [num(row.q05), num(row.q50), num(row.q95)]).filter((v) => v > 0 && Number.isFinite(v));
  const seen = Math.max(...D.runs.flatMap((run) => run.x[0].map(num)));
  const [lo, hi] = [Math.min(...finite) / 1.2, Math.min(Math.max(...finite) * 1.2, 30 * seen)];
  $("target").max = targets.length - 1; $("target").value = start;
  const show = () => {
    const i = Number($("target").value);
    $("target-value").textContent = digits(targets[i], 3);
    $("target").setAttribute("aria-valuetext", `pass rate ${digits(targets[i], 3)}`);
    fill("costs-forest");
    forest($("costs-forest"), {
      heads: ["recipe", `median [${PERCENT}]`, "P(reached)"], form: (v) => compute(v, 2), log: true, lo, hi,
      caption: D.axes[0],
      rows: rows[i].map((row) => {
        const recipe = colorOf(row.name);
        return { label: recipe.label, color: recipe.color, lo: row.q05, mid: row.q50, hi: row.q95, more: bar(row.prob_reachable),
          value: computes(row.q50, row.q05, row.q95) };
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
    const A = range([...rows.flatMap((row) => [row.dA_q05, row.dA_q95]), -2 * D.margins.A, 2 * D.margins.A]);
    forest(box, { heads: ["level", `difference of ceilings [${PERCENT}]`, "verdict"], form: (v) => digits(v, 2), ...A,
      margin: [-D.margins.A, D.margins.A], rules: [0], caption: `Ceiling: pass rate above that of ${reference} at the horizon; shaded, ±${D.margins.A} does not count`,
      rows: rows.map((row) => ({ label: row.level, color: D.recipes[0].color, lo: row.dA_q05, mid: row.dA_q50, hi: row.dA_q95,
        value: `${rate(row.dA_q50)} ${between(row.dA_q05, row.dA_q95, rate)}`, more: row.verdict })) });
    const known = rows.flatMap((row) => ["compute_ratio", "pace_ratio"].flatMap((q) => [row[`${q}_q05`], row[`${q}_q95`]])).map(num).filter((v) => v > 0 && Number.isFinite(v));
    const m = 1 + D.margins.compute;
    forest(box, { heads: ["level", `compute over that of ${reference} [${PERCENT}]`, "P(cheaper)"], form: ratio, log: true,
      lo: Math.min(...known, 1 / (m * m)), hi: Math.max(...known, m * m), margin: [1 / m, m], rules: [1],
      caption: `Efficiency: compute to the same pass rate over what ${reference} needs; thin, to 80 % of its own gain; shaded, ±${Math.round(100 * D.margins.compute)} % does not count`,
      rows: rows.map((row) => ({ label: row.level, color: D.recipes[0].color, lo: row.compute_ratio_q05, mid: row.compute_ratio_q50, hi: row.compute_ratio_q95,
        thin: [row.pace_ratio_q05, row.pace_ratio_q50, row.pace_ratio_q95], more: num(row.p_cheaper).toFixed(2),
        value: `${ratio(row.compute_ratio_q50)} ${between(row.compute_ratio_q05, row.compute_ratio_q95, ratio)}` })) });
  }
}

function budgets() {
  const own = D.budgets;
  $("spend").max = own.length - 1; $("spend").value = Math.floor(own.length / 2);
  const show = () => {
    const B = own[Number($("spend").value)], words = `${compute(B.budget)}, ${digits(B.factor, 2)} times the largest run's`;
    $("spend-value").textContent = words; $("spend").setAttribute("aria-valuetext", words);
    fill("budget-table");
    if (B.refused) { $("budget-text").textContent = `No plan: ${B.refused}`; return; }
    $("budget-text").textContent = (num(B.spent) > 0
      ? `Before a recipe is chosen by its ceiling, evaluations for ${compute(B.spent)} are worth ${rate(B.value)} of pass rate. `
      : "Before a recipe is chosen by its ceiling, no further evaluations are worth their compute. ")
      + `To know all ceilings would be worth ${rate(B.perfect)} (± ${rate(B.error)}). Gain: what a run's pass rate rises by if it alone gets the budget.`;
    table("budget-table", [{ label: "run, or recipe for a new seed" }, { label: "plan" }, { label: "compute", form: compute },
      { label: "gain, mean", form: rate }, { label: "5 %", form: rate }, { label: "95 %", form: rate }, { label: "worth alone", form: rate },
      { label: "P(best)", form: (v) => num(v).toFixed(2) }, { label: "status", long: true }],
      B.rows.map((row) => [row.kind === "run" ? row.name : `new seed of ${colorOf(row.name).label}`, row.action, row.compute, row.gain_mean, row.gain_q05, row.gain_q95, row.value, row.p_best, row.status]),
      { plan: (row) => num(row[2]) > 0 });
  };
  $("spend").oninput = show;
  show();
}

function trust() {
  const T = D.trust;
  $("trust-text").textContent = `Earlier forecasts of this study, compared with what came: ${T.says}. Trusted are horizons at which at least ${percent(T.least)} of the later evaluations lay inside their ${PERCENT} intervals, over at least three runs.`;
  if (!T.evidence.length) { $("trust").querySelector("details").hidden = true; return; }
  const least = Math.min(0.5, ...T.evidence.map((row) => num(row.coverage)));
  forest($("trust-forest"), { heads: ["C / C seen", "inside their intervals", "verdict"], form: percent, lo: Math.max(0, least - 0.05), hi: 1.02, rules: [D.prob],
    caption: `Share of later evaluations inside their ${PERCENT} intervals; the line is ${PERCENT}`,
    rows: T.evidence.map((row) => ({ label: `up to ${digits(num(row.reach), 3)}`, color: row.verdict === "trusted" ? css("--focus") : css("--faint"), lo: null, mid: row.coverage, hi: null,
      value: `${percent(row.coverage)} over ${plural(row.runs, "run")}, ${plural(row.forecasts, "forecast")}`, more: row.verdict })) });
  table("trust-table", [{ label: "share seen", form: percent }, { label: "horizon", form: (v) => digits(num(v), 3) }, { label: "evaluations", form: (v) => String(v) },
    { label: "coverage", form: percent }, { label: "log score", form: (v) => num(v).toFixed(2) }, { label: "CRPS", form: (v) => num(v).toFixed(4) }, { label: "bias", form: (v) => num(v).toFixed(4) }, { label: "RMSE", form: (v) => num(v).toFixed(4) }],
    T.scores.map((row) => [row.origin, row.horizon, row.n, row.coverage, row.log_score, row.crps, row.bias, row.rmse]), { sort: false });
}

function check() {
  const { problems, sampler, runs, residuals } = D.check;
  fill("problems", ...(problems.length ? problems : ["no problems"]).map((line) => el("li", {}, line)));
  for (const note of D.notes) $("problems").append(el("li", { className: "note" }, note));
  const form = (v) => (v === null ? "–" : typeof v === "number" ? digits(v, 4) : String(v));
  if (sampler.length) table("check-tables", [{ label: "sampler" }, { label: "value", form }, { label: "bound" }, { label: "met" }], sampler.map((row) => [row.diagnostic, row.value, row.bound, row.ok ? "yes" : "no"]), { caption: "The sampler", sort: false });
  if (runs.length) table("check-tables", [{ label: "run" }, { label: "gain seen 5 %", form: rate }, { label: "50 %", form: rate }, { label: "95 %", form: rate }, { label: "P(past C_mid)", form: rate }, { label: "prior share", form: rate }, { label: "risen" }, { label: "departure z", form }],
    runs.map((row) => [row.run, row.seen_q05, row.seen_q50, row.seen_q95, row.past_C_mid, row.prior_share, row.risen ? "yes" : "no", row.departure]), { caption: "Runs: how much of each curve is seen" });
  $("left-over").hidden = !residuals.length;
  if (!residuals.length) return;
  const columns = Object.keys(residuals[0]);
  table("residuals", columns.map((name) => ({ label: name.replace("_", " "), form: typeof residuals[0][name] === "number" ? form : undefined })), residuals.map((row) => columns.map((name) => row[name])), { caption: "What the curves leave over of the evaluations that were fitted" });
}

function configs() {
  const { known, apart, shared } = D.configs, keys = Object.keys(apart), same = Object.keys(shared);
  $("configs-text").textContent = (known ? "" : "The source of these evaluations holds no configurations. ")
    + (keys.length ? "What tells the runs apart:" : "Nothing that is known tells the runs apart.");
  if (keys.length) table("configs-apart", [{ label: "run" }, ...keys.map((label) => ({ label }))], D.runs.map((run, r) => [run.name, ...keys.map((name) => apart[name][r])]));
  $("configs-same").hidden = !same.length;
  $("configs-same").querySelector("summary").textContent = `${plural(same.length, "option")} that all runs share`;
  if (same.length) table("configs-shared", [{ label: "option" }, { label: "value", long: true }], same.map((name) => [name, shared[name]]), { caption: "Options that all runs share" });
}

function runs() {
  const forms = { A: rate, B: (v) => digits(num(v)), C_mid: compute, R0: rate, "RMSE held out": (v) => (v === null ? "–" : num(v).toFixed(4)), "last compute": compute, "last value": rate, "best value": rate, "ceiling 5 %": rate, "ceiling 50 %": rate, "ceiling 95 %": rate, "gain seen": percent, "C / C_mid": (v) => digits(num(v), 3), evaluations: (v) => String(v), fitted: (v) => String(v) };
  table("runs-table", D.table.columns.map((label) => ({ label, form: forms[label], long: label === "status" })), D.table.rows, { caption: `Runs, ${D.axes[0]}` });
}

for (const [id, known] of [["efficiency", D.costs], ["budget", D.budgets], ["trust", D.trust]]) if (!known) $(id).remove();
head(); controls(); chooser(); key(); noteAxis(); build(); describe();
ceilings();
if (D.costs) { costs(); effects(); }
if (D.budgets) budgets();
if (D.trust) trust();
check(); configs(); runs();
})();
