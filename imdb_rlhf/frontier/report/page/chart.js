// Charts as SVG: axes, lines, bands, marks and bars; hover, click, arrow keys, zoom by dragging, and saving.
// A chart is given anew whenever something changes; its zoom and its hovered mark belong to its box.

const SVG_NS = "http://www.w3.org/2000/svg";
const FONT = 12.5;

/** An SVG element; a child that is a string becomes text. */
function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG_NS, tag);
  for (const [name, value] of Object.entries(attributes || {})) if (known(value)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const SHAPES = {
  circle: "M-1 0A1 1 0 1 0 1 0 1 1 0 1 0-1 0z",
  square: "M-.88-.88H.88V.88H-.88z",
  diamond: "M0-1.2 1.2 0 0 1.2-1.2 0z",
  "triangle-up": "M0-1.1 1.15.9H-1.15z",
  "triangle-down": "M0 1.1 1.15-.9H-1.15z",
  cross: "M-.4-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4z",
  x: "M-1.1-.6-.6-1.1 0-.5.6-1.1 1.1-.6.5 0 1.1.6.6 1.1 0 .5-.6 1.1-1.1.6-.5 0z",
  star: "M0-1.3.31-.42 1.24-.4.49.16.76 1.05 0 .53-.76 1.05-.49.16-1.24-.4-.31-.42z",
};

const MEASURE = document.createElement("canvas").getContext("2d");
/** The width of a text in pixels. */
function textWidth(text, size = FONT) {
  MEASURE.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  return MEASURE.measureText(text).width;
}

// --- axes

const signed = (text) => text.replace("-", "\u2212");
const tickText = (value) => signed(String(+value.toPrecision(10)));

/** Texts for round numbers, with as many decimals as the finest of them needs: 0.9 and 1.0. */
function evenTexts(ticks) {
  const decimals = Math.max(0, ...ticks.map((tick) => (tickText(tick).split(".")[1] || "").length));
  return (value) => signed(value.toFixed(decimals));
}

/** Round numbers in [low, high], about as many as asked for. */
function niceTicks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i += 1) ticks.push(+(i * step).toPrecision(12));
  return ticks;
}

/** 1, 2 and 5 times powers of ten; powers alone where that is many; round numbers where it is fewer than two. */
function logTicks(low, high, count) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const each of Math.log10(high / low) * 3 > count ? [1] : [1, 2, 5]) ticks.push(+(each * 10 ** power).toPrecision(12));
  }
  const shown = ticks.filter((tick) => tick >= low && tick <= high);
  return shown.length > 1 ? shown : niceTicks(low, high, count);
}

/** From data to pixels and back; `domain` is [first, last] of the data, `pixels` likewise. */
function axisOf(domain, pixels, log) {
  const to = log ? Math.log10 : (value) => value;
  const from = log ? (value) => 10 ** value : (value) => value;
  const [a, b] = domain.map(to);
  const [p, q] = pixels;
  return { domain, pixels, log, at: (value) => p + ((to(value) - a) / (b - a)) * (q - p), back: (pixel) => from(a + ((pixel - p) / (q - p)) * (b - a)) };
}

// --- a chart

const CHARTS = new WeakMap(); // box -> its chart: { spec, view, geometry, marks, current }
const RESIZED = new ResizeObserver((entries) => {
  for (const { target } of entries) if (CHARTS.has(target) && CHARTS.get(target).spec) render(target);
});

/** Say why there is nothing to draw, in the place of a chart. */
function nothing(box, why) {
  if (CHARTS.has(box)) CHARTS.get(box).spec = null;
  box.replaceChildren(make("div", "empty", why));
  box.style.height = "auto";
}

/**
 * Draw a chart in a box.
 *
 * spec.x: { title, domain, log }, spec.y: { title, domain, format }. spec.layers, from the back to the front:
 *   { kind: "band", x, low, high, fill, opacity }
 *   { kind: "line", x, y, stroke, width, dash, opacity, texts }            texts: lists of lines, the first a title
 *   { kind: "marks", x, y, symbol, size, fill, stroke, opacity, texts, runs, steps, xci, yci, counted, bars, dash }
 *   { kind: "bars", x0, x1, y, fill, opacity, texts }
 *   { kind: "rule", x or y, stroke, dash, width, text, end }
 * Each may have a `key`, the entry of the legend that it belongs to. spec.choose is called with the run of a clicked mark.
 * spec.view is a name: a zoom is kept until it changes. spec.quiet charts have no buttons.
 */
function draw(box, spec) {
  let chart = CHARTS.get(box);
  if (!chart) {
    chart = { spec, view: null, geometry: null, marks: [], current: null };
    CHARTS.set(box, chart);
    RESIZED.observe(box);
    listen(box, chart);
  }
  if (chart.spec && chart.spec.view !== spec.view) chart.view = null;
  chart.spec = spec;
  chart.current = null;
  box.style.height = "";
  render(box);
}

function render(box) {
  const chart = CHARTS.get(box);
  const { spec } = chart;
  const [width, height] = [box.clientWidth, box.clientHeight];
  if (width < 60 || height < 60) return;
  const colours = theme();
  const domain = chart.view || { x: spec.x.domain, y: spec.y.domain };
  const yTicks = niceTicks(...domain.y, (height - 60) / 44);
  const yFormat = spec.y.format || evenTexts(yTicks);
  const top = spec.y.title ? 30 : 12;
  const left = Math.ceil(Math.max(...yTicks.map((tick) => textWidth(yFormat(tick), 12)))) + 14;
  const inner = { left, top, width: width - left - 14, height: height - top - 46 };
  const x = axisOf(domain.x, [0, inner.width], spec.x.log);
  const y = axisOf(domain.y, [inner.height, 0], false);
  const xTicks = (spec.x.log ? logTicks : niceTicks)(...domain.x, inner.width / 75);
  const xFormat = spec.x.log ? tickText : evenTexts(xTicks);
  chart.geometry = { inner, x, y };
  chart.marks = [];

  const plot = svg("svg", { x: left, y: top, width: inner.width, height: inner.height, overflow: "hidden", class: "inner" });
  const over = svg("g", { transform: `translate(${left} ${top})`, class: "over" });
  for (const layer of spec.layers) plot.append(...LAYERS[layer.kind](layer, { x, y, inner, colours, chart, over }));
  const root = svg("svg", { xmlns: SVG_NS, width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": spec.label || spec.y.title || "", "font-family": colours.font, "font-size": FONT, class: "chart" },
    ...axes(spec, { inner, x, y, xTicks, yTicks, xFormat, yFormat, colours }), plot, over);
  if (chart.counts) over.append(...countLabels(chart, inner, colours));
  box.replaceChildren(root, make("div", "tip"), ...(spec.quiet ? [] : [tools(box, chart)]));
  box.lastElementChild.hidden = false;
  showTip(box, null);
}

/** Grid, ticks, their numbers, and the axes' names: the vertical one's stands above it, to be read without turning. */
function axes(spec, { inner, x, y, xTicks, yTicks, xFormat, yFormat, colours }) {
  const bottom = inner.top + inner.height;
  const parts = [];
  const text = (content, attributes) => svg("text", { fill: colours.ink, "font-size": 12, ...attributes }, content);
  for (const tick of yTicks) {
    const at = inner.top + y.at(tick);
    parts.push(svg("line", { x1: inner.left, x2: inner.left + inner.width, y1: at, y2: at, stroke: colours.grid }));
    parts.push(text(yFormat(tick), { x: inner.left - 7, y: at + 4, "text-anchor": "end", class: "y-tick" }));
  }
  let last = -Infinity;
  for (const tick of xTicks) {
    const at = inner.left + x.at(tick);
    parts.push(svg("line", { x1: at, x2: at, y1: inner.top, y2: bottom, stroke: colours.grid }));
    const label = xFormat(tick);
    const half = textWidth(label, 12) / 2;
    if (at - half < last + 6) continue; // two numbers would touch
    last = at + half;
    parts.push(text(label, { x: at, y: bottom + 17, "text-anchor": "middle", class: "x-tick" }));
  }
  parts.push(svg("path", { d: `M${inner.left} ${inner.top}V${bottom}H${inner.left + inner.width}`, fill: "none", stroke: colours.line }));
  if (spec.x.title) parts.push(text(spec.x.title, { x: inner.left + inner.width / 2, y: bottom + 38, "text-anchor": "middle", fill: colours.soft }));
  if (spec.y.title) parts.push(text(spec.y.title, { x: 2, y: 15, fill: colours.soft }));
  return parts;
}

// --- layers

/** A path through points; a point that is not known breaks it. */
function pathOf(points) {
  let pen = "M";
  return points.map(([px, py]) => {
    if (!Number.isFinite(px) || !Number.isFinite(py)) {
      pen = "M";
      return "";
    }
    const step = `${pen}${px.toFixed(1)} ${py.toFixed(1)}`;
    pen = "L";
    return step;
  }).join("");
}

const LAYERS = {
  band(layer, { x, y }) {
    const forth = layer.x.map((each, i) => [x.at(each), y.at(layer.high[i])]);
    const back = layer.x.map((each, i) => [x.at(each), y.at(layer.low[i])]).reverse();
    return [svg("path", { d: pathOf([...forth, ...back]) + "z", fill: layer.fill, opacity: layer.opacity, "data-key": layer.key })];
  },

  line(layer, { x, y, chart }) {
    const points = layer.x.map((each, i) => [x.at(each), y.at(layer.y[i])]);
    if (layer.texts) chart.marks.push({ line: points, texts: layer.texts });
    const attributes = { d: pathOf(points), fill: "none", stroke: layer.stroke, "stroke-width": layer.width, "stroke-dasharray": layer.dash, opacity: layer.opacity, "stroke-linejoin": "round" };
    return [svg("path", { ...attributes, class: "line", "data-key": layer.key, "data-run": layer.run })];
  },

  marks(layer, { x, y, inner, chart }) {
    const parts = [];
    const marks = layer.x.map((each, i) => ({ px: x.at(each), py: y.at(layer.y[i]), text: layer.texts && layer.texts[i], run: layer.runs && layer.runs[i], size: layer.size, layer, i }));
    for (const mark of marks) {
      if (!Number.isFinite(mark.px) || !Number.isFinite(mark.py)) continue;
      const bar = (d) => parts.push(svg("path", { d, stroke: layer.bars || layer.fill, "stroke-width": 1.2, "stroke-dasharray": layer.dash, fill: "none", "data-key": layer.key }));
      const [xci, yci] = [layer.xci && layer.xci[mark.i], layer.yci && layer.yci[mark.i]];
      if (xci && xci.length) bar(`M${x.at(Math.max(xci[0], x.log ? x.domain[0] / 10 : xci[0]))} ${mark.py}H${x.at(xci[1])}`);
      if (yci && yci.length) bar(`M${mark.px} ${y.at(yci[0])}V${y.at(yci[1])}`);
    }
    for (const mark of marks) {
      if (!Number.isFinite(mark.px) || !Number.isFinite(mark.py)) continue;
      const scale = layer.sizes ? layer.sizes[mark.i] : layer.size;
      parts.push(svg("path", {
        d: SHAPES[layer.symbol] || SHAPES.circle, transform: `translate(${mark.px.toFixed(2)} ${mark.py.toFixed(2)}) scale(${scale})`, fill: layer.fill, stroke: layer.stroke,
        "stroke-width": layer.stroke ? (layer.strokeWidth || 1.2) : null, "vector-effect": "non-scaling-stroke", opacity: layer.opacity, class: "mark", "data-key": layer.key, "data-run": mark.run, "data-step": layer.steps && layer.steps[mark.i],
      }));
      const inside = mark.px >= -2 && mark.px <= inner.width + 2 && mark.py >= -2 && mark.py <= inner.height + 2;
      if (mark.text && inside) chart.marks.push(mark);
    }
    if (layer.counted) (chart.counts = chart.counts || []).push({ layer, marks });
    return parts;
  },

  bars(layer, { x, y, inner, chart }) {
    return layer.y.map((value, i) => {
      const [a, b] = [x.at(layer.x0[i]), x.at(layer.x1[i])];
      const shown = { x: a + 0.02 * (b - a), width: 0.96 * (b - a), y: y.at(value), height: inner.height - y.at(value) };
      if (layer.texts && value > 0) chart.marks.push({ box: shown, px: (a + b) / 2, py: y.at(value), text: layer.texts[i] });
      return svg("rect", { ...shown, fill: layer.fill, opacity: layer.opacity, class: "bar" });
    });
  },

  rule(layer, { x, y, inner, colours }) {
    const upright = known(layer.x);
    const at = upright ? x.at(layer.x) : y.at(layer.y);
    const ends = upright ? { x1: at, x2: at, y1: 0, y2: inner.height } : { x1: 0, x2: inner.width, y1: at, y2: at };
    const parts = [svg("line", { ...ends, stroke: layer.stroke, "stroke-width": layer.width || 1, "stroke-dasharray": layer.dash, "data-key": layer.key })];
    if (layer.text) {
      const wide = textWidth(layer.text, 11.5);
      const place = upright
        ? { x: layer.end ? at - 5 : at + 5, y: 12, "text-anchor": (layer.end ? at - 5 - wide > 0 : at + 5 + wide > inner.width) ? "end" : "start" }
        : { x: inner.width - 4, y: at - 4, "text-anchor": "end" };
      if (upright && !layer.end && place["text-anchor"] === "end") place.x = inner.width - 4;
      if (upright && layer.end && place["text-anchor"] === "start") place.x = 4;
      parts.push(svg("text", { ...place, fill: layer.textFill || colours.soft, "font-size": 11.5, ...halo(colours) }, layer.text));
    }
    return parts;
  },

  note(layer, { inner, x, y, colours }) {
    const wide = textWidth(layer.text, 11.5);
    const place = { x: Math.min(Math.max(x.at(layer.x), wide / 2 + 4), inner.width - wide / 2 - 4), y: Math.min(Math.max(y.at(layer.y) + 4, 14), inner.height - 6) };
    if (wide > inner.width - 8) return [];
    return [svg("text", { ...place, "text-anchor": "middle", fill: layer.fill, "font-size": 11.5, "data-key": layer.key, ...halo(colours) }, layer.text)];
  },
};

const halo = (colours) => ({ stroke: colours.bg, "stroke-width": 3, "paint-order": "stroke", "stroke-linejoin": "round" });

/** Of marks of one layer that cover one another: how many they are, beside them. */
function countLabels(chart, inner, colours) {
  const labels = [];
  const taken = chart.marks.filter((mark) => known(mark.px) && mark.size > 4).map((mark) => [mark.px - 6, mark.py - 6, mark.px + 6, mark.py + 6]);
  for (const { layer, marks } of chart.counts) {
    const left = marks.filter((mark) => mark.px >= 0 && mark.px <= inner.width && mark.py >= 0 && mark.py <= inner.height);
    while (left.length) {
      const group = [left.shift()];
      for (let i = 0; i < left.length; ) {
        if (group.some((each) => Math.hypot(each.px - left[i].px, each.py - left[i].py) < COVERED)) {
          group.push(...left.splice(i, 1));
          i = 0;
        } else i += 1;
      }
      if (group.length < 2) continue;
      const text = layer.counted(group.length);
      const [wide, px, py] = [textWidth(text, 11.5), group[0].px, group[0].py];
      const boxes = [[9, -6], [-9 - wide, -6], [-wide / 2, -22], [-wide / 2, 10], [9, -20], [9, 8]].map(([dx, dy]) => [px + dx, py + dy, px + dx + wide, py + dy + 12]);
      const cost = (b) => taken.filter((t) => t[0] < b[2] && t[2] > b[0] && t[1] < b[3] && t[3] > b[1]).length + (b[0] < 0 || b[2] > inner.width || b[1] < 0 || b[3] > inner.height ? 50 : 0);
      const best = boxes.map((box) => [cost(box), box]).sort(([a], [b]) => a - b)[0][1];
      taken.push(best);
      labels.push(svg("text", { x: best[0], y: best[3] - 2, fill: colours.ink, "font-size": 11.5, class: "count", ...halo(colours) }, text));
    }
  }
  chart.counts = null;
  return labels;
}
const COVERED = 11; // pixels; marks that are nearer to one another overlap: they are counted, and told of together

// --- hover

/** The mark under a place of the plot, with all that it covers; else the nearest line or bar; else null. */
function found(chart, px, py, reach = 16) {
  const marks = chart.marks.filter((mark) => known(mark.px) && !mark.box);
  const near = (mark) => Math.hypot(mark.px - px, mark.py - py) - (mark.size > 4 ? 3 : 0);
  const best = marks.reduce((least, mark) => (near(mark) < (least ? near(least) : reach) ? mark : least), null);
  if (best) {
    const same = marks.filter((mark) => mark !== best && mark.size === best.size && Math.hypot(mark.px - best.px, mark.py - best.py) < COVERED);
    return { px: best.px, py: best.py, texts: [best, ...same].map((mark) => mark.text), run: best.run };
  }
  const bars = chart.marks.filter(({ box }) => box && px >= box.x && px <= box.x + box.width && py >= box.y - 2);
  if (bars.length) return { px: bars[0].px, py: Math.min(...bars.map((bar) => bar.py)), texts: bars.map((bar) => bar.text) };
  let nearest = null;
  for (const mark of chart.marks.filter(({ line }) => line)) {
    for (let i = 0; i < mark.line.length; i += 1) {
      const [a, b] = [mark.line[i], mark.line[Math.min(i + 1, mark.line.length - 1)]];
      const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
      const share = Math.min(1, Math.max(0, ((px - a[0]) * dx + (py - a[1]) * dy) / (dx * dx + dy * dy || 1)));
      const distance = Math.hypot(a[0] + share * dx - px, a[1] + share * dy - py);
      const at = share > 0.5 ? i + 1 : i;
      if (distance < (nearest ? nearest.distance : 9) && mark.texts[at]) nearest = { distance, px: mark.line[at][0], py: mark.line[at][1], texts: [mark.texts[at]] };
    }
  }
  return nearest;
}

const SHOWN_TEXTS = 4;

/** Show a mark's texts beside it, or hide them. */
function showTip(box, mark) {
  const chart = CHARTS.get(box);
  const tip = box.querySelector(".tip");
  chart.current = mark;
  tip.hidden = !mark;
  box.querySelector(".ring")?.remove();
  if (!mark) return;
  const lines = ([title, ...rest]) => make("div", "", make("strong", "", title), ...rest.map((line) => make("span", "", line)));
  const more = mark.texts.length - SHOWN_TEXTS;
  tip.replaceChildren(...mark.texts.slice(0, SHOWN_TEXTS).map(lines), more > 0 ? make("div", "", make("span", "", `and ${more} more at this place`)) : "");
  const { inner } = chart.geometry;
  const [at, down] = [inner.left + mark.px, inner.top + mark.py];
  const [wide, high] = [tip.offsetWidth, tip.offsetHeight];
  tip.style.left = `${Math.max(0, at + 14 + wide <= box.clientWidth ? at + 14 : at - 14 - wide >= 0 ? at - 14 - wide : Math.min(at - wide / 2, box.clientWidth - wide))}px`;
  tip.style.top = `${Math.max(0, Math.min(down - high / 2, box.clientHeight - high))}px`;
  if (at + 14 + wide > box.clientWidth && at - 14 - wide < 0) tip.style.top = `${down + 16 + high < box.clientHeight ? down + 16 : Math.max(0, down - high - 16)}px`;
  box.querySelector(".over").append(svg("circle", { cx: mark.px, cy: mark.py, r: 9, fill: "none", stroke: theme().ink, "stroke-width": 1.2, class: "ring" }));
}

// --- mouse, fingers and keys

function listen(box, chart) {
  let drag = null; // where the mouse went down, in the plot
  const place = (event) => {
    const { left, top } = box.getBoundingClientRect();
    const { inner } = chart.geometry;
    return [event.clientX - left - inner.left, event.clientY - top - inner.top];
  };
  const hover = (event, reach) => showTip(box, found(chart, ...place(event), reach));
  box.addEventListener("pointermove", (event) => {
    if (!chart.spec || event.pointerType === "touch" || event.target.closest(".tools")) return;
    if (!drag) return hover(event);
    const now = place(event);
    if (Math.hypot(now[0] - drag[0], now[1] - drag[1]) < 6) return;
    showTip(box, null);
    box.querySelector(".drag")?.remove();
    const [x0, x1, y0, y1] = [Math.min(drag[0], now[0]), Math.max(drag[0], now[0]), Math.min(drag[1], now[1]), Math.max(drag[1], now[1])];
    box.querySelector(".over").append(svg("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, fill: theme().ink, opacity: 0.1, class: "drag" }));
  });
  box.addEventListener("pointerleave", (event) => chart.spec && event.pointerType !== "touch" && !drag && showTip(box, null));
  box.addEventListener("pointerdown", (event) => {
    if (!chart.spec || event.pointerType === "touch" || event.button !== 0 || event.target.closest(".tools")) return;
    drag = place(event);
    if (!chart.spec.quiet) box.setPointerCapture(event.pointerId);
  });
  box.addEventListener("pointerup", (event) => {
    const start = drag;
    drag = null;
    if (!start || !chart.spec || chart.spec.quiet) return;
    box.querySelector(".drag")?.remove();
    const end = place(event);
    if (Math.abs(end[0] - start[0]) > 8 && Math.abs(end[1] - start[1]) > 8) zoom(box, chart, start, end);
  });
  box.addEventListener("click", (event) => {
    if (!chart.spec || event.target.closest(".tools")) return;
    const before = chart.current;
    hover(event, event.pointerType === "touch" ? 26 : 16);
    const mark = chart.current;
    // a finger cannot hover: its first tap shows the numbers, the second chooses
    const again = event.pointerType !== "touch" || (before && mark && before.px === mark.px && before.py === mark.py);
    if (mark && known(mark.run) && chart.spec.choose && again) chart.spec.choose(mark.run);
  });
  box.addEventListener("dblclick", () => chart.spec && !chart.spec.quiet && zoom(box, chart));
  box.addEventListener("keydown", (event) => chart.spec && event.target.classList.contains("chart") && key(box, chart, event));
}

/** Arrow keys go from mark to mark, Enter chooses the one that is shown. */
function key(box, chart, event) {
  const marks = chart.marks.filter((mark) => known(mark.px)).sort((a, b) => a.px - b.px || a.py - b.py);
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (by && marks.length) {
    chart.step = ((chart.current && known(chart.step) ? chart.step : by > 0 ? -1 : 0) + by + marks.length) % marks.length;
    showTip(box, found(chart, marks[chart.step].px, marks[chart.step].py));
    event.preventDefault();
  } else if (event.key === "Enter" && chart.current && known(chart.current.run) && chart.spec.choose) chart.spec.choose(chart.current.run);
  else if (event.key === "Escape") chart.current ? showTip(box, null) : zoom(box, chart);
}

/** Show what is between two places of the plot; everything, without them. */
function zoom(box, chart, start, end) {
  const { x, y } = chart.geometry;
  const ordered = (axis, at) => [axis.back(start[at]), axis.back(end[at])].sort((a, b) => a - b);
  chart.view = start ? { x: ordered(x, 0), y: ordered(y, 1) } : null;
  render(box);
}

function tools(box, chart) {
  const button = (text, title, act) => {
    const element = make("button", "", text);
    Object.assign(element, { type: "button", title });
    element.addEventListener("click", act);
    return element;
  };
  return make("div", "tools",
    chart.view ? button("show all", "undo the zoom (double click)", () => zoom(box, chart)) : null,
    button("save", "save this picture as SVG", () => save(box)));
}

/** Offer the chart as a file. */
function save(box) {
  const copy = box.querySelector("svg.chart").cloneNode(true);
  copy.querySelector(".ring")?.remove();
  copy.prepend(svg("rect", { width: "100%", height: "100%", fill: theme().bg }));
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
  link.download = `${box.id}.svg`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
