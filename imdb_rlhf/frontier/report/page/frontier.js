// The interactive frontier: its traces, legend, KL axis, hover texts and clicks.

const hidden = new Set(); // keys of the legend's entries that are switched off
let scale = "linear";

const BEST_OF = { ground_truth: "best-of-N by the true reward", learned: "best-of-N by the learned reward" };
const DOTS = { dot: "2 3", dash: "6 4", dashdot: "7 3 2 3" };
const REFERENCES = [
  F.optimum && { key: "optimum", name: "optimum, lower to upper bound", band: true, width: 1.5 },
  F.optimum && F.optimum.learned && { key: "learned", name: "optimum of the learned reward, its true reward", dash: DOTS.dashdot, width: 1.8 },
  ...Object.keys(F.best_of_n || {}).map((by) => ({ key: `best_of_n ${by}`, name: BEST_OF[by] || `best-of-N by ${by}`, dash: by === "learned" ? DOTS.dot : "", dot: true, width: 1.4 })),
].filter(Boolean);
const METHODS = F.methods.map((method) => method.name);

/** The start of the logarithmic KL axis. */
const LEAST = Math.max(0.005, 0.7 * Math.min(...F.points.map((point) => point.kl).filter((kl) => kl > 0.005), 0.25));
const reach = (points) => Math.max(F.score_kl, ...points.map((point) => (point.kl_ci ? point.kl_ci[1] : point.kl)));
/** The end of the KL axis: the last point, unless that is a diverged run's at over twice the KL of all others. */
const FURTHEST = 1.06 * Math.min(reach(F.points), 2 * reach(F.points.filter((point) => !DIVERGED.has(point.run))));
const BEYOND = F.points.filter((point) => point.kl > FURTHEST).length;

const onAxis = (kl) => scale === "linear" || kl > 0;
const rgba = (colours, share) => `rgba(${colours.band}, ${share})`;

/** A line over KL; `texts` are shown when its points are hovered. */
function line(key, kl, values, style, texts) {
  const shown = kl.map((_, i) => i).filter((i) => onAxis(kl[i]) && known(values[i]));
  const hover = texts ? { text: shown.map((i) => texts[i]), hoverinfo: "text" } : { hoverinfo: "skip" };
  return { meta: key, type: "scatter", mode: "lines", x: shown.map((i) => kl[i]), y: shown.map((i) => values[i]), ...hover, ...style };
}

/** The part of a curve before or after a KL, interpolated to end exactly there. */
function part(kl, values, limit, before) {
  const at = kl.findIndex((each) => each > limit);
  if (at < 1) return before === at < 0 ? [kl, values] : [[], []];
  const share = (limit - kl[at - 1]) / (kl[at] - kl[at - 1]);
  const value = values[at - 1] + share * (values[at] - values[at - 1]);
  return before ? [[...kl.slice(0, at), limit], [...values.slice(0, at), value]] : [[limit, ...kl.slice(at)], [value, ...values.slice(at)]];
}

function optimumTraces(colours) {
  const o = F.optimum;
  if (!o) return [];
  const bare = { line: { width: 0 } };
  const traces = [
    line("optimum", o.kl, o.lower_ci[0], bare),
    line("optimum", o.kl, o.upper_ci[1], { ...bare, fill: "tonexty", fillcolor: rgba(colours, 0.12) }),
    line("optimum", o.kl, o.lower, bare),
    line("optimum", o.kl, o.upper, { ...bare, fill: "tonexty", fillcolor: rgba(colours, 0.2) }),
  ];
  for (const [name, values, ends] of [["lower bound: a policy that reaches it exists", o.lower, o.lower_ci], ["upper bound: no policy is above it", o.upper, o.upper_ci]]) {
    for (const before of [true, false]) {
      const [kl, rewards] = part(o.kl, values, o.trusted_kl, before);
      const texts = kl.map((each, i) => {
        const at = o.kl.indexOf(each);
        return `<b>optimum</b>, ${name}<br>reward ${fixed(rewards[i])} ${at < 0 ? "" : bracket([ends[0][at], ends[1][at]])} for ${fixed(each, 2)} nats` + (before ? "" : "<br>too few samples for a tight bound");
      });
      traces.push(line("optimum", kl, rewards, { line: { color: colours.soft, width: 1.5, dash: before ? "solid" : "dash" } }, texts));
    }
  }
  return traces;
}

function learnedTraces(colours) {
  const l = F.optimum && F.optimum.learned;
  if (!l) return [];
  const bare = { line: { width: 0 } };
  const texts = l.kl.map((kl, i) => `<b>optimum of the learned reward</b><br>true reward ${fixed(l.reward[i])} ${bracket([l.reward_ci[0][i], l.reward_ci[1][i]])}<br>for ${fixed(kl, 2)} nats`);
  return [
    line("learned", l.kl, l.reward_ci[0], bare),
    line("learned", l.kl, l.reward_ci[1], { ...bare, fill: "tonexty", fillcolor: rgba(colours, 0.1) }),
    line("learned", l.kl, l.reward, { line: { color: colours.soft, width: 1.8, dash: "dashdot" } }, texts),
  ];
}

function bestOfNTraces(colours) {
  return Object.entries(F.best_of_n || {}).flatMap(([by, curve]) => {
    const key = `best_of_n ${by}`;
    const texts = curve.n.map((n, i) => `<b>${plain(BEST_OF[by] || by)}</b>, N = ${n}<br>reward ${fixed(curve.reward[i])} ${bracket([curve.reward_ci[0][i], curve.reward_ci[1][i]])}<br>KL at most ${fixed(curve.kl[i], 2)} nats`);
    const powers = curve.n.map((n) => (Number.isInteger(Math.log2(n)) ? 5 : 0));
    return [
      line(key, curve.kl, curve.reward_ci[0], { line: { width: 0 } }),
      line(key, curve.kl, curve.reward_ci[1], { line: { width: 0 }, fill: "tonexty", fillcolor: rgba(colours, 0.1) }),
      line(key, curve.kl, curve.reward, {
        mode: "lines+markers", line: { color: colours.ink, width: 1.4, dash: by === "learned" ? "dot" : "solid" },
        marker: { color: colours.ink, size: powers.filter((_, i) => onAxis(curve.kl[i])) },
      }, texts),
    ];
  });
}

const efficiencyText = (pair) => (pair ? `<br>efficiency ${range(pair, 2)}` : "");

function pointText(point) {
  const run = RUN.get(point.run);
  return [
    `<b>${plain(run ? runTitle(run) : point.run)}</b>`,
    `${plain(point.run)}, step ${point.step}`,
    `reward ${fixed(point.reward)} ${bracket(point.reward_ci)}`,
    `KL ${fixed(point.kl, 2)} ${bracket(point.kl_ci, 2)} nats`,
  ].join("<br>") + efficiencyText(point.efficiency) + (point.above_optimum ? "<br><b>above the optimum's upper bound</b>" : "");
}

function settingText(method, each) {
  const title = [method.name, setting(method.knob, each.knob_value)].filter(Boolean).join(", ");
  const count = each.seeds.length;
  return [
    `<b>${plain(title)}</b>, ${count === 1 ? `seed ${each.seeds[0]}` : `mean of ${count} seeds`}`,
    ...each.runs.slice(0, 5).map((name) => plain(name) + stepOf(name)),
    ...(each.runs.length > 5 ? [`and ${each.runs.length - 5} more`] : []),
    `reward ${fixed(each.reward)} ${bracket(each.reward_ci)}`,
    `KL ${fixed(each.kl, 2)} ${bracket(each.kl_ci, 2)} nats`,
  ].join("<br>") + efficiencyText(each.efficiency);
}

function stepOf(name) {
  const point = F.points.find((each) => each.run === name && each.last);
  return point ? `, step ${point.step}` : "";
}

function methodTraces(method, colours) {
  const [colour, symbol] = styleOf(method.name);
  const points = F.points.filter((point) => point.method === method.name && onAxis(point.kl));
  const settings = method.settings.filter((each) => onAxis(each.kl));
  const error = (ends, middle) => ({ type: "data", symmetric: false, array: ends.map((pair, i) => (pair ? pair[1] - middle[i] : 0)), arrayminus: ends.map((pair, i) => (pair ? middle[i] - pair[0] : 0)), color: colour, thickness: 1.2, width: 3 });
  const kl = settings.map((each) => each.kl);
  const reward = settings.map((each) => each.reward);
  return [
    {
      meta: method.name, type: "scatter", mode: "markers", x: points.map((point) => point.kl), y: points.map((point) => point.reward),
      text: points.map(pointText), hoverinfo: "text", customdata: points.map((point) => point.run),
      marker: { color: colour, symbol, size: 6, opacity: 0.5 },
    },
    {
      meta: method.name, type: "scatter", mode: "lines+markers", x: kl, y: reward, text: settings.map((each) => settingText(method, each)),
      hoverinfo: "text", customdata: settings.map((each) => each.runs[0]), line: { color: colour, width: 1.6 },
      marker: { color: colour, symbol, size: 11, line: { color: colours.bg, width: 1.2 } },
      error_y: error(settings.map((each) => each.reward_ci), reward), error_x: error(settings.map((each) => each.kl_ci), kl),
    },
  ];
}

/** The chosen run's checkpoints, ringed and joined in the order of training; they take no hover and no click. */
function chosenTrace(run, colours) {
  const points = F.points.filter((point) => run && point.run === run.name && onAxis(point.kl)).sort((a, b) => a.step - b.step);
  const shown = run && !hidden.has(run.method);
  return {
    meta: "chosen", type: "scatter", mode: "lines+markers", x: shown ? points.map((point) => point.kl) : [], y: shown ? points.map((point) => point.reward) : [],
    hoverinfo: "skip", line: { color: colours.ink, width: 1, dash: "dot" }, marker: { symbol: "circle-open", size: points.map((point) => (point.last ? 19 : 11)), color: colours.ink, line: { width: 1.6 } },
  };
}

/** The range of the reward axis: every point with its interval, and the optimum up to the end of the KL axis. */
function rewardRange() {
  const values = [F.reference.reward];
  for (const point of F.points) values.push(...(point.reward_ci || [point.reward]));
  if (F.base) values.push(F.base.reward);
  if (F.optimum) {
    // Where the reward has no upper limit, the upper bound beyond the trusted KL would squash everything else.
    const end = F.optimum.cap === null ? Math.min(FURTHEST, F.optimum.trusted_kl) : FURTHEST;
    values.push(...F.optimum.upper.filter((value, i) => known(value) && F.optimum.kl[i] <= end));
  }
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = 0.05 * (high - low || 1);
  return [low - pad, high + pad];
}

function referenceShapes(colours) {
  const flat = (reward, dash) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: reward, y1: reward, line: { color: colours.soft, width: 1, dash }, layer: "below" });
  const shapes = [flat(F.reference.reward, "dot")];
  const note = (text, more) => ({ text, showarrow: false, font: { size: 11.5, color: colours.soft }, ...more });
  const right = { xref: "paper", x: 1, xanchor: "right", yanchor: "bottom" };
  const notes = [note("reference", { ...right, y: F.reference.reward })];
  if (F.optimum && F.optimum.trusted_kl < FURTHEST && !hidden.has("optimum")) {
    const at = F.optimum.trusted_kl;
    shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: at, x1: at, line: { color: colours.line, width: 1 }, layer: "below" });
    notes.push(note("\u2192 too few samples: bounds loosen", { x: scale === "log" ? Math.log10(at) : at, yref: "paper", y: 1, xanchor: "left", yanchor: "bottom", xshift: -4 }));
  }
  return { shapes, annotations: notes };
}

function baseTrace(colours) {
  const base = F.base;
  if (!base || !onAxis(base.kl) || base.kl > 2 * FURTHEST) return [];
  return [{
    meta: "base", type: "scatter", mode: "markers+text", x: [base.kl], y: [base.reward], hoverinfo: "text", texttemplate: "before SFT", textposition: "top center", textfont: { size: 11.5, color: colours.soft },
    text: [`<b>before SFT</b><br>reward ${fixed(base.reward)} ${bracket(base.reward_ci)}<br>KL ${fixed(base.kl, 2)} ${bracket(base.kl_ci, 2)} nats`],
    marker: { symbol: "star", size: 11, color: colours.soft },
  }];
}

function drawFrontier(run) {
  const colours = theme();
  const traces = [...optimumTraces(colours), ...learnedTraces(colours), ...bestOfNTraces(colours), ...baseTrace(colours), ...F.methods.flatMap((method) => methodTraces(method, colours))];
  const x = { title: { text: "KL to the reference, nats per sequence" }, type: scale, range: scale === "log" ? [Math.log10(LEAST), Math.log10(FURTHEST)] : [-0.015 * FURTHEST, FURTHEST] };
  if (scale === "log") Object.assign(x, { tickmode: "array", tickvals: TICKS, ticktext: TICKS.map(String) });
  const y = { title: { text: `true reward (${plain(F.world.reward)})` }, range: rewardRange() };
  const drawn = [...traces.filter((trace) => !hidden.has(trace.meta)), chosenTrace(run, colours)];
  draw(byId("frontier"), drawn, layout(x, y, { ...referenceShapes(colours), uirevision: scale, margin: { l: 58, r: 14, t: 24, b: 48 } }), CONFIG);
}

const TICKS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500].filter((tick) => tick <= FURTHEST);

/** The legend: a button per entry, which hides and shows it. */
function buildLegend(redraw) {
  const entries = [...METHODS.map((name) => [name, visible(name), swatch(name)]), ...REFERENCES.map((each) => [each.key, each.name, stroke(each)])];
  for (const [key, name, picture] of entries) {
    const button = make("button", "", picture, name);
    button.type = "button";
    button.dataset.key = key;
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (!hidden.delete(key)) hidden.add(key);
      button.setAttribute("aria-pressed", String(!hidden.has(key)));
      redraw();
    });
    byId("legend").append(button);
  }
}

function buildScale(redraw) {
  for (const button of byId("scale").querySelectorAll("button")) {
    button.addEventListener("click", () => {
      scale = button.dataset.scale;
      for (const each of byId("scale").querySelectorAll("button")) each.setAttribute("aria-pressed", String(each === button));
      redraw();
    });
  }
}

/** Call back with the name of the run whose point was clicked. */
function onPoint(choose) {
  byId("frontier").on("plotly_click", (event) => {
    const point = event.points.find((each) => known(each.customdata));
    if (point) choose(point.customdata);
  });
}
