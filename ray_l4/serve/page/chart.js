// The chart of scores: a line for each task, a place for each stage.

const SERIES = 8;
const DASHES = [null, "7 3", "2 3", "9 3 2 3"];
const MARGIN = { left: 34, right: 12, top: 10, bottom: 26 };
const HEIGHT = 210;

const style = (index) => ({ class: `line s${index % SERIES}`, "stroke-dasharray": DASHES[Math.floor(index / 2) % DASHES.length] });

/** Draw the scores of finished stages. `names`: tasks; `width`: pixels. */
function drawn(stages, names, width) {
  const inner = { width: width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
  const x = (place) => MARGIN.left + (stages.length > 1 ? (place * inner.width) / (stages.length - 1) : inner.width / 2);
  const y = (score) => MARGIN.top + inner.height * (1 - score / 100);
  const picture = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": inWords(stages, names) });
  for (const score of [0, 25, 50, 75, 100]) {
    picture.append(
      shape("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(score), y2: y(score) }),
      shape("text", { x: MARGIN.left - 6, y: y(score) + 4, "text-anchor": "end" }, String(score)),
    );
  }
  const every = Math.ceil(stages.length / Math.max(1, Math.floor(inner.width / 60)));
  stages.forEach((stage, place) => {
    if (stage.served) {
      picture.append(shape("line", { class: "served", x1: x(place), x2: x(place), y1: MARGIN.top, y2: y(0) }));
    }
    if (place % every === 0) {
      const anchor = stages.length > 1 && place === stages.length - 1 ? "end" : stages.length > 1 && place === 0 ? "start" : "middle";
      picture.append(shape("text", { x: x(place), y: HEIGHT - 8, "text-anchor": anchor }, `stage ${stage.stage}`));
    }
  });
  names.forEach((name, index) => picture.append(...series(stages, name, index, x, y)));
  return picture;
}

/** Return the line of a task, from the first stage that was scored on it, and a mark for each score. */
function series(stages, name, index, x, y) {
  const points = stages
    .map((stage, place) => ({ place, score: stage.scores[name], learned: stage.tasks.includes(name) }))
    .filter((point) => point.score !== null && point.score !== undefined);
  const path = points.map((point, number) => `${number ? "L" : "M"}${x(point.place)} ${y(point.score)}`).join("");
  const marks = points.map((point) =>
    shape(
      "circle",
      { class: `mark s${index % SERIES}`, cx: x(point.place), cy: y(point.score), r: point.learned ? 5.5 : 3 },
      shape("title", {}, `${name} after stage ${stages[point.place].stage}: ${percent(point.score)}`),
    ),
  );
  return [...(points.length > 1 ? [shape("path", { ...style(index), d: path })] : []), ...marks];
}

/** Return the entries of the legend. */
function legendOf(names) {
  return names.map((name, index) =>
    element(
      "li",
      {},
      shape(
        "svg",
        { viewBox: "0 0 30 12", "aria-hidden": "true" },
        shape("path", { ...style(index), d: "M0 6L30 6" }),
        shape("circle", { class: `mark s${index % SERIES}`, cx: 15, cy: 6, r: 4 }),
      ),
      element("span", {}, name),
    ),
  );
}

function inWords(stages, names) {
  const last = stages[stages.length - 1];
  const now = names.map((name) => `${name} ${percent(last.scores[name])}`).join(", ");
  return `Scores after ${count(stages.length, "stage")}; after the last one: ${now}. The list of stages below has them all.`;
}
