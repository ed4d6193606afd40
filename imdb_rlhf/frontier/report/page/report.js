// Build the page; the chosen run is the only state that its parts share.

let chosen = RUNS[0] || null;
const HOLLOW = F.methods.some((method) => method.settings.some(promptsOnly));

function buildHeader() {
  const w = F.world;
  byId("world").append(
    definition("data", visible(w.data)),
    definition("true reward", visible(w.reward)),
    definition("model", visible(w.model)),
    definition("completion", `at most ${w.max_new_tokens} tokens, temperature ${w.temperature}`),
    definition("evaluated on", `${w.test_prompts} test prompts \u00d7 ${w.samples_per_prompt} samples`),
    definition("reference", `reward ${fixed(F.reference.reward)} ${bracket(F.reference.reward_ci)}`),
    ...(F.base ? [definition("before SFT", `reward ${fixed(F.base.reward)} ${bracket(F.base.reward_ci)}, KL ${fixed(F.base.kl, 2)}`)] : []),
    ...(F.optimum ? [definition("optimum", `known up to ${fixed(F.optimum.trusted_kl, 2)} nats, from ${F.optimum.samples} samples per prompt`)] : []),
    definition("runs", String(RUNS.length)),
    ...(F.references > 1 ? [definition("references", `${F.references}, pooled: means over references, which intervals resample first`)] : []),
  );
  const notes = [...F.warnings];
  for (const { path, why } of F.skipped) {
    if (!notes.some((text) => text.includes(path) && text.includes(why))) notes.push(`left out ${path}: ${why}`);
  }
  if (notes.length) byId("warnings").append(make("div", "note", make("ul", "", ...notes.map((text) => make("li", "", visible(text))))));
  byId("grey-note").textContent = IS_GREY ? `Grey: ${F.optimum.samples} samples per prompt tell the best possible reward up to ${fixed(F.optimum.trusted_kl, 1)} nats. For more KL it is somewhere between the edges of the grey area.` : "";
  byId("frontier-note").textContent =
    `Large marks: each setting at the checkpoint that its runs report, mean over seeds, with ${percent} intervals, joined in the order of the knob. ${HOLLOW ? "Hollow, with dotted bars: one or two seeds, so the interval is over prompts only and says nothing of other seeds. " : ""}Small marks: every evaluated checkpoint. ` +
    `${TOUCH ? "Tap a mark for its numbers, and again" : "Point at a mark for its numbers, click it"} to choose its run and see the samples. An entry of the legend hides and shows its marks${TOUCH ? "" : "; drag to zoom, double click to zoom out"}.` +
    (BEYOND ? ` Further right, outside the plot: ${BEYOND} ${BEYOND === 1 ? "checkpoint" : "checkpoints"} of diverged runs, which the tables have.` : "");
}

function showFacts(run) {
  byId("run-facts").replaceChildren(...[
    ["run", make("span", "name", swatch(run.method), visible(runTitle(run)))],
    ["reward", fixed(run.reward)],
    ["KL, nats", fixed(run.kl, 2)],
    ["win rate", fixed(run.win_rate)],
    ["at step", known(run.step) ? String(run.step) : "\u2013"],
    ["folder", make("span", "folder", visible(run.name))],
  ].map(([name, value]) => definition(name, value)));
  byId("run-missing").replaceChildren(...run.missing.map((line) => make("p", "note", visible(line))));
}

function buildChooser() {
  const list = byId("run-choice");
  list.append(...RUNS.map((run) => {
    const option = make("option", "", visible(runTitle(run)));
    option.value = run.name;
    return option;
  }));
  list.addEventListener("change", () => choose(list.value));
  const step = (by) => choose(RUNS[(RUNS.indexOf(chosen) + by + RUNS.length) % RUNS.length].name);
  byId("run-previous").addEventListener("click", () => step(-1));
  byId("run-next").addEventListener("click", () => step(1));
}

function choose(name) {
  if (!RUN.has(name)) return;
  chosen = RUN.get(name);
  browser.rows = chosen.samples;
  browser.page = 0;
  byId("run-choice").value = name;
  showFacts(chosen);
  markRun(chosen);
  fillSamples();
  drawAll();
}

/** Choose the run of a mark, and go to it. */
function chooseAndGo(name) {
  choose(name);
  byId("run").scrollIntoView();
}

function drawAll() {
  drawFrontier(chosen, chooseAndGo);
  if (!chosen) return;
  drawHistogram(chosen);
  drawCurves(chosen);
}

buildHeader();
buildLegend(() => drawFrontier(chosen, chooseAndGo));
buildScale(() => drawFrontier(chosen, chooseAndGo));
buildMethods();
buildSettings();
buildNats();
buildTests();
buildRuns(choose);
buildChooser();
buildSamples();
buildCurves(() => drawCurves(chosen));
buildCommands();
if (chosen) choose(chosen.name);
else {
  drawFrontier(null);
  byId("run").hidden = true;
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
