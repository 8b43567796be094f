// One token: what the vote was, and each member's own first choices.

import { bars, byId, el, percent, visible } from "./dom.js";
import { heads } from "./tokens.js";

const PATHS = {
  certified: "Proven by the first choices that the members sent: no other token can have more of the vote.",
  candidates: "The first choices left it open; the members were asked for the exact values of a few tokens.",
  wider: "The first choices left it open; the members were asked for more of them.",
  full: "The first choices left it open; the members sent their whole distributions.",
  forced: "You put this token here; the members did not choose it.",
};

function rows(tokens, chosen) {
  return tokens.map(([id, text, share]) => ({ name: visible(text), share, chosen: id === chosen, id }));
}

function withChosen(say, token) {
  const found = rows(say.top, token.id);
  if (found.some((row) => row.chosen)) return found;
  return [...found, { name: visible(token.text), share: say.voted, chosen: true, note: "further down" }];
}

/**
 * @param names of the members
 * @param weights as they were used
 * @param onForce called with a token id to go on with it instead
 */
export function showDetail(token, place, names, weights, onForce) {
  const sum = token.members.reduce((all, say, i) => all + (say === null ? 0 : weights[i]), 0);
  const [same, all] = heads(token);
  byId("detail-title").textContent = `Token ${place + 1}: ${visible(token.text)}`;
  const forced = token.path === "forced";
  const lead = forced
    ? `The vote gave it ${percent(token.probability)}.`
    : `Voted with ${percent(token.probability)}; the first choice of ${same} of ${all} member${all === 1 ? "" : "s"}.`;
  const voted = rows(token.top, token.id).map((row) => ({
    ...row,
    action: row.chosen
      ? null
      : el("button", { type: "button", "aria-label": `Go on with ${row.name} instead`, onclick: () => onForce(row.id) }, "Use"),
  }));
  const members = token.members.map((say, i) =>
    el(
      "div",
      {},
      el("h3", {}, names[i]),
      say === null
        ? el("p", { class: "muted" }, "Did not vote.")
        : bars(`weight ${percent(weights[i] / sum)} of the vote`, withChosen(say, token)),
    ),
  );
  byId("detail-body").replaceChildren(
    el("p", {}, lead),
    bars("The vote", voted, { actions: true }),
    el("p", { class: "note" }, PATHS[token.path] ?? ""),
    el("div", { class: "members" }, members),
  );
  byId("detail").hidden = false;
}
