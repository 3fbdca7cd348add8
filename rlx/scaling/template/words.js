// Numbers as text, and elements. Text from outside is only ever set as text, never as markup.
// One script with the other parts, in the order of rlx.scaling.page.SCRIPTS.

const D = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const POINT = D.method === "point"; // least squares, run by run: no bands and no probabilities
const PERCENT = `${100 * D.prob} %`;
const SVG = "http://www.w3.org/2000/svg";

const num = x =>
  x === null || x === undefined
    ? NaN
    : Number(x === "inf" ? Infinity : x === "-inf" ? -Infinity : x);
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(given)) {
    if (key === "style") Object.assign(made.style, value);
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter(child => child !== null));
  return made;
}

const fill = (id, ...children) => $(id).replaceChildren(...children);

function rate(x) {
  const v = num(x);
  return Number.isFinite(v) ? signed(v.toFixed(3)) : "–";
}

const signed = text => text.replace("-", "−");

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
  const raised = [...String(power)].map(d => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]).join("");
  return `${lead === "1" ? "" : `${lead} × `}10${raised}`;
}

// Median and interval with one power of ten.
function computes(mid, lo, hi) {
  const v = num(mid),
    power = Math.floor(Math.log10(v) + 1e-9);
  if (!(v >= 1e6) || !Number.isFinite(v)) return `${compute(mid)} ${between(lo, hi, compute)}`;
  const form = x => (Number.isFinite(num(x)) ? digits(num(x) / 10 ** power) : "never");
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
  const rgb = [1, 3, 5].map(i => parseInt(color.slice(i, i + 2), 16));
  return `rgb(${rgb.map(c => Math.round(c + (255 - c) * part)).join(", ")})`;
}

const shadeOf = (color, i, n) => mix(color, (0.5 * i) / Math.max(n - 1, 1));
