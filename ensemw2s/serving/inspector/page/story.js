// The run's story: what was asked, what came out, round by round. Numbers and sentences are the server's.

import { get } from "./api.js";
import { columns, intervals, lines } from "./chart.js";
import { byId, el } from "./dom.js";

const LONG = 16;
const ERRORS = { train: "on easy_train", out_of_bag: "out of bag", easy_val: "on easy_val" };

function table(content) {
  const kind = (i, cell = "") => (content.numeric.includes(i) ? "number" : cell.length > LONG ? "long" : "");
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": content.name },
    el(
      "table",
      {},
      el("caption", {}, content.name),
      el("thead", {}, el("tr", {}, content.header.map((name, i) => el("th", { scope: "col", class: kind(i) }, name)))),
      el(
        "tbody",
        {},
        content.rows.map((row, n) =>
          el(
            "tr",
            { class: content.marked.includes(n) ? "marked" : "" },
            row.map((cell, i) => (i === 0 ? el("th", { scope: "row", class: kind(i, cell) }, cell) : el("td", { class: kind(i, cell) }, cell))),
          ),
        ),
      ),
    ),
    content.notes.map((note) => el("p", { class: "note" }, note)),
  );
}

const figure = (title, drawing, note) =>
  el("figure", {}, el("figcaption", {}, title), drawing, note ? el("p", { class: "note" }, note) : null);

function roundFigures(story) {
  const ticks = story.members.map((m) => `${m.round}${m.kept ? "" : " ✗"}`);
  const kinds = Object.keys(ERRORS).filter((kind) => story.members.some((m) => m.errors?.[kind] != null));
  const errors = [
    ...kinds.map((kind) => ({ label: ERRORS[kind], values: story.members.map((m) => m.errors[kind] ?? null) })),
    { label: "prior error", values: story.members.map((m) => m.prior_error) },
  ];
  const alphas = story.members.map((m, i) => ({ label: `round ${ticks[i]}`, value: m.alpha, hollow: !m.kept, text: m.alpha.toFixed(2) }));
  const dropped = story.members.some((m) => !m.kept) ? "✗ and hollow: dropped, no better than the prior." : null;
  return [
    figure("Error of each round's member", lines("Errors by round", errors, ticks), dropped),
    figure("Weight in the vote (alpha)", columns("Weight in the vote by round", alphas), dropped),
  ];
}

function finished(story) {
  const rounds = Math.max(...Object.values(story.staged).map((values) => values.length), 0);
  const staged = Object.entries(story.staged).map(([label, values]) => ({ label, values: Array.from({ length: rounds }, (_, i) => values[i] ?? null) }));
  const effective = story.effective.map((size, i) => ({ label: `round ${i + 1}`, value: size / story.units, text: `${Math.round((100 * size) / story.units)} %` }));
  const compared = story.comparison.map((part) =>
    figure(
      `Answered right: ${part.split}`,
      intervals(
        `Share answered right on ${part.split}, with intervals`,
        part.systems.map((s) => ({ ...s, strong: s.key === "student_ensemble" })),
        part.chance ?? null,
      ),
      `Lines: ${Math.round(story.level * 100)} % bootstrap intervals.${part.chance == null ? "" : ` Dashed: ${story.chance_name}.`} Filled: the student of the ensemble.`,
    ),
  );
  const { tables } = story;
  return [
    el("section", {}, el("h2", {}, "What was asked"), el("p", {}, story.question)),
    el("section", {}, el("h2", {}, "What came out"), story.answers.map((text) => el("p", { class: "lead" }, text)), story.notes.map((text) => el("p", {}, text))),
    story.warnings.length ? el("section", { class: "panel" }, el("h2", {}, "Warnings"), el("ul", {}, story.warnings.map((text) => el("li", {}, text)))) : null,
    el("section", {}, el("h2", {}, "Comparison"), el("div", { class: "charts" }, compared), tables.comparison && table(tables.comparison), tables.differences && table(tables.differences)),
    el(
      "section",
      {},
      el("h2", {}, "Rounds"),
      el(
        "div",
        { class: "charts" },
        roundFigures(story),
        rounds ? figure("Answered right by the first members", lines("Share answered right by number of members", staged, Array.from({ length: rounds }, (_, i) => `${i + 1}`), story.selected ? story.selected - 1 : null), story.selection) : null,
        effective.length ? figure(`Effective sample size, of ${story.units} ${story.unit}`, columns("Effective sample size by round", effective), "After each round's reweighting: how many would weigh as much if all were equal.") : null,
      ),
      tables.members && table(tables.members),
      tables.effective && table(tables.effective),
    ),
    tables.splits ? el("section", {}, el("h2", {}, "Splits"), table(tables.splits)) : null,
  ];
}

function unfinished(story) {
  return [
    el("section", {}, el("p", { class: "lead" }, "This run is not finished: its comparison is not there yet."), el("p", {}, `Done so far: ${story.stages.join(", ")}.`)),
    story.members.length ? el("section", {}, el("h2", {}, "Rounds"), el("div", { class: "charts" }, roundFigures(story))) : null,
  ];
}

export async function showStory() {
  const story = await get("story");
  byId("story").replaceChildren(...(story.finished ? finished(story) : unfinished(story)).filter(Boolean));
}
