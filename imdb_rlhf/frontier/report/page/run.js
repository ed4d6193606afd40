// One run: its facts, its samples, its rewards before and after, its training.

function showFacts(run) {
  const facts = byId("run-facts");
  const colour = swatch(run.method);
  facts.replaceChildren(...[
    ["run", make("span", "name", colour, visible(runTitle(run)))],
    ["reward", fixed(run.reward)],
    ["KL, nats", fixed(run.kl, 2)],
    ["win rate", fixed(run.win_rate)],
    ["at step", known(run.step) ? String(run.step) : "\u2013"],
    ["folder", make("span", "folder", visible(run.name))],
  ].map(([name, value]) => definition(name, value)));
  const missing = run.missing.map((line) => make("p", "note", visible(line)));
  byId("run-missing").replaceChildren(...missing);
}

// --- samples: rows of [prompt, before, after (places in DATA.texts), reward before, reward after, log-ratio, KL]

const PAGE_ROWS = 8;
const textOf = (place) => DATA.texts[place];
const SAMPLE_COLUMNS = [
  ["prompt", (row) => textOf(row[0])],
  ["before: reference", (row) => textOf(row[1])],
  ["after: policy", (row) => textOf(row[2])],
  ["reward before", (row) => row[3], null, true],
  ["reward after", (row) => row[4], null, true],
  ["log-ratio, nats", (row) => row[5], null, true],
  ["KL, nats", (row) => row[6], null, true],
];
const browser = { rows: null, page: 0, order: null };

function sampleRow(row) {
  const cells = SAMPLE_COLUMNS.map(([name, value, , isNumber], place) => {
    if (!isNumber) {
      const text = make("span", "text", visible(value(row)));
      text.dir = "auto";
      return named(cell("", text), name);
    }
    const tone = place === 4 ? (row[4] > row[3] ? " better" : row[4] < row[3] ? " worse" : "") : "";
    return named(cell(`number${tone}`, fixed(value(row), place < 5 ? 3 : 2)), name);
  });
  return make("tr", "", ...cells);
}

function named(element, name) {
  element.dataset.name = name;
  return element;
}

/** The chosen run's rows that contain the filter's text, in the chosen order. */
function wantedSamples() {
  const wanted = byId("samples-filter").value.toLowerCase();
  const rows = (browser.rows || []).filter((row) => !wanted || row.slice(0, 3).some((place) => textOf(place).toLowerCase().includes(wanted)));
  return browser.order.column === null ? rows : ordered(rows, SAMPLE_COLUMNS[browser.order.column][1], browser.order.descending);
}

function fillSamples() {
  const rows = wantedSamples();
  const pages = Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
  browser.page = Math.min(browser.page, pages - 1);
  const shown = rows.slice(browser.page * PAGE_ROWS, (browser.page + 1) * PAGE_ROWS).map(sampleRow);
  const none = make("td", "hint", browser.rows ? "no sample has this text" : "this run has no samples to show");
  none.colSpan = SAMPLE_COLUMNS.length;
  byId("samples").tBodies[0].replaceChildren(...(shown.length ? shown : [make("tr", "", none)]));
  byId("samples-page").textContent = `page ${browser.page + 1} of ${pages}`;
  byId("samples-previous").disabled = browser.page === 0;
  byId("samples-next").disabled = browser.page === pages - 1;
  const all = browser.rows ? browser.rows.length : 0;
  byId("samples-count").textContent = all ? `${rows.length === all ? "" : `${rows.length} of `}${all} test prompts, one sample each` : "";
}

function buildSamples() {
  browser.order = sortable(byId("samples"), SAMPLE_COLUMNS, () => turn(-browser.page));
  byId("samples").append(make("tbody"));
  byId("samples-filter").addEventListener("input", () => turn(-browser.page));
  byId("samples-previous").addEventListener("click", () => turn(-1));
  byId("samples-next").addEventListener("click", () => turn(1));
}

function turn(pages) {
  browser.page += pages;
  fillSamples();
}

// --- rewards

function drawHistogram(run) {
  const box = byId("histogram");
  if (!run.histogram) return nothing(box, "this run has no rewards to show");
  const { edges, before, after, mean_before, mean_after } = run.histogram;
  const colours = theme();
  const middles = edges.slice(1).map((edge, i) => (edge + edges[i]) / 2);
  const all = (counts) => counts.reduce((sum, count) => sum + count, 0);
  const bars = (name, counts, colour) => ({
    type: "bar", name, x: middles, y: counts.map((count) => count / all(counts)), width: edges.slice(1).map((edge, i) => 0.96 * (edge - edges[i])),
    marker: { color: colour, opacity: 0.6 }, hoverinfo: "text",
    text: counts.map((count, i) => `${name}: ${count} of ${all(counts)} samples<br>with reward ${range([edges[i], edges[i + 1]])}`), textposition: "none",
  });
  const [colour] = styleOf(run.method);
  const mean = (at, tint, dash) => ({ type: "line", yref: "paper", y0: 0, y1: 1, x0: at, x1: at, line: { color: tint, width: 2, dash } });
  const note = (at, text, left) => ({ x: at, yref: "paper", y: 1, yanchor: "bottom", xanchor: left ? "right" : "left", text, showarrow: false, font: { size: 11.5, color: colours.soft } });
  const rising = mean_after >= mean_before;
  draw(box, [bars("before", before, colours.soft), bars("after", after, colour)], layout(
    { title: { text: "true reward" } }, { title: { text: "share of samples" }, tickformat: ".0%" },
    {
      barmode: "overlay", margin: { l: 58, r: 14, t: 26, b: 44 },
      shapes: [mean(mean_before, colours.soft, "dash"), mean(mean_after, colour, "solid")],
      annotations: [note(mean_before, `before: mean ${fixed(mean_before)}`, rising), note(mean_after, `after: mean ${fixed(mean_after)}`, !rising)],
    },
  ), QUIET);
}

// --- training

const PANELS = ["eval/reward", "eval/kl", "train/loss"];

/** A metric over steps. Reward and KL start at step 0 with the reference's, which every policy starts from. */
function curveOf(run, key) {
  const [steps, values] = run.curves[key];
  const start = { "eval/reward": F.reference.reward, "eval/kl": 0 }[key];
  return known(start) && steps[0] > 0 ? [[0, ...steps], [start, ...values]] : [steps, values];
}

const PANEL_WAYS = { method: (run, chosen) => run.method === chosen.method, run: (run, chosen) => run === chosen, all: () => true };

function buildCurves(redraw) {
  const metrics = [...new Set(RUNS.flatMap((run) => Object.keys(run.curves || {})))].sort().filter((key) => !PANELS.includes(key));
  const choice = byId("curves-metric");
  choice.append(...metrics.map((key) => make("option", "", visible(key))));
  if (metrics.includes("eval/length")) choice.value = "eval/length";
  choice.parentElement.hidden = byId("curve-name").parentElement.hidden = !metrics.length;
  for (const each of [choice, byId("curves-runs")]) each.addEventListener("change", redraw);
}

function drawCurves(run) {
  const way = byId("curves-runs").value;
  const wanted = RUNS.filter((each) => PANEL_WAYS[way](each, run) && each !== run);
  const keys = [...PANELS, byId("curves-metric").value];
  byId("curve-name").textContent = visible(keys[3]);
  keys.forEach((key, place) => drawCurve(byId(`curve-${place}`), key, run, wanted));
  byId("curves-note").textContent = way === "all" ? "Losses of different methods are different quantities, and so are their steps." : "The chosen run is drawn bold.";
}

function drawCurve(box, key, chosen, others) {
  const colours = theme();
  const traces = [...others, chosen].filter((run) => run.curves && run.curves[key]).map((run) => {
    const [steps, values] = curveOf(run, key);
    const [colour] = styleOf(run.method);
    const bold = run === chosen;
    return {
      type: "scatter", mode: steps.length < 25 ? "lines+markers" : "lines", x: steps, y: values, hoverinfo: "text", opacity: bold ? 1 : 0.4,
      text: steps.map((step, i) => `<b>${plain(runTitle(run))}</b><br>${plain(run.name)}<br>${plain(key)} ${+values[i].toPrecision(4)} at step ${step}`),
      line: { color: colour, width: bold ? 2.6 : 1.3 }, marker: { size: bold ? 6 : 4 },
    };
  });
  if (!traces.length) return nothing(box, `no ${visible(key)} in these runs' metrics`);
  draw(box, traces, layout({ title: { text: "step" }, rangemode: "tozero" }, {}, { margin: { l: 46, r: 10, t: 8, b: 40 } }), QUIET);
}
