// Marks, tables that their headings sort, and forests of intervals.

function trace(path, mark, x, y, r) {
  if (mark === "x") {
    path.moveTo(x - r, y - r);
    path.lineTo(x + r, y + r);
    path.moveTo(x - r, y + r);
    path.lineTo(x + r, y - r);
  } else if (mark % 4 === 0) {
    path.moveTo(x + r, y);
    path.arc(x, y, r, 0, 2 * Math.PI);
  } else {
    const corners = [
      null,
      [
        [-1, -1],
        [1, -1],
        [1, 1],
        [-1, 1],
      ],
      [
        [0, -1.2],
        [1.1, 0.9],
        [-1.1, 0.9],
      ],
      [
        [0, -1.3],
        [1.3, 0],
        [0, 1.3],
        [-1.3, 0],
      ],
    ][mark % 4];
    corners.forEach(([a, b], i) =>
      i ? path.lineTo(x + a * r, y + b * r) : path.moveTo(x + a * r, y + b * r),
    );
    path.closePath();
  }
}

const SHAPES = [
  "M17 7a4 4 0 1 1-8 0a4 4 0 1 1 8 0",
  "M9 3h8v8h-8z",
  "M13 2l4.6 8.6h-9.2z",
  "M13 1.6l5.4 5.4l-5.4 5.4l-5.4-5.4z",
];

function swatch({
  color = css("--faint"),
  line = true,
  dash = "",
  mark = null,
  open = false,
  cross = false,
  band = 0,
}) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "mark");
  svg.setAttribute("viewBox", "0 0 26 14");
  svg.setAttribute("aria-hidden", "true");
  const add = (d, given) => {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", d);
    for (const [key, value] of Object.entries(given)) path.setAttribute(key, value);
    svg.append(path);
  };
  if (band) add("M0 1h26v12h-26z", { fill: color, opacity: band });
  if (line)
    add("M0 7h26", { stroke: color, "stroke-width": 2, "stroke-dasharray": dash, fill: "none" });
  if (mark !== null)
    add(SHAPES[mark % 4], { fill: open ? "none" : color, stroke: color, "stroke-width": 1.4 });
  if (cross) add("M9 3l8 8M9 11l8-8", { stroke: color, "stroke-width": 1.4 });
  return svg;
}

// A table that its headings sort. columns: {label, form?, long?}; form makes a cell of a number.
function table(id, columns, rows, { caption = "", plan = () => false, sort = true } = {}) {
  const body = el("tbody");
  const isNumber = columns.map(c => Boolean(c.form));
  const draw = ordered =>
    body.replaceChildren(
      ...ordered.map(row =>
        el(
          "tr",
          { className: plan(row) ? "plan" : "" },
          ...columns.map((c, i) =>
            el(
              "td",
              { className: isNumber[i] ? "number" : c.long ? "long" : "" },
              c.form ? c.form(row[i]) : row[i] === null ? "–" : String(row[i]),
            ),
          ),
        ),
      ),
    );
  let last = null;
  const heads = columns.map((c, i) => {
    const head = el("th", { scope: "col", className: isNumber[i] ? "number" : "" });
    if (!sort) {
      head.append(c.label);
      return head;
    }
    head.append(
      el(
        "button",
        {
          type: "button",
          onclick: () => {
            const down = last === i;
            last = down ? null : i;
            const key = row => (isNumber[i] ? num(row[i]) : String(row[i]));
            const order = [...rows].sort((a, b) =>
              isNumber[i]
                ? key(a) - key(b) || 0
                : key(a).localeCompare(key(b), "en", { numeric: true }),
            );
            heads.forEach(h => h.removeAttribute("aria-sort"));
            head.setAttribute("aria-sort", down ? "descending" : "ascending");
            draw(down ? order.reverse() : order);
          },
        },
        c.label,
      ),
    );
    return head;
  });
  draw(rows);
  const made = el(
    "table",
    {},
    caption ? el("caption", {}, caption) : null,
    el("thead", {}, el("tr", {}, ...heads)),
    body,
  );
  const label = caption || $(id).closest("section").querySelector("h2").textContent;
  $(id).append(
    el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": label }, made),
  );
}

// Intervals on one axis. rows: {label, color, grey, lo, mid, hi, thin, seeds, truth, value, more}.
function forest(
  parent,
  { heads, lo, hi, log = false, form, margin = null, rules = [], rows, caption = "" },
) {
  const f = log ? Math.log : v => v;
  const at = v => (f(v) - f(lo)) / (f(hi) - f(lo));
  const left = v => `${100 * Math.min(1, Math.max(0, at(v)))}%`;
  const span = (kind, a, b, color) =>
    el("i", {
      className: kind,
      style: { left: left(a), width: `calc(${left(b)} - ${left(a)})`, background: color },
    });
  const steps = ticks(lo, hi, log, 6);
  const track = row => {
    const box = el("div", { className: "track" });
    if (margin) box.append(span("margin", margin[0], margin[1], ""));
    for (const v of [...steps, ...rules])
      box.append(el("i", { className: "rule", style: { left: left(v) } }));
    for (const v of rules)
      box.append(
        el("i", { className: "rule", style: { left: left(v), background: css("--faint") } }),
      );
    const [a, m, b] = [num(row.lo), num(row.mid), num(row.hi)];
    if (row.thin) box.append(span("thin", num(row.thin[0]), num(row.thin[2]), row.color));
    if (!Number.isNaN(a)) {
      box.append(span("bar", a, b, row.color));
      if (at(a) < 0)
        box.append(el("i", { className: "beyond", style: { left: 0, color: row.color } }, "‹"));
      if (at(b) > 1)
        box.append(el("i", { className: "beyond", style: { right: 0, color: row.color } }, "›"));
    }
    for (const v of row.seeds ?? [])
      box.append(
        el("i", { className: "seed", style: { left: left(num(v)), background: row.color } }),
      );
    for (const v of row.truth ?? [])
      if (at(num(v)) >= 0 && at(num(v)) <= 1)
        box.append(el("i", { className: "truth", style: { left: left(num(v)) } }));
    if (at(m) >= 0 && at(m) <= 1)
      box.append(el("i", { className: "dot", style: { left: left(m), background: row.color } }));
    return box;
  };
  const axis = el(
    "div",
    { className: "axis" },
    ...steps.map(v => el("span", { style: { left: left(v) } }, form(v))),
  );
  const body = rows.map(row =>
    el(
      "tr",
      { className: row.grey ? "grey" : "" },
      el("th", { scope: "row" }, row.label),
      el("td", { className: "plot" }, track(row)),
      el("td", { className: "value" }, row.value),
      el("td", { className: "more" }, row.more ?? ""),
    ),
  );
  parent.append(
    el(
      "table",
      { className: "forest" },
      caption ? el("caption", {}, caption) : null,
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { scope: "col", className: "name" }, heads[0]),
          el("th", { scope: "col", className: "plot", "aria-label": "interval" }, axis),
          el("th", { scope: "col", className: "value" }, heads[1]),
          el("th", { scope: "col", className: "more" }, heads[2] ?? ""),
        ),
      ),
      el("tbody", {}, ...body),
    ),
  );
}

// Round numbers between lo and hi, about n of them.
function ticks(lo, hi, log, n) {
  const made = [];
  if (!log) {
    const rough = (hi - lo) / n,
      power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find(s => s * power >= rough);
    for (let i = Math.ceil(lo / step - 1e-9); i * step <= hi * (1 + 1e-12); i++)
      made.push(Number((i * step).toPrecision(12)));
    return made;
  }
  const decades = Math.log10(hi / lo);
  const leads = [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]].find(x => x.length * decades <= n) ?? [1];
  const every = Math.max(1, Math.ceil(decades / n));
  for (let p = Math.floor(Math.log10(lo)); p <= Math.log10(hi); p++)
    for (const lead of leads) {
      const v = lead * 10 ** p;
      if (v >= lo * (1 - 1e-9) && v <= hi * (1 + 1e-9) && (lead > 1 || p % every === 0))
        made.push(v);
    }
  return made;
}
