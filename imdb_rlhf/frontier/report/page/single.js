// The page of one run: what it is, what came out, where it is in the plane, and its settings.

const run = RUNS[0];
const hasPlane = Boolean(F.reference && F.points.length);
const hasTraining = Object.values(run.curves || {}).some(([steps]) => steps.length > 1);

function buildHeader() {
  const title = visible(runTitle(run));
  document.title = title;
  byId("title").replaceChildren(swatch(run.method), ` ${title}`);
  byId("lead").replaceChildren(make("span", "folder", visible(run.name)), known(run.step) ? `, step ${run.step}` : "");
  byId("results").append(...DATA.facts.map(([name, value]) => definition(name, visible(value))));
  const notes = [...F.warnings, ...F.skipped.map(({ path, why }) => `${path}: ${why}`), ...run.missing];
  if (notes.length) byId("warnings").append(make("div", "note", make("ul", "", ...[...new Set(notes)].map((text) => make("li", "", visible(text))))));
}

function buildPlane() {
  byId("plane").hidden = !hasPlane;
  if (!hasPlane) return;
  buildLegend(() => drawFrontier(run));
  buildScale(() => drawFrontier(run));
  const point = F.points.find((each) => each.last);
  byId("grey-note").textContent = IS_GREY ? `Grey: ${F.optimum.samples} samples per prompt tell the best possible reward up to ${fixed(F.optimum.trusted_kl, 1)} nats. For more KL it is somewhere between the edges of the grey area.` : "";
  byId("frontier-note").textContent =
    (hasTraining ? "Dotted: the run's evaluated checkpoints in the order of training, from the reference on; the ringed one is reported. " : "") +
    (point && point.efficiency ? `For the same reward the optimum needs ${range(point.efficiency.map((share) => 100 * share), 0)} % of the KL. ` : "") +
    (F.optimum ? "" : "This run used no reservoir (M reference samples per prompt), so best-of-N and the optimum are not known here. ") +
    `With ${percent} intervals. ${TOUCH ? "Tap" : "Point at"} a mark for its numbers; an entry of the legend hides and shows its marks${TOUCH ? "" : "; drag to zoom, double click to zoom out"}.`;
}

function buildSettings() {
  const w = F.world;
  byId("world").append(
    definition("data", visible(w.data)), definition("true reward", visible(w.reward)), definition("model", visible(w.model)),
    definition("completion", `at most ${w.max_new_tokens} tokens, temperature ${w.temperature}`),
    ...(known(w.test_prompts) ? [definition("evaluated on", `${w.test_prompts} test prompts \u00d7 ${w.samples_per_prompt} samples`)] : []),
  );
  byId("command").textContent = visible(run.command);
  byId("redraw").textContent = visible(DATA.redraw);
  byId("files").append(...DATA.links.map((name) => {
    const link = make("a", "folder", visible(name));
    link.href = encodeURIComponent(name);
    return make("li", "", link);
  }));
  byId("config").textContent = run.config ? run.config.map((place) => visible(DATA.texts[place])).join("\n") : "config.yaml is missing";
}

// --- a reward model: no policy, no samples

function drawAccount() {
  const account = DATA.account;
  const colours = theme();
  const [colour] = styleOf(run.method);
  const bins = account.reliability.filter((bin) => bin.count && known(bin.predicted) && known(bin.observed));
  const most = Math.max(...bins.map((bin) => bin.count));
  const of = (key) => bins.map((bin) => bin[key]);
  const percentText = (value) => `${+(100 * value).toPrecision(3)} %`;
  draw(byId("reliability"), {
    x: { title: "predicted probability", domain: [0, 1] }, y: { title: "share that came out", domain: [-0.03, 1.03] }, label: "predicted and observed shares", quiet: true, view: "reliability",
    layers: [
      { kind: "line", x: [0, 1], y: [0, 1], stroke: colours.soft, width: 1, dash: "3 3" },
      { kind: "line", x: of("predicted"), y: of("observed"), stroke: colour, width: 1.6 },
      {
        kind: "marks", x: of("predicted"), y: of("observed"), symbol: "circle", size: 5, sizes: bins.map((bin) => 3 + 5 * Math.sqrt(bin.count / most)), fill: colour,
        texts: bins.map((bin) => [`${bin.count} pairs`, `predicted ${percentText(bin.predicted)}`, `came out ${percentText(bin.observed)}`]),
      },
    ],
  });
  if (!account.scores) return nothing(byId("scores"), "scores.parquet is not in the run's folder");
  const [truth, scores] = account.scores;
  const padded = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return [low - 0.04 * (high - low || 1), high + 0.04 * (high - low || 1)];
  };
  draw(byId("scores"), {
    x: { title: "true log-odds", domain: padded(truth) }, y: { title: "learned score", domain: padded(scores) }, label: "learned score over true log-odds", quiet: true, view: "scores",
    layers: [{ kind: "marks", x: truth, y: scores, symbol: "circle", size: 2.2, fill: colour, opacity: 0.45, texts: truth.map((each, i) => ["sample", `true log-odds ${fixed(each, 2)}`, `learned score ${fixed(scores[i], 2)}`]) }],
  });
}

function drawAll() {
  if (hasPlane) drawFrontier(run);
  if (hasTraining) drawCurves(run);
  if (run.samples || run.histogram) drawHistogram(run);
  if (DATA.account) drawAccount();
}

buildHeader();
buildPlane();
buildSettings();
byId("training").hidden = !hasTraining;
if (hasTraining) buildCurves(() => drawCurves(run));
byId("account").hidden = !DATA.account;
byId("texts").hidden = !run.samples && !run.histogram;
buildSamples();
browser.rows = run.samples;
fillSamples();
drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
