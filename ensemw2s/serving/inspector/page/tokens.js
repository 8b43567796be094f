// The answer as a row of tokens, coloured (and underlined) by how the members agree.

import { byId, el, visible } from "./dom.js";

/** Share of the voting weight whose own first choice is the token that stands there. */
export function agreement(token, weights) {
  let all = 0;
  let same = 0;
  token.members.forEach((say, place) => {
    if (say === null) return;
    all += weights[place];
    if (say.top[0][0] === token.id) same += weights[place];
  });
  return all === 0 ? 0 : same / all;
}

/** How many members vote, and how many of them had the token first. */
export function heads(token) {
  const says = token.members.filter((say) => say !== null);
  return [says.filter((say) => say.top[0][0] === token.id).length, says.length];
}

function level(share) {
  if (share > 0.9999) return "all";
  return share >= 0.5 ? "most" : "few";
}

export class Tokens {
  constructor(onSelect) {
    this.onSelect = onSelect;
    this.box = byId("tokens");
    this.clear();
    this.box.addEventListener("keydown", (event) => this.move(event));
  }

  clear() {
    this.tokens = [];
    this.buttons = [];
    this.selected = null;
    this.box.replaceChildren();
  }

  get ids() {
    return this.tokens.map((token) => token.id);
  }

  /** A new answer; the place that was looked at stays looked at, and the first token that differs is marked. */
  begin(event) {
    const { ids, selected } = this;
    // Replacing the focused token must not throw the keyboard's place away.
    this.hadFocus = this.box.contains(document.activeElement);
    this.clear();
    this.wanted = selected;
    this.weights = event.weights;
    this.earlier = ids;
  }

  add(token) {
    const place = this.tokens.length;
    const share = agreement(token, this.weights);
    const [same, all] = heads(token);
    const shown = token.text === "" ? "·" : token.text.replace(/\n/g, "↵\n").replace(/\t/g, "⇥");
    const kinds = ["token", level(share), token.path === "forced" ? "forced" : "", token.special ? "cut" : ""];
    const button = el(
      "button",
      {
        type: "button",
        class: kinds.filter(Boolean).join(" "),
        "aria-label": `token ${place + 1}: ${visible(token.text)}; first choice of ${same} of ${all}`,
        "aria-pressed": "false",
        "aria-controls": "detail",
        tabindex: place === 0 ? 0 : -1,
        onclick: () => this.select(place, true),
      },
      token.special ? visible(token.text) : shown,
    );
    if (place < this.earlier.length && token.id !== this.earlier[place]) {
      this.box.append(el("span", { class: "anew" }, "changed from here ▸"));
      this.earlier = [];
    }
    this.tokens.push(token);
    this.buttons.push(button);
    this.box.append(button);
    if (place === this.wanted) {
      this.select(place, false);
      if (this.hadFocus) button.focus();
    }
  }

  /** The answer is whole: tokens that are no part of its text are marked, and the most disputed one is shown. */
  end(event) {
    this.buttons.forEach((button, place) => button.classList.toggle("cut", place >= event.shown));
    if (this.selected !== null || this.tokens.length === 0) return;
    const shares = this.tokens.map((token) => agreement(token, this.weights));
    this.select(shares.indexOf(Math.min(...shares)), false);
  }

  select(place, byHand) {
    this.selected = place;
    this.buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === place));
      button.tabIndex = i === place ? 0 : -1;
    });
    this.onSelect(this.tokens[place], place, byHand);
  }

  move(event) {
    const now = this.buttons.indexOf(document.activeElement);
    const moves = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: this.buttons.length - 1 };
    if (now < 0 || !(event.key in moves)) return;
    event.preventDefault();
    const next = this.buttons[Math.max(0, Math.min(this.buttons.length - 1, moves[event.key]))];
    this.buttons.forEach((button) => (button.tabIndex = button === next ? 0 : -1));
    next.focus();
  }
}
