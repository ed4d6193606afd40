// Shared by all parts of the page: the data, numbers as text, and elements.

const DATA = JSON.parse(document.getElementById("data").textContent);
const F = DATA.frontier;
const byId = (id) => document.getElementById(id);

/** An element with a class and children; a child that is a string becomes text, never HTML. */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null));
  return element;
}

const CONTROL = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** Write out characters that would act instead of being shown: escapes, directions, halves of surrogate pairs. */
function visible(text) {
  return String(text).replace(CONTROL, (character) => {
    const code = character.charCodeAt(0);
    if (code < 32) return String.fromCharCode(0x2400 + code);
    return code === 127 ? "\u2421" : "\u27e8U+" + code.toString(16).toUpperCase().padStart(4, "0") + "\u27e9";
  });
}

const known = (value) => value !== null && value !== undefined;
const fixed = (value, digits = 3) => (known(value) ? value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1").replace("-", "\u2212") : "\u2013");
const range = (pair, digits = 3) => (pair ? [...new Set(pair.map((value) => fixed(value, digits)))].join(" to ") : "\u2013");
const bracket = (pair, digits = 3) => (pair ? `[${fixed(pair[0], digits)}, ${fixed(pair[1], digits)}]` : "");
const percent = `${+(100 * F.confidence).toPrecision(4)} %`;
/** A knob's sign before a value, and the words after a number of its values. */
const knobWords = (knob) => DATA.knobs[knob] || [knob, `value of ${knob}`, `values of ${knob}`];
const knobName = (knob) => (knob ? knobWords(knob)[0] : "");
const setting = (knob, value) => (known(knob) && known(value) ? `${knobName(knob)} = ${value}` : "");
const runTitle = (run) => [run.method, setting(run.knob, run.knob_value), `seed ${run.seed}`].filter(Boolean).join(", ");

/** Whether a setting's intervals say nothing of other seeds. */
const promptsOnly = (each) => each.covers === "prompts";
const coversOf = (each) => each.covers + (promptsOnly(each) ? " only" : "");
/** How many runs a setting is the mean of. */
function seedsOf(each) {
  const count = each.seeds.length;
  if (each.references > 1) return `mean of ${count} runs from ${each.references} references`;
  return count === 1 ? `seed ${each.seeds[0]}` : `mean of ${count} seeds`;
}

const METHODS = F.methods.map((method) => method.name);
const RUNS = F.runs.map((run, place) => ({ ...run, ...DATA.runs[place] }));
for (const run of RUNS) for (const curve of Object.values(run.curves || {})) curve[0] = DATA.steps[curve[0]];
const RUN = new Map(RUNS.map((run) => [run.name, run]));

const DIVERGED = new Set(F.methods.flatMap((method) => method.diverged));

const GREY = ["#888888", "circle"];
const styleOf = (method) => DATA.styles[method] || GREY;

/** A method's marker as a small picture. Its HTML is safe: colours and symbols come from the palette alone. */
function swatch(method) {
  const [colour, symbol] = styleOf(method);
  const box = make("span");
  box.innerHTML = `<svg width="13" height="13" viewBox="-1.4 -1.4 2.8 2.8" fill="${colour}" aria-hidden="true"><path d="${SHAPES[symbol] || SHAPES.circle}"/></svg>`;
  return box.firstChild;
}

/** A small picture of a line for the legend. */
function stroke(style) {
  const box = make("span");
  const ink = style.band ? "var(--optimum)" : "currentColor";
  const line = style.area ? "" : `<line x1="1" y1="7" x2="25" y2="7" stroke="${ink}" stroke-width="${style.width || 2}" stroke-dasharray="${style.dash || ""}"/>`;
  const band = style.band || style.area ? `<rect x="1" y="2" width="24" height="10" fill="${ink}" opacity=".3"/>` : "";
  const dot = style.dot ? '<circle cx="13" cy="7" r="3" fill="currentColor"/>' : "";
  box.innerHTML = `<svg width="26" height="14" viewBox="0 0 26 14" aria-hidden="true">${band}${line}${dot}</svg>`;
  return box.firstChild;
}

function definition(name, value) {
  return make("div", "", make("dt", "", name), make("dd", "", value));
}

/** The colours of the page, which change between light and dark. */
function theme() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  return { ink: get("--ink"), soft: get("--soft"), line: get("--line"), grid: get("--grid"), bg: get("--bg"), optimum: get("--optimum"), font: getComputedStyle(document.body).fontFamily };
}

/** Order rows by a key; rows without a value come last in either direction. */
function ordered(rows, key, descending) {
  const sign = descending ? -1 : 1;
  return rows.map((row, place) => [key(row), place, row]).sort(([a, i], [b, j]) => {
    if (!known(a) || !known(b)) return known(b) - known(a) || i - j;
    return (a < b ? -sign : a > b ? sign : 0) || i - j;
  }).map(([, , row]) => row);
}

/** Headings that sort: a click orders by the column, the next click reverses the order. */
function sortable(table, columns, redraw) {
  const state = { column: null, descending: false };
  const cells = columns.map(([name, , , isNumber], place) => {
    const button = make("button", "", name);
    button.type = "button";
    const head = make("th", isNumber && name !== "setting" ? "number" : "", button);
    head.scope = "col";
    button.addEventListener("click", () => {
      state.descending = state.column === place ? !state.descending : Boolean(isNumber);
      state.column = place;
      cells.forEach((each, at) => (at === place ? each.setAttribute("aria-sort", state.descending ? "descending" : "ascending") : each.removeAttribute("aria-sort")));
      redraw();
    });
    return head;
  });
  table.append(make("thead", "", make("tr", "", ...cells)));
  return state;
}

const TOUCH = matchMedia("(pointer: coarse)").matches; // a finger does not hover, and its drags scroll the page

const N = (text) => [text, "number"];
const cell = (className, ...children) => make("td", className, ...children);
const number = (text, under, className = "") => cell(`number ${className}`, text, under ? make("small", "", under) : null);
const methodCell = (name) => cell("name", swatch(name), visible(name));
