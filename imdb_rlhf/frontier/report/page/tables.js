// The tables of methods, settings, tests and runs, and the commands.

/** A heading row; a column is a text, or [text, class]. */
function heading(table, columns) {
  const cells = columns.map((column) => {
    const [text, className] = [].concat(column);
    const cell = make("th", className || "", text);
    cell.scope = "col";
    return cell;
  });
  table.append(make("thead", "", make("tr", "", ...cells)));
}

function buildMethods() {
  const table = byId("methods");
  heading(table, ["method", "knob", N(`score, K = ${F.score_kl}`), ...F.budgets.map((budget) => N(`R at ${budget}`)), N("efficiency"), N("seeds"), N("diverged")]);
  const body = make("tbody");
  for (const method of F.methods) {
    const spent = method.settings.map((each) => each.efficiency).filter(known);
    const ends = spent.length ? [Math.min(...spent.map((pair) => pair[0])), Math.max(...spent.map((pair) => pair[1]))] : null;
    const row = make("tr", "",
      methodCell(method.name),
      cell("name", knobName(method.knob) || "\u2013"),
      number(range(method.score, 2), bracket(method.score_ci, 2), "strong"),
      ...method.at_budget.map((at) => number(fixed(at.reward) + (at.mixed ? "~" : at.reached ? "" : "*"), bracket(at.reward_ci), at.reached && !at.mixed ? "" : "faint")),
      number(range(ends, 2)),
      withNote(number(String(method.seeds.length)), promptsOnly(method) && "prompts only"),
      number(method.diverged.length ? String(method.diverged.length) : "\u2013"),
    );
    body.append(row);
  }
  if (F.optimum) body.append(optimumRow());
  table.append(body);
  byId("methods-note").textContent =
    `Score: the area above the reference from 0 to ${F.score_kl} nats, as a share of the optimum's; it is a range because the optimum has two bounds. ` +
    "R at k: the reward at a budget of k nats; ~ if every checkpoint spent more (the number is a mixture with the reference), * if every one spent less. " +
    `Efficiency: the share of its KL that the optimum would need for the same reward, lowest to highest of the method's settings. In brackets: ${percent} intervals.`;
}

function optimumRow() {
  const o = F.optimum;
  const at = (values, kl) => {
    const right = o.kl.findIndex((each) => each >= kl);
    if (right < 0) return null;
    if (right === 0 || o.kl[right] === kl) return values[right];
    const share = (kl - o.kl[right - 1]) / (o.kl[right] - o.kl[right - 1]);
    return values[right - 1] + share * (values[right] - values[right - 1]);
  };
  const open = (budget) => !known(o.cap) && budget > o.trusted_kl; // nothing is known of a larger reward
  const bounds = F.budgets.map((budget) => [at(o.lower, budget), at(o.upper, budget), open(budget)]);
  return make("tr", "faint", cell("", "optimum"), cell("", ""), number("1"), ...bounds.map((pair) => number(!known(pair[0]) ? "\u2013" : pair[2] ? `\u2265 ${fixed(pair[0], 2)}` : range(pair.slice(0, 2), 2))), number("1"), number(""), number(""));
}

function buildSettings() {
  const table = byId("settings");
  heading(table, ["method", "setting", N("seeds"), N("KL, nats"), N("reward"), N("efficiency")]);
  const body = make("tbody");
  for (const method of F.methods) {
    for (const each of method.settings) {
      body.append(make("tr", "",
        methodCell(method.name),
        cell("", setting(method.knob, each.knob_value) || "\u2013"),
        withNote(number(String(each.seeds.length)), promptsOnly(each) && "prompts only"),
        number(fixed(each.kl, 2), bracket(each.kl_ci, 2)),
        number(fixed(each.reward), bracket(each.reward_ci)),
        number(range(each.efficiency, 2)),
      ));
    }
  }
  table.append(body);
  buildSpread();
}

/** What moves a run's number: the standard deviation that prompts, the training seed and the reference alone give it. */
function buildSpread() {
  const rows = F.methods.flatMap((method) => method.settings.filter((each) => each.spread && each.spread.kl.seed).map((each) => [method, each]));
  byId("spread-box").hidden = !rows.length;
  const parts = ["prompts", "seed", "reference"].filter((part) => rows.some(([, each]) => each.spread.kl[part]));
  const table = byId("spread");
  heading(table, ["method", "setting", N("runs"), ...["reward", "KL"].flatMap((axis) => parts.map((part) => N(`${axis}: ${part}`)))]);
  const cells = (axis, each, digits) => parts.map((part) => {
    const found = each.spread[axis][part];
    return found ? number(fixed(found.sd, digits), bracket(found.ci, digits)) : number("\u2013");
  });
  table.append(make("tbody", "", ...rows.map(([method, each]) => make("tr", "",
    methodCell(method.name), cell("", setting(method.knob, each.knob_value) || "\u2013"), number(String(each.spread.seeds * each.spread.references)),
    ...cells("reward", each, 4), ...cells("kl", each, 2)))));
  byId("spread-note").textContent = `The standard deviation that each part alone gives to the number of one run: the test prompts that were drawn, the seed of the policy's training, the training of the reference. In brackets: ${percent} intervals.`;
}

const NATS_PARTS = ["needed", "objective", "reward_model", "data", "optimisation"];

function buildNats() {
  const entries = F.nats || []; // a frontier drawn by an earlier version has none
  byId("nats-box").hidden = !entries.length;
  const table = byId("nats");
  heading(table, ["method", "setting", N("reward"), N("KL, nats"), N("optimum needs"), N("objective"), N("reward model"), N("data"), N("optimisation")]);
  const body = make("tbody");
  const reasons = [];
  for (const each of entries) {
    const cells = NATS_PARTS.map((name) => {
      const part = each.parts.find((one) => one.name === name);
      if (known(part.nats)) return number(fixed(part.nats, 2), bracket(part.ci, 2));
      if (!reasons.includes(part.why)) reasons.push(part.why);
      return number(`\u2013 (${reasons.indexOf(part.why) + 1})`, null, "faint");
    });
    body.append(make("tr", "", methodCell(each.method), cell("", setting(each.knob, each.knob_value) || "\u2013"),
      number(fixed(each.reward), bracket(each.reward_ci)), number(fixed(each.kl, 2), bracket(each.kl_ci, 2)), ...cells));
  }
  table.append(body);
  byId("nats-note").textContent =
    "Each part is a difference of KL at the setting's own reward, and they add up to its KL: what the optimum needs; what the population optimum of the method's loss needs beyond that; what it needs more because its reward is a learned one; what the method saves with the most data of these runs; and the rest, which is the optimisation's, with every part that is not known. " +
    reasons.map((why, place) => `(${place + 1}) ${why}.`).join(" ");
}

function buildTests() {
  byId("tests-box").hidden = !F.tests.length;
  const table = byId("tests");
  heading(table, ["first", "second", N("at KL, nats"), N("difference"), N(`${percent} interval`), N("p"), N("p, adjusted")]);
  const body = make("tbody");
  for (const test of F.tests) {
    const sure = test.p_adjusted < 1 - F.confidence ? "strong" : "";
    body.append(make("tr", "",
      methodCell(test.first), methodCell(test.second), number(String(test.kl)),
      number(fixed(test.difference), null, sure), number(bracket(test.ci)),
      number(chance(test.p)), number(chance(test.p_adjusted), null, sure),
    ));
  }
  table.append(body);
  byId("tests-note").textContent = `Difference: the reward of the first minus that of the second, on the same prompts and at the same KL. The adjusted p accounts for all ${F.tests.length} comparisons; it is bold below ${+(1 - F.confidence).toPrecision(3)}.`;
}

const chance = (p) => (known(p) ? (p < 0.001 ? "< 0.001" : fixed(p)) : "\u2013");

/** A cell, with a note under its text if there is one. */
function withNote(element, note) {
  if (note) element.append(make("small", "", note));
  return element;
}

/** That a run's KL is off its target, by how much and why. */
const missed = (run) => `target missed${known(run.kl_last_fifth) ? `: ${fixed(run.kl_last_fifth, 2)} nats` : ""}${run.missed_because ? `; ${run.missed_because}` : ""}`;

// The columns of runs: heading, sort key, cell, and whether it is a number.
const RUN_COLUMNS = [
  ["method", (run) => METHODS.indexOf(run.method), (run) => withNote(methodCell(run.method), DIVERGED.has(run.name) && "diverged")],
  ["setting", (run) => run.knob_value, (run) => withNote(cell("name", setting(run.knob, run.knob_value) || "\u2013"), run.missed_target && missed(run)), true],
  ["seed", (run) => run.seed, (run) => number(String(run.seed)), true],
  ["reward", (run) => run.reward, (run) => number(fixed(run.reward)), true],
  ["KL, nats", (run) => run.kl, (run) => number(fixed(run.kl, 2)), true],
  ["win rate", (run) => run.win_rate, (run) => number(fixed(run.win_rate)), true],
  ["distinct-2", (run) => run.distinct_2, (run) => number(fixed(run.distinct_2)), true],
  ["length", (run) => run.length, (run) => number(fixed(run.length, 1)), true],
  ["time, s", (run) => run.seconds, (run) => number(fixed(run.seconds, 0)), true],
  ["folder", (run) => run.name, (run) => cell("folder", visible(run.name))],
];

function buildRuns(choose) {
  const table = byId("runs");
  const body = make("tbody");
  const lines = new Map(RUNS.map((run) => {
    const row = make("tr", "", ...RUN_COLUMNS.map(([, , show]) => show(run)));
    row.dataset.run = run.name;
    row.tabIndex = 0;
    row.addEventListener("click", () => choose(run.name));
    row.addEventListener("keydown", (event) => event.key === "Enter" && choose(run.name));
    return [run, row];
  }));
  const fill = () => {
    const rows = state.column === null ? RUNS : ordered(RUNS, RUN_COLUMNS[state.column][1], state.descending);
    body.replaceChildren(...rows.map((run) => lines.get(run)));
  };
  const state = sortable(table, RUN_COLUMNS, fill);
  table.append(body);
  fill();
}

function markRun(run) {
  for (const row of byId("runs").querySelectorAll("tbody tr")) row.setAttribute("aria-current", String(row.dataset.run === run.name));
}

function buildCommands() {
  byId("redraw").textContent = visible(DATA.redraw);
  const first = RUNS.length && RUNS[0].config ? new Set(RUNS[0].config) : null;
  for (const run of RUNS) {
    const box = make("details", "", make("summary", "", make("code", "", visible(run.command)), make("span", "", visible(run.name))));
    box.addEventListener("toggle", () => {
      if (box.children.length > 1) return;
      if (!run.config) {
        box.append(make("p", "hint", "Its config.yaml is missing."));
        return;
      }
      const lines = run.config.map((place) => make("span", first && !first.has(place) ? "own" : "", visible(DATA.texts[place]) + "\n"));
      box.append(make("pre", "", ...lines));
    });
    byId("commands").append(box);
  }
}
