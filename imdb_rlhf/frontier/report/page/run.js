// One run: its facts, its samples, its rewards before and after, its training.

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
  const sum = (counts) => counts.reduce((all, count) => all + count, 0);
  const shares = (counts) => counts.map((count) => count / sum(counts));
  const bars = (name, counts, fill) => ({
    kind: "bars", x0: edges.slice(0, -1), x1: edges.slice(1), y: shares(counts), fill, opacity: 0.6,
    texts: counts.map((count, i) => [name, `${count} of ${sum(counts)} samples`, `with reward ${range([edges[i], edges[i + 1]])}`]),
  });
  const [colour] = styleOf(run.method);
  const rising = mean_after >= mean_before;
  const highest = Math.max(...shares(before), ...shares(after));
  draw(box, {
    x: { title: "true reward", domain: [edges[0], edges.at(-1)] },
    y: { title: "share of samples", domain: [0, 1.22 * highest], format: (value) => `${+(100 * value).toPrecision(3)} %` },
    label: "rewards before and after", quiet: true, view: run.name,
    layers: [
      bars("before", before, colours.soft), bars("after", after, colour),
      { kind: "rule", x: mean_before, stroke: colours.soft, width: 2, dash: "4 3", text: `before: mean ${fixed(mean_before)}`, end: rising },
      { kind: "rule", x: mean_after, stroke: colour, width: 2, text: `after: mean ${fixed(mean_after)}`, end: !rising, textFill: colours.ink },
    ],
  });
}

// --- training

const PANELS = ["eval/reward", "eval/kl", "train/loss"];

/** A metric over steps. Reward and KL start at step 0 with the reference's, which every policy starts from. */
function curveOf(run, key) {
  const [steps, values] = run.curves[key];
  const start = { "eval/reward": F.reference && F.reference.reward, "eval/kl": 0 }[key];
  return known(start) && steps[0] > 0 ? [[0, ...steps], [start, ...values]] : [steps, values];
}

const PANEL_WAYS = { method: (run, chosen) => run.method === chosen.method, run: (run, chosen) => run === chosen, all: () => true };

/** The metrics that may be chosen for the last panel; a page of one run has no choice of runs. */
function buildCurves(redraw) {
  const metrics = [...new Set(RUNS.flatMap((run) => Object.keys(run.curves || {})))].sort().filter((key) => !PANELS.includes(key));
  const choice = byId("curves-metric");
  choice.append(...metrics.map((key) => make("option", "", visible(key))));
  if (metrics.includes("eval/length")) choice.value = "eval/length";
  choice.parentElement.hidden = byId("curve-name").parentElement.hidden = !metrics.length;
  for (const each of [choice, byId("curves-runs")]) if (each) each.addEventListener("change", redraw);
}

function drawCurves(run) {
  const way = byId("curves-runs") ? byId("curves-runs").value : "run";
  const wanted = RUNS.filter((each) => PANEL_WAYS[way](each, run) && each !== run);
  const keys = [...PANELS, byId("curves-metric").value];
  byId("curve-name").textContent = visible(keys[3]);
  keys.forEach((key, place) => drawCurve(byId(`curve-${place}`), key, run, wanted));
  const note = { all: "Losses of different methods are different quantities, and so are their steps.", method: wanted.length ? "The chosen run is drawn bold." : "", run: "" }[way];
  byId("curves-note").textContent = note;
}

function drawCurve(box, key, chosen, others) {
  const colours = theme();
  const drawn = [...others, chosen].filter((run) => run.curves && run.curves[key]);
  if (!drawn.length) return nothing(box, `no ${visible(key)} in these runs' metrics`);
  const layers = drawn.flatMap((run) => {
    const [x, y] = curveOf(run, key);
    const [colour] = styleOf(run.method);
    const bold = run === chosen;
    const texts = x.map((step, i) => [visible(runTitle(run)), visible(run.name), `${visible(key)} ${+y[i].toPrecision(4)} at step ${step}`]);
    const line = { kind: "line", x, y, texts, stroke: colour, width: bold ? 2.4 : 1.2, opacity: bold ? 1 : 0.4, run: run.name };
    return x.length < 25 ? [line, { kind: "marks", x, y, texts, symbol: "circle", size: bold ? 3 : 2, fill: colour, opacity: bold ? 1 : 0.4 }] : [line];
  });
  const all = (axis) => layers.flatMap((layer) => layer[axis]);
  const [low, high] = [Math.min(...all("y")), Math.max(...all("y"))];
  const pad = 0.06 * (high - low) || 0.05 * Math.abs(high) || 1;
  const last = Math.max(...all("x"), 1);
  draw(box, { x: { title: "step", domain: [-0.01 * last, 1.02 * last] }, y: { domain: [low - pad, high + pad] }, layers, label: `${key} over steps`, quiet: true, view: key });
}
