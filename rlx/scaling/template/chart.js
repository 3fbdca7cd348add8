// The chart: uPlot has the axes, the pointer and zooming; curves are painted here.

let plot = null,
  drawn = [],
  limits = null,
  held = null;

function paint(u) {
  const { ctx, bbox } = u;
  const X = x => u.valToPos(x, "x", true),
    Y = y => u.valToPos(y, "y", true);
  const dpr = devicePixelRatio;
  const polygon = (points, a, b, color, alpha) => {
    if (points.length < 2) return;
    ctx.globalAlpha = alpha;
    ctx.fillStyle = color;
    ctx.beginPath();
    points.forEach((p, i) => (i ? ctx.lineTo(X(p.x), Y(p.y[a])) : ctx.moveTo(X(p.x), Y(p.y[a]))));
    for (let i = points.length - 1; i >= 0; i--) ctx.lineTo(X(points[i].x), Y(points[i].y[b]));
    ctx.fill();
  };
  const line = (points, color, dash) => {
    ctx.globalAlpha = 1;
    ctx.strokeStyle = color;
    ctx.lineWidth = 1.8 * dpr;
    ctx.setLineDash(dash.map(d => d * dpr));
    ctx.beginPath();
    points.forEach((p, i) => (i ? ctx.lineTo(X(p.x), Y(p.y[1])) : ctx.moveTo(X(p.x), Y(p.y[1]))));
    ctx.stroke();
    ctx.setLineDash([]);
  };
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  const end = D.grid[D.grid.length - 1],
    many = drawn.length,
    layer = opacity => 1 - (1 - opacity) ** (1 / Math.min(many, 3));
  const parts = drawn.map(curve => ({
    curve,
    seen: stretch(curve, D.grid[0], Math.max(curve.last, D.grid[0] * 1.0001)),
    ahead: state.ahead ? stretch(curve, curve.last, end) : [],
  }));
  ctx.fillStyle = css("--faint");
  for (const { curve } of parts) {
    ctx.globalAlpha = 0.12 / many;
    ctx.fillRect(X(curve.toX(curve.last)), bbox.top, bbox.left + bbox.width, bbox.height);
  }
  for (const { curve, seen, ahead } of parts) {
    if (state.fresh) {
      polygon(state.by === "run" ? ahead : [...seen, ...ahead], 3, 4, curve.color, layer(0.14));
    }
    polygon(ahead, 0, 2, curve.color, layer(0.26));
    polygon(seen, 0, 2, curve.color, 0.4);
  }
  ctx.globalAlpha = 1;
  ctx.strokeStyle = css("--ink");
  ctx.lineWidth = dpr;
  for (const truth of new Set(
    drawn.flatMap(c => c.members.map(r => num(D.runs[r].truth))).filter(Number.isFinite),
  )) {
    ctx.beginPath();
    ctx.moveTo(bbox.left, Y(truth));
    ctx.lineTo(bbox.left + bbox.width, Y(truth));
    ctx.stroke();
  }
  for (const { curve } of parts) for (const r of curve.members) points(u, r, curve, X, Y, dpr);
  for (const { curve, seen, ahead } of parts) {
    line(seen, curve.color, []);
    line(ahead, curve.color, [5, 3]);
  }
  ctx.restore();
}

function points(u, r, curve, X, Y, dpr) {
  const { ctx, bbox } = u,
    run = D.runs[r],
    W = D.windows[state.window],
    recipe = D.recipes[run.recipe];
  const dense = drawn.length * run.y.length > 600;
  const last = num(W.run.last[r]) * (1 + 1e-9),
    size = (dense ? 2 : 3) * dpr;
  const color = shadeOf(recipe.color, recipe.runs.indexOf(run.name), recipe.runs.length);
  ctx.strokeStyle = color;
  ctx.lineWidth = 1.2 * dpr;
  run.y.forEach((y, i) => {
    const C = num(run.x[0][i]),
      x = num(run.x[state.axis][i]),
      seen = C <= last;
    if (state.log && !(x > 0)) {
      if (C === 0) {
        ctx.globalAlpha = 1;
        ctx.fillStyle = color;
        ctx.beginPath();
        trace(ctx, 3, bbox.left + size, Y(num(y)), size * 1.3);
        ctx.fill();
      }
      return;
    }
    ctx.globalAlpha = dense ? 0.55 : 0.9;
    ctx.beginPath();
    trace(ctx, !seen && W.departed[r] ? "x" : recipe.mark, X(x), Y(num(y)), size);
    ctx.fillStyle = seen ? color : css("--ground");
    if (seen || !W.departed[r]) ctx.fill();
    ctx.stroke();
  });
}

function place(u) {
  const { left, top } = u.cursor;
  if (left === undefined || left < 0 || !drawn.length) {
    $("tip").hidden = true;
    return;
  }
  const x = u.posToVal(left, "x");
  let best = held;
  if (best === null) {
    let least = Infinity;
    drawn.forEach((curve, n) => {
      const away = Math.abs(u.valToPos(valuesAt(curve, inverse(curve, x))[1], "y") - top);
      if (away < least) [least, best] = [away, n];
    });
  }
  const curve = drawn[best],
    C = inverse(curve, x);
  const [lo, mid, hi, newLo, newHi] = valuesAt(curve, C);
  let near = null;
  for (const r of curve.members)
    D.runs[r].x[state.axis].forEach((own, i) => {
      const away = Math.abs(u.valToPos(num(own), "x") - left);
      if (away < 12 && (near === null || away < near.away))
        near = {
          away,
          y: num(D.runs[r].y[i]),
          x: num(own),
          later: num(D.runs[r].x[0][i]) > num(D.windows[state.window].run.last[r]) * (1 + 1e-9),
        };
    });
  const where = `${D.axes[state.axis]} ${compute(x)} (${digits(C / curve.last, 2)} times what was fitted)`;
  const words = POINT
    ? [`curve ${rate(mid)}`]
    : [
        `curve ${rate(mid)} ${between(lo, hi, rate)}`,
        `new evaluation ${between(newLo, newHi, rate)}`,
      ];
  if (near)
    words.push(
      `evaluation ${rate(near.y)} at ${compute(near.x)}${near.later ? ", later than the fit" : ""}`,
    );
  $("readout").textContent =
    `${curve.name}: ${where}: ${words.join("; ")}.${POINT ? "" : ` Brackets hold ${PERCENT}.`}`;
  fill(
    "tip",
    el("strong", {}, curve.name),
    ...[`at ${compute(x)}`, ...words].map(text => el("div", {}, text)),
  );
  $("tip").hidden = false;
  const box = $("chart").getBoundingClientRect(),
    over = u.over.getBoundingClientRect();
  const wide = $("tip").offsetWidth,
    at = over.left - box.left + left;
  $("tip").style.left = `${Math.max(0, at + 14 + wide > box.width ? at - 14 - wide : at + 14)}px`;
  $("tip").style.top =
    `${Math.max(0, Math.min(over.top - box.top + top + 10, box.height - $("tip").offsetHeight))}px`;
}

function build() {
  if (plot) plot.destroy();
  drawn = curvesShown();
  held = null;
  $("tip").hidden = true;
  if (!drawn.length) {
    plot = null;
    $("readout").textContent = "No recipe is chosen.";
    return;
  }
  limits = extent(drawn);
  const width = $("chart").clientWidth,
    narrow = width < 500;
  const rule = {
    stroke: () => css("--faint"),
    grid: { stroke: () => css("--rule"), width: 1 },
    ticks: { stroke: () => css("--rule"), width: 1 },
    font: "12px system-ui, sans-serif",
    labelFont: "12px system-ui, sans-serif",
  };
  const span = (u, lo, hi) => [lo, hi];
  plot = new uPlot(
    {
      width,
      height: narrow ? 300 : Math.max(320, Math.min(520, Math.round(width * 0.48))),
      scales: {
        x: { time: false, distr: state.log ? 3 : 1, range: span },
        y: { auto: false, range: span },
      },
      series: [{}, { paths: () => null, points: { show: false } }],
      axes: [
        {
          ...rule,
          label: D.axes[state.axis],
          labelSize: 18,
          splits: (u, i, lo, hi) => ticks(lo, hi, state.log, width / 90),
          filter: (u, v) => v,
          values: (u, v) => v.map(x => compute(x)),
        },
        {
          ...rule,
          label: narrow ? "" : D.value_label,
          labelSize: narrow ? 0 : 18,
          size: 46,
          splits: (u, i, lo, hi) => ticks(lo, hi, false, 6),
          values: (u, v) => v.map(y => digits(y, 3)),
        },
      ],
      cursor: {
        drag: { x: true, y: true, uni: 30 },
        points: { show: false },
        bind: {
          dblclick: () => () => {
            showAll();
            return null;
          },
        },
      },
      legend: { show: false },
      hooks: { draw: [paint], setCursor: [place] },
    },
    [[...limits.x], [...limits.y]],
    $("chart"),
  );
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

function move() {
  // another window: same axes, other curves
  drawn = curvesShown();
  if (plot) plot.redraw(false);
  describe();
}

const HINT =
  "Move the pointer over the chart, or go there with the Tab key and use the arrow keys: values are read out here. Drag over a part to enlarge it.";

function describe() {
  const W = D.windows[state.window],
    share = `${digits(100 * W.share, 3)} %`;
  $("share").textContent = share;
  $("window").setAttribute("aria-valuetext", `${share} of compute, ${W.method}`);
  const how = {
    nuts: "by NUTS",
    laplace: "by a normal at the mode (method=laplace)",
    point: "by least squares",
  }[W.method];
  const own =
    state.window === D.own ? "This is the fit of which the rest of the page speaks. " : "";
  const fits = `${own}Fitted ${how} on the first ${share} of every run's compute. `;
  const gone = D.runs.filter((_, r) => W.departed[r]).map(run => run.name);
  const left = gone.length ? ` Left their curve, and are not counted: ${gone.join(", ")}.` : "";
  const off = `The ${plural(W.later, "later evaluation")} lie ${rate(W.rmse)} from the curves (root mean square).`;
  $("score").textContent =
    fits +
    (W.later && POINT
      ? off
      : W.later
        ? `Of ${plural(W.later, "later evaluation")} ${W.inside} (${percent(W.inside / W.later)}) lay inside ${W.later === 1 ? "its" : "their"} ${PERCENT} interval${W.later === 1 ? "" : "s"}.`
        : "No later evaluation is there to compare it with.") +
    left;
}

function keys(event) {
  if (!plot || !drawn.length) return;
  const wide = plot.over.clientWidth,
    step = Math.max(1, wide / 60);
  let { left } = plot.cursor;
  if (left === undefined || left < 0) left = wide / 2;
  if (held === null) held = 0;
  if (event.key === "ArrowLeft") left = Math.max(0, left - step);
  else if (event.key === "ArrowRight") left = Math.min(wide - 1, left + step);
  else if (event.key === "Home") left = 0;
  else if (event.key === "End") left = wide - 1;
  else if (event.key === "ArrowDown") held = (held + 1) % drawn.length;
  else if (event.key === "ArrowUp") held = (held + drawn.length - 1) % drawn.length;
  else if (event.key === "Escape") {
    held = null;
    plot.setCursor({ left: -10, top: -10 });
    $("readout").textContent = HINT;
    return;
  } else return;
  event.preventDefault();
  const curve = drawn[held],
    y = valuesAt(curve, inverse(curve, plot.posToVal(left, "x")))[1];
  plot.setCursor({ left, top: plot.valToPos(y, "y") });
}

function controls() {
  $("window").max = D.windows.length - 1;
  $("window").value = D.own;
  $("window").disabled = D.windows.length === 1;
  for (const input of document.querySelectorAll("input[value=recipe], #new"))
    input.disabled = POINT;
  fill("shares", ...D.windows.map((W, i) => el("option", { value: i, label: percent(W.share) })));
  fill("axis", ...D.axes.map((label, i) => el("option", { value: i }, label)));
  $("axis").disabled = D.axes.length === 1;
  $("window").oninput = () => {
    state.window = Number($("window").value);
    move();
  };
  $("axis").onchange = () => {
    state.axis = Number($("axis").value);
    noteAxis();
    build();
  };
  $("new").onchange = () => {
    state.fresh = $("new").checked;
    move();
  };
  $("ahead").onchange = () => {
    state.ahead = $("ahead").checked;
    build();
  };
  $("reset").onclick = showAll;
  for (const input of document.querySelectorAll("input[name=scale]"))
    input.onchange = () => {
      state.log = input.value === "log";
      build();
    };
  for (const input of document.querySelectorAll("input[name=by]"))
    input.onchange = () => {
      state.by = input.value;
      build();
    };
  $("controls").onsubmit = event => event.preventDefault();
  $("chart").onkeydown = keys;
  $("chart").onmousemove = event => {
    if (event.movementX || event.movementY) held = null;
  };
  new ResizeObserver(() => {
    if (plot && plot.width !== $("chart").clientWidth) build();
  }).observe($("chart"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    key();
    if (plot) plot.redraw();
  });
}

const CROWDED = 6; // recipes that are shown at first

function chooser() {
  const order = D.recipes.map((_, j) => j);
  const top = j =>
    Math.max(...D.ceilings.filter(row => row.recipe === j).map(row => num(row.q50) || 0));
  if (order.length > CROWDED) order.sort((a, b) => top(b) - top(a));
  order.slice(0, CROWDED).forEach(j => state.shown.add(j));
  const boxes = D.recipes.map((recipe, j) => {
    const box = el("input", { type: "checkbox", checked: state.shown.has(j) });
    box.onchange = () => {
      if (box.checked) state.shown.add(j);
      else state.shown.delete(j);
      build();
    };
    return {
      box,
      label: el("label", {}, box, swatch({ color: recipe.color, mark: recipe.mark }), recipe.label),
    };
  });
  const all = on => () => {
    boxes.forEach(({ box }, j) => {
      box.checked = on;
      if (on) state.shown.add(j);
      else state.shown.delete(j);
    });
    build();
  };
  $("recipes").append(...boxes.map(({ label }) => label));
  if (D.recipes.length > 1)
    $("recipes").append(
      el("button", { type: "button", onclick: all(true) }, "all"),
      el("button", { type: "button", onclick: all(false) }, "none"),
    );
  if (D.recipes.length > CROWDED)
    $("recipes").querySelector("legend").textContent =
      `Recipes: the ${CROWDED} with the highest ceilings are chosen`;
}

function key() {
  const item = (what, text) => el("li", {}, swatch(what), text);
  const truths = [...new Set(D.runs.map(run => num(run.truth)).filter(Number.isFinite))].map(rate);
  const of = POINT ? "" : `, ${PERCENT}`;
  const items = [
    item({ line: false, mark: 0 }, "fitted"),
    item({ line: false, mark: 0, open: true }, "later"),
    item({ band: POINT ? 0 : 0.4 }, `curve${of}`),
    item({ dash: "5 3", band: POINT ? 0 : 0.26 }, `forecast${of}`),
  ];
  if (D.windows.some(W => W.departed.some(Boolean)))
    items.splice(2, 0, item({ line: false, cross: true }, "after it left its curve"));
  if (D.runs.some(run => run.x[0].some(C => num(C) === 0)))
    items.push(item({ line: false, mark: 3 }, "no compute yet (on a log axis at its edge)"));
  if (truths.length)
    items.push(item({ color: css("--ink") }, `exact ceiling ${truths.slice(0, 4).join(", ")}`));
  fill("key", ...items);
}

function noteAxis() {
  $("axis-note").textContent =
    state.axis === 0
      ? ""
      : `Fitted against ${D.axes[0]}. Here every run is drawn against ${D.axes[state.axis]} by its own record, and beyond it at its mean rate; a recipe by the mean of its runs.`;
}
