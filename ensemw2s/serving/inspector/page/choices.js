// A question with choices: the vote on each of them, and what each member would have chosen.

import { bars, el, percent } from "./dom.js";

/**
 * @param result of the server
 * @param choices texts
 * @param names of the members
 * @param truth index of the right choice, or null where it is not known
 */
export function choiceList(result, choices, names, truth) {
  const sum = result.members.reduce((all, own, i) => all + (own === null ? 0 : result.weights[i]), 0);
  return el(
    "ol",
    { class: "options" },
    choices.map((text, place) => {
      const chosen = place === result.choice;
      const rows = [
        { name: "the vote", share: result.scores[place], chosen },
        ...names.map((name, i) =>
          result.members[i] === null
            ? null
            : {
                name,
                beside: `weight ${percent(result.weights[i] / sum)}`,
                share: result.members[i][place],
                note: result.votes[name] === place ? "its choice" : null,
              },
        ),
      ].filter(Boolean);
      return el(
        "li",
        { class: chosen ? "chosen" : "" },
        el(
          "h3",
          {},
          text,
          chosen ? el("span", { class: "badge" }, "voted") : null,
          truth === place ? el("span", { class: "badge" }, "right") : null,
        ),
        bars(`Shares of choice ${place + 1}`, rows, { unseen: true }),
      );
    }),
  );
}
