// What was learned, what is served, what waits: the overview of the run, asked for every few seconds.

const EVERY = 4000; // milliseconds
const LONGEST = 30000;
const NEWEST = 6; // stages that are not folded away

let overview = null;

/** Ask for the overview again and again, more seldom while the server cannot be reached. */
async function watch() {
  let wait = EVERY;
  for (;;) {
    if (!document.hidden) wait = (await refresh()) ? EVERY : Math.min(LONGEST, wait * 1.5);
    await new Promise((resolve) => {
      const again = () => {
        clearTimeout(timer);
        document.removeEventListener("visibilitychange", again);
        resolve();
      };
      const timer = setTimeout(again, wait);
      document.addEventListener("visibilitychange", again);
    });
  }
}

/** Ask once, and show what came. Returns whether the server could be asked. */
async function refresh() {
  try {
    overview = await send("GET", "/v1/overview");
  } catch (error) {
    if (error.status !== 404) {
      tell("connection", `${error.message} This page keeps trying.`);
      return false;
    }
    overview = await withoutRun();
    if (overview === null) return false;
  }
  tell("connection", "");
  showHeader();
  showTasksToChoose();
  if (overview.stages) showLearned();
  return true;
}

/** Return what is known of a checkpoint that is served without a run: it learns nothing more. */
async function withoutRun() {
  try {
    const found = await send("GET", "/healthz");
    const tasks = found.tasks.map((name) => ({ name, question: null, waiting: 0, is_new: false }));
    return { name: found.model, tasks, serving: { ...found, model: found.model }, stages: null };
  } catch (error) {
    tell("connection", `${error.message} This page keeps trying.`);
    return null;
  }
}

function showHeader() {
  const { serving, served } = overview;
  byId("run-name").textContent = overview.name;
  document.title = `${overview.name} · ray-l4`;
  let text = "No stage is finished yet, so there is nothing to ask. This page shows when there is.";
  if (serving && serving.stage === null) text = "A checkpoint answers, which does not learn.";
  else if (serving) {
    text = `Method ${overview.method}. Stage ${serving.stage}, student ${serving.student} answers.`;
    if (served && (served.stage !== serving.stage || served.student !== serving.student)) {
      text += ` The run has promoted stage ${served.stage}, student ${served.student}.`;
    }
  }
  byId("serving").textContent = text;
  document.querySelector("main").classList.toggle("alone", !overview.stages);
}

function showLearned() {
  byId("learned-panel").hidden = false;
  const waiting = overview.tasks.reduce((sum, task) => sum + task.waiting, 0);
  const figures = [
    ["Mean score", percent(overview.average)],
    ["Forgotten so far", percent(overview.forgetting)],
    ["Waiting examples", String(waiting)],
  ];
  replaceIfChanged(byId("figures"), figures.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  showLearning();
  byId("problems").hidden = !overview.problems.length;
  replaceIfChanged(byId("problems"), overview.problems.map((problem) => element("li", {}, problem)));
  showChart();
  replaceIfChanged(byId("tasks"), tableOfTasks());
  const stages = [...overview.stages].reverse().map(stageItem);
  replaceIfChanged(byId("stages"), stages.slice(0, NEWEST));
  replaceIfChanged(byId("earlier-stages"), stages.slice(NEWEST));
  byId("earlier").hidden = stages.length <= NEWEST;
  byId("updated").textContent = `As of ${moment(overview.when)}. Renewed every ${EVERY / 1000} seconds.`;
}

function showLearning() {
  const now = overview.learning;
  byId("learning").hidden = now === null;
  if (now === null) return;
  const how = now.running ? `${now.epochs_done} of ${count(now.epochs, "epoch")} done` : "interrupted; it goes on with ray-l4 resume";
  replaceIfChanged(byId("learning"), [
    element("span", {}, now.running ? "Learning now: " : "Not finished: "),
    element("strong", {}, `stage ${now.stage}, ${now.tasks.join(", ")}`),
    ` (${how})`,
    element("progress", { max: now.epochs, value: now.epochs_done, "aria-label": "Epochs done" }),
  ]);
}

function showChart() {
  const finished = overview.stages.filter((stage) => stage.state === "finished");
  const names = finished.length ? Object.keys(finished[0].scores) : [];
  byId("chart").hidden = !names.length;
  if (!names.length) return;
  const width = Math.max(260, Math.round(byId("chart").clientWidth));
  replaceIfChanged(byId("drawing"), [drawn(finished, names, width)]);
  replaceIfChanged(byId("legend"), legendOf(names));
}

function tableOfTasks() {
  const head = ["Task", "Score", "Best", "Forgotten", "Waiting"].map((name) => element("th", { scope: "col" }, name));
  const rows = overview.tasks.map((task) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, task.name, ...(task.is_new ? [" ", element("span", { class: "tag plain" }, "new")] : [])),
      ...[percent(task.score), percent(task.best), percent(task.forgetting), String(task.waiting)].map((text) => element("td", {}, text)),
    ),
  );
  return [
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows),
  ];
}

function stageItem(stage) {
  const tags = [];
  if (stage.served) tags.push(["good", "served"]);
  if (stage.promoted === false) tags.push(["bad", "refused"]);
  if (stage.state !== "finished") tags.push(["plain", stage.state]);
  const byThen = new Set(overview.stages.filter((other) => other.stage <= stage.stage).flatMap((other) => other.tasks));
  const scores = Object.entries(stage.scores).filter(([task]) => byThen.has(task));
  const facts = [stage.finished ? moment(stage.finished) : null, stage.student === null ? null : `best student ${stage.student}`];
  return element(
    "li",
    { class: stage.served ? "served" : null },
    element(
      "div",
      { class: "row" },
      element("strong", {}, `Stage ${stage.stage}: ${stage.tasks.join(", ")}`),
      ...tags.map(([kind, text]) => element("span", { class: `tag ${kind}` }, text)),
    ),
    element("span", { class: "hint" }, facts.filter((fact) => fact !== null).join(" · ")),
    scores.length ? element("span", { class: "hint" }, scores.map(([task, score]) => `${task} ${percent(score)}`).join(" · ")) : null,
    stage.why ? element("span", { class: "hint" }, `${stage.why} (${moment(stage.when)})`) : null,
  );
}
