// Questions, answers, and what people say about them.

/** What was asked last, with its answer; what people say is about this, whatever stands in the fields by then. */
let asked = null;

const taskNamed = (name) => overview?.tasks.find((task) => task.name === name);
const isLearned = (name) => Boolean(overview?.serving?.tasks.includes(name));
const stageName = (number) => overview?.stages?.[number]?.name ?? "new";
const takesFeedback = () => Boolean(overview?.stages);

/** Return the example in the fields. */
function typed() {
  const question = byId("question").value;
  const example = { task: byId("task").value, context: byId("context").value };
  return question.trim() ? { ...example, question } : example;
}

function showTasksToChoose() {
  const select = byId("task");
  const chosen = select.value;
  replaceIfChanged(
    select,
    overview.tasks.map((task) => element("option", { value: task.name }, isLearned(task.name) ? task.name : `${task.name} (not learned yet)`)),
  );
  if (taskNamed(chosen)) select.value = chosen;
  showTask();
}

/** Say what can be done with the chosen task: asked, or only taught. */
function showTask() {
  const task = taskNamed(byId("task").value);
  const learned = task !== undefined && isLearned(task.name);
  byId("ask").disabled = !learned || isAsking;
  byId("task-note").textContent = task && !learned ? "Not learned yet: give examples of it, each with its right answer." : "";
  const usual = task?.question ?? overview.serving?.questions?.[task?.name];
  byId("question-hint").textContent = usual ? `Leave it empty to ask what all examples of this task ask: ${usual}` : "";
  byId("new-task").hidden = !takesFeedback();
  if (asked === null || asked.example.task !== task?.name) {
    const teaches = task !== undefined && !learned && takesFeedback();
    byId("correct-form").hidden = !teaches;
    if (teaches) byId("correction-label").textContent = "The right answer";
  }
}

let isAsking = false;

async function ask() {
  if (isAsking || byId("ask").disabled) return;
  forget();
  isAsking = true;
  byId("ask").disabled = true;
  byId("ask-state").textContent = "Asking …";
  const example = typed();
  const began = performance.now();
  try {
    showAnswer(example, await send("POST", "/v1/answers", example), (performance.now() - began) / 1000);
  } catch (error) {
    tell("ask-error", error.message);
  } finally {
    isAsking = false;
    byId("ask-state").textContent = "";
    showTask();
  }
}

function showAnswer(example, found, seconds) {
  asked = { example, answer: found.answer };
  byId("answer-block").hidden = false;
  byId("answer").textContent = found.answer.trim() ? found.answer : "(an empty answer)";
  byId("answer").classList.toggle("none", !found.answer.trim());
  const place = found.stage === null ? "From this checkpoint" : `From stage ${found.stage} (${stageName(found.stage)}), student ${found.student}`;
  const notes = [`${place}, in ${seconds.toFixed(1)} s.`];
  if (found.finish_reason === "length") notes.push("It was cut off: it has as many tokens as an answer may have.");
  if (found.context_cut) notes.push("The context was too long; a part of it was left out.");
  byId("answer-place").textContent = notes.join(" ");
  byId("judge").hidden = !takesFeedback();
  byId("right").disabled = !found.answer.trim();
}

/** Forget what was said about the last answer, before another question. */
function forget() {
  asked = null;
  for (const id of ["answer-block", "judge", "correct-form"]) byId(id).hidden = true;
  for (const id of ["ask-error", "feedback-error", "feedback-state"]) tell(id, "");
  byId("wrong").setAttribute("aria-expanded", "false");
  byId("correction").value = "";
}

function correct() {
  byId("wrong").setAttribute("aria-expanded", "true");
  byId("correct-form").hidden = false;
  byId("correction-label").textContent = "What would have been right?";
  byId("correction").value = asked.answer;
  byId("correction").focus();
  byId("correction").select();
}

/** Store the example with its right answer. `given`: what the model answered, if it was asked. */
async function store(example, answer, given) {
  tell("feedback-error", "");
  tell("feedback-state", "");
  if (!answer.trim()) {
    tell("feedback-error", "The answer is empty. Type what would be right.");
    byId("correction").focus();
    return;
  }
  const buttons = ["right", "wrong", "store"].map(byId);
  for (const button of buttons) button.disabled = true;
  try {
    const found = await send("POST", "/v1/feedback", given === undefined ? { ...example, answer } : { ...example, answer, given });
    const waits = `${count(found.waiting, "example")} of ${found.task} ${found.waiting === 1 ? "waits" : "wait"} to be learned.`;
    const had = found.duplicate ? "This example was there already." : "Stored.";
    afterStoring();
    tell("feedback-state", `${had} ${waits}`);
    refresh();
  } catch (error) {
    tell("feedback-error", error.message);
  } finally {
    for (const button of buttons) button.disabled = false;
  }
}

/** Make room for the next example, and let the keyboard go on there. */
function afterStoring() {
  byId("judge").hidden = true;
  byId("correct-form").hidden = true;
  byId("correction").value = "";
  if (asked === null) byId("context").value = "";
  asked = null;
  showTask();
  byId("context").focus();
}

const later = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds, true));

async function beginTask() {
  const question = byId("new-question").value.trim();
  const wanted = { task: byId("new-name").value.trim(), metric: byId("new-metric").value };
  tell("new-task-error", "");
  try {
    await send("POST", "/v1/tasks", question ? { ...wanted, question } : wanted);
    byId("new-task-form").reset();
    byId("new-task").open = false;
    do await refresh();
    while (taskNamed(wanted.task) === undefined && (await later(1000)));
    byId("task").value = wanted.task;
    forget();
    showTask();
    byId("context").focus();
  } catch (error) {
    tell("new-task-error", error.message);
  }
}

/** Let a form do something instead of leaving the page. */
function onSubmit(id, action) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
}

onSubmit("ask-form", ask);
onSubmit("correct-form", () =>
  asked === null ? store(typed(), byId("correction").value) : store(asked.example, byId("correction").value, asked.answer),
);
onSubmit("new-task-form", beginTask);
byId("right").addEventListener("click", () => store(asked.example, asked.answer, asked.answer));
byId("wrong").addEventListener("click", correct);
byId("task").addEventListener("change", () => {
  forget();
  showTask();
});
for (const id of ["ask-form", "correct-form"]) {
  byId(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      byId(id).requestSubmit();
    }
  });
}
window.addEventListener("resize", () => overview?.stages && showChart());
watch();
