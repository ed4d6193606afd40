// Shared by all parts of the page: the data, numbers as text, elements, and the layout of plots.

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

/** A text for plotly, which interprets some HTML in labels. */
const plain = (text) => visible(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const known = (value) => value !== null && value !== undefined;
const fixed = (value, digits = 3) => (known(value) ? value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1").replace("-", "\u2212") : "\u2013");
const range = (pair, digits = 3) => (pair ? [...new Set(pair.map((value) => fixed(value, digits)))].join(" to ") : "\u2013");
const bracket = (pair, digits = 3) => (pair ? `[${fixed(pair[0], digits)}, ${fixed(pair[1], digits)}]` : "");
const percent = `${+(100 * F.confidence).toPrecision(4)} %`;
const KNOBS = { beta: "\u03b2", alpha: "\u03b1", target_kl: "target KL", n: "N" };
const knobName = (knob) => KNOBS[knob] || knob || "";
const setting = (knob, value) => (known(knob) && known(value) ? `${knobName(knob)} = ${value}` : "");
const runTitle = (run) => [run.method, setting(run.knob, run.knob_value), `seed ${run.seed}`].filter(Boolean).join(", ");

const RUNS = F.runs.map((run, place) => ({ ...run, ...DATA.runs[place] }));
const RUN = new Map(RUNS.map((run) => [run.name, run]));

const DIVERGED = new Set(F.methods.flatMap((method) => method.diverged));

const GREY = ["#888888", "circle"];
const styleOf = (method) => DATA.styles[method] || GREY;

const SHAPES = {
  circle: '<circle cx="7" cy="7" r="5"/>',
  square: '<rect x="2.5" y="2.5" width="9" height="9"/>',
  diamond: '<path d="M7 1 13 7 7 13 1 7z"/>',
  "triangle-up": '<path d="M7 1.5 13 12H1z"/>',
  "triangle-down": '<path d="M7 12.5 13 2H1z"/>',
  cross: '<path d="M5 1h4v4h4v4H9v4H5V9H1V5h4z"/>',
  x: '<path d="M1 3.5 3.5 1 7 4.5 10.5 1 13 3.5 9.5 7 13 10.5 10.5 13 7 9.5 3.5 13 1 10.5 4.5 7z"/>',
};

/** A method's marker as a small picture. Its HTML is safe: colours and symbols come from the palette alone. */
function swatch(method) {
  const [colour, symbol] = styleOf(method);
  const box = make("span");
  box.innerHTML = `<svg width="13" height="13" viewBox="0 0 14 14" fill="${colour}" aria-hidden="true">${SHAPES[symbol] || SHAPES.circle}</svg>`;
  return box.firstChild;
}

/** A small picture of a line for the legend. */
function stroke(style) {
  const box = make("span");
  const line = `<line x1="1" y1="7" x2="25" y2="7" stroke="currentColor" stroke-width="${style.width || 2}" stroke-dasharray="${style.dash || ""}"/>`;
  const band = style.band ? '<rect x="1" y="2" width="24" height="10" fill="currentColor" opacity=".25"/>' : "";
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
  return { ink: get("--ink"), soft: get("--soft"), line: get("--line"), grid: get("--grid"), bg: get("--bg"), band: get("--band"), font: getComputedStyle(document.body).fontFamily };
}

const TOUCH = matchMedia("(pointer: coarse)").matches; // there a drag has to scroll the page
// Without these settings plotly offers to send the plot to its makers' server.
const CONFIG = { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
const QUIET = { ...CONFIG, displayModeBar: false };

/** The layout that all plots share; `x` and `y` add to the axes. */
function layout(x, y, more) {
  const colours = theme();
  const axis = { gridcolor: colours.grid, linecolor: colours.line, zeroline: false, ticks: "outside", tickcolor: colours.line, ticklen: 4, automargin: true };
  for (const each of [x, y]) if (each.title) each.title = { font: { size: 12.5, color: colours.soft }, standoff: 10, ...each.title };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", dragmode: TOUCH ? false : "zoom",
    font: { family: colours.font, size: 12.5, color: colours.ink }, margin: { l: 52, r: 14, t: 10, b: 44 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.soft, activecolor: colours.ink },
    hoverlabel: { align: "left", bgcolor: colours.bg, bordercolor: colours.soft, font: { color: colours.ink, family: colours.font, size: 12.5 } },
    xaxis: { ...axis, ...x }, yaxis: { ...axis, ...y }, ...more,
  };
}

/** Say why there is nothing to draw, in the place of a plot. */
function nothing(box, why) {
  if (box.data) Plotly.purge(box);
  box.replaceChildren(make("div", "empty", why));
  box.style.height = "auto";
}

function draw(box, traces, colours, config) {
  if (!box.data) {
    box.replaceChildren();
    box.style.height = "";
  }
  Plotly.react(box, traces, colours, config);
}
