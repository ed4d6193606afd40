// The interactive frontier: its traces, legend, KL axis, hover texts and clicks.

const hidden = new Set(); // keys of the legend's entries that are switched off
let scale = "linear";

const BEST_OF = { ground_truth: "best-of-N by the true reward", learned: "best-of-N by the learned reward" };
const DASHES = { learned: "5 3", learnedOptimum: "1.5 3" };

const reach = (points) => Math.max(F.score_kl, ...points.map((point) => (point.kl_ci ? point.kl_ci[1] : point.kl)));
/** The start of the logarithmic KL axis. */
const LEAST = Math.max(0.005, 0.7 * Math.min(...F.points.map((point) => point.kl).filter((kl) => kl > 0.005), 0.25));
/** The end of the KL axis: the last point, unless that is a diverged run's at over twice the KL of all others. */
const FURTHEST = 1.06 * Math.min(reach(F.points), 2 * reach(F.points.filter((point) => !DIVERGED.has(point.run))));
const BEYOND = F.points.filter((point) => point.kl > FURTHEST).length;
const IS_GREY = F.optimum && F.optimum.trusted_kl < FURTHEST;

const REFERENCES = [
  F.optimum && { key: "optimum", name: "optimum: no policy can have more", band: true, width: 2 },
  IS_GREY && { key: "grey", name: "the optimum is somewhere in the grey", area: true },
  F.optimum && F.optimum.learned && { key: "learned", name: "true reward at the learned reward's optimum", dash: DASHES.learnedOptimum, width: 2 },
  ...Object.keys(F.best_of_n || {}).map((by) => ({ key: `best_of_n ${by}`, name: BEST_OF[by] || `best-of-N by ${by}`, dash: by === "learned" ? DASHES.learned : "", dot: true, width: 1.4 })),
].filter(Boolean);

const onAxis = (kl) => scale === "linear" || kl > 0;

/** A layer over KL, without what the axis cannot show. Lists of the fields are thinned alike. */
function over(kind, key, kl, fields, style) {
  const shown = kl.map((_, i) => i).filter((i) => known(kl[i]) && onAxis(kl[i]) && Object.values(fields).every((values) => known(values[i])));
  const thinned = Object.entries(fields).map(([name, values]) => [name, shown.map((i) => values[i])]);
  return { kind, key, x: shown.map((i) => kl[i]), ...Object.fromEntries(thinned), ...style };
}

/** The part of a curve before or after a KL, interpolated to end exactly there. */
function part(kl, values, limit, before) {
  const at = kl.findIndex((each) => each > limit);
  if (at < 1) return before === at < 0 ? [kl, values] : [[], []];
  const share = (limit - kl[at - 1]) / (kl[at] - kl[at - 1]);
  const value = values[at - 1] + share * (values[at] - values[at - 1]);
  return before ? [[...kl.slice(0, at), limit], [...values.slice(0, at), value]] : [[limit, ...kl.slice(at)], [value, ...values.slice(at)]];
}

/** The band between the optimum's bounds: ochre where they are close, grey where samples are too few. */
function optimumLayers(colours) {
  const o = F.optimum;
  if (!o) return [];
  const layers = [];
  for (const before of [true, false]) {
    const tint = before ? colours.optimum : colours.soft;
    const key = before ? "optimum" : "grey";
    const of = (values) => part(o.kl, values, o.trusted_kl, before);
    const kl = of(o.lower)[0];
    const band = (low, high, opacity) => over("band", key, kl, { low: of(low)[1], high: of(high)[1] }, { fill: tint, opacity });
    layers.push(band(o.lower_ci[0], o.upper_ci[1], before ? 0.18 : 0.1), band(o.lower, o.upper, before ? 0.4 : 0.13));
    for (const [name, values, ends] of [["lower bound: a policy that reaches it exists", o.lower, o.lower_ci], ["upper bound: no policy is above it", o.upper, o.upper_ci]]) {
      const texts = kl.map((each, i) => {
        const at = o.kl.indexOf(each);
        const numbers = `reward ${fixed(of(values)[1][i])} ${at < 0 ? "" : bracket([ends[0][at], ends[1][at]])} for ${fixed(each, 2)} nats`;
        return ["optimum", name, numbers, ...(before ? [] : [`${o.samples} samples per prompt cannot say where in the grey it is`])];
      });
      // wide enough to be seen on both sides of best-of-N where that covers it
      layers.push(over("line", key, kl, { y: of(values)[1], texts }, { stroke: tint, width: before ? 3.4 : 1, dash: before ? null : "4 3", opacity: before ? 0.75 : 1 }));
    }
  }
  return layers;
}

function learnedLayers(colours) {
  const l = F.optimum && F.optimum.learned;
  if (!l) return [];
  const texts = l.kl.map((kl, i) => ["optimum of the learned reward", `true reward ${fixed(l.reward[i])} ${bracket([l.reward_ci[0][i], l.reward_ci[1][i]])}`, `for ${fixed(kl, 2)} nats`]);
  return [
    over("band", "learned", l.kl, { low: l.reward_ci[0], high: l.reward_ci[1] }, { fill: colours.soft, opacity: 0.12 }),
    over("line", "learned", l.kl, { y: l.reward, texts }, { stroke: colours.soft, width: 2, dash: DASHES.learnedOptimum }),
  ];
}

function bestOfNLayers(colours) {
  return Object.entries(F.best_of_n || {}).flatMap(([by, curve]) => {
    const key = `best_of_n ${by}`;
    const texts = curve.n.map((n, i) => [`${BEST_OF[by] || by}, N = ${n}`, `reward ${fixed(curve.reward[i])} ${bracket([curve.reward_ci[0][i], curve.reward_ci[1][i]])}`, `KL at most ${fixed(curve.kl[i], 2)} nats`]);
    const powers = curve.n.map((_, i) => i).filter((i) => Number.isInteger(Math.log2(curve.n[i])));
    const at = (values) => powers.map((i) => values[i]);
    return [
      over("band", key, curve.kl, { low: curve.reward_ci[0], high: curve.reward_ci[1] }, { fill: colours.soft, opacity: 0.12 }),
      over("line", key, curve.kl, { y: curve.reward, texts }, { stroke: colours.ink, width: 1.3, dash: by === "learned" ? DASHES.learned : null }),
      over("marks", key, at(curve.kl), { y: at(curve.reward), texts: at(texts) }, { symbol: "circle", size: 2.6, fill: by === "learned" ? colours.bg : colours.ink, stroke: colours.ink, strokeWidth: 1 }),
    ];
  });
}

const efficiencyLine = (pair) => (pair ? [`efficiency ${range(pair, 2)}`] : []);

function pointText(point) {
  const run = RUN.get(point.run);
  return [
    visible(run ? runTitle(run) : point.run),
    `${visible(point.run)}, step ${point.step}`,
    `reward ${fixed(point.reward)} ${bracket(point.reward_ci)}`,
    `KL ${fixed(point.kl, 2)} ${bracket(point.kl_ci, 2)} nats`,
    ...efficiencyLine(point.efficiency), ...(point.above_optimum ? ["above the optimum's upper bound"] : []),
  ];
}

function settingText(method, each) {
  const title = [method.name, setting(method.knob, each.knob_value)].filter(Boolean).join(", ");
  return [
    `${visible(title)}, ${seedsOf(each)}`,
    ...each.runs.slice(0, 5).map((name) => visible(name) + stepOf(name)),
    ...(each.runs.length > 5 ? [`and ${each.runs.length - 5} more`] : []),
    `reward ${fixed(each.reward)} ${bracket(each.reward_ci)}`,
    `KL ${fixed(each.kl, 2)} ${bracket(each.kl_ci, 2)} nats`,
    `intervals over ${coversOf(each)}`,
    ...efficiencyLine(each.efficiency),
  ];
}

function stepOf(name) {
  const point = F.points.find((each) => each.run === name && each.last);
  return point ? `, step ${point.step}` : "";
}

/** A method's checkpoints, and its settings with their intervals, joined in the order of the knob. */
function methodLayers(method, colours) {
  const [colour, symbol] = styleOf(method.name);
  const points = F.points.filter((point) => point.method === method.name);
  const of = (rows, key) => rows.map((row) => row[key]);
  const settings = method.settings;
  const kl = of(settings, "kl");
  const key = method.name;
  return [
    over("line", key, kl, { y: of(settings, "reward") }, { stroke: colour, width: 1.7, opacity: 0.9 }),
    over("marks", key, of(points, "kl"), { y: of(points, "reward"), texts: points.map(pointText), runs: of(points, "run"), steps: of(points, "step") }, { symbol, size: 3, fill: colour, opacity: 0.5 }),
    ...[false, true].map((alone) => settingMarks(method, settings.filter((each) => promptsOnly(each) === alone), alone, colours)),
  ];
}

/** A method's settings; those whose intervals are over prompts alone are hollow, with dotted bars. */
function settingMarks(method, settings, alone, colours) {
  const [colour, symbol] = styleOf(method.name);
  const of = (key) => settings.map((row) => row[key]);
  const intervals = (name) => of(name).map((pair) => pair || []);
  const fields = { y: of("reward"), texts: settings.map((each) => settingText(method, each)), runs: settings.map((each) => each.runs[0]), xci: intervals("kl_ci"), yci: intervals("reward_ci") };
  const look = alone ? { fill: colours.bg, stroke: colour, strokeWidth: 1.8, bars: colour, dash: "1.5 2" } : { fill: colour, stroke: colours.bg };
  return over("marks", method.name, of("kl"), fields, { symbol, size: alone ? 5 : 5.6, ...look, counted: (count) => `${count} ${method.knob ? knobWords(method.knob)[2] : "settings"}` });
}

/** The chosen run's checkpoints, joined in the order of training and the reported one ringed; they take no hover. */
function chosenLayers(run, colours) {
  if (!run || hidden.has(run.method)) return [];
  const points = F.points.filter((point) => point.run === run.name).sort((a, b) => a.step - b.step);
  const from = F.reference && !(F.references > 1) && points.length && points[0].step > 0 ? [{ kl: 0, reward: F.reference.reward }] : []; // every policy starts there
  const path = [...from, ...points];
  const of = (rows, key) => rows.map((row) => row[key]);
  const last = points.filter((point) => point.last);
  return [
    over("line", "chosen", of(path, "kl"), { y: of(path, "reward") }, { stroke: colours.ink, width: 1.1, dash: "2 3", run: run.name }),
    over("marks", "chosen", of(last, "kl"), { y: of(last, "reward") }, { symbol: "circle", size: 10, fill: "none", stroke: colours.ink, strokeWidth: 1.6 }),
  ];
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

/** The reference, the model before SFT, and where the grey begins. */
function anchorLayers(colours) {
  const { reference, base } = F;
  const numbers = (each) => [`reward ${fixed(each.reward)} ${bracket(each.reward_ci)}`, `KL ${fixed(each.kl || 0, 2)} ${bracket(each.kl_ci, 2)} nats`];
  const layers = [{ kind: "rule", y: reference.reward, stroke: colours.soft, dash: "1.5 3", text: "reference" }];
  if (IS_GREY && !hidden.has("grey")) {
    const o = F.optimum;
    const at = scale === "log" ? Math.sqrt(o.trusted_kl * FURTHEST) : (o.trusted_kl + FURTHEST) / 2;
    const right = o.kl.findIndex((kl) => kl >= at);
    if (right > 0) layers.push({ kind: "note", key: "grey", x: at, y: (o.lower[right] + Math.min(o.upper[right], REWARDS[1])) / 2, fill: colours.soft, text: "the optimum is somewhere in the grey" });
  }
  layers.push(over("marks", "reference", [0], { y: [reference.reward], texts: [["reference: every policy starts here", ...numbers(reference)]], yci: [reference.reward_ci] }, { symbol: "star", size: 7, fill: colours.ink, stroke: colours.bg }));
  if (base && base.kl <= 2 * FURTHEST) {
    layers.push(over("marks", "base", [base.kl], { y: [base.reward], texts: [["before SFT", ...numbers(base)]] }, { symbol: "star", size: 6, fill: colours.soft, stroke: colours.bg }));
    layers.push({ kind: "note", x: base.kl, y: base.reward + 0.045 * (REWARDS[1] - REWARDS[0]), fill: colours.soft, text: "before SFT" });
  }
  return layers.filter((layer) => !Array.isArray(layer.x) || layer.x.length);
}

const REWARDS = F.reference ? rewardRange() : [0, 1];

function drawFrontier(run, choose) {
  const colours = theme();
  const layers = [...optimumLayers(colours), ...anchorLayers(colours), ...learnedLayers(colours), ...bestOfNLayers(colours), ...F.methods.flatMap((method) => methodLayers(method, colours)), ...chosenLayers(run, colours)];
  draw(byId("frontier"), {
    x: { title: "KL to the reference, nats per sequence", log: scale === "log", domain: scale === "log" ? [LEAST, FURTHEST] : [-0.015 * FURTHEST, FURTHEST] },
    y: { title: `true reward (${visible(F.world.reward)})`, domain: REWARDS },
    label: "reward over KL", view: scale, choose,
    layers: [false, true].flatMap((last) => layers.filter((layer) => (layer.kind === "note") === last && !hidden.has(layer.key))),
  });
}

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
