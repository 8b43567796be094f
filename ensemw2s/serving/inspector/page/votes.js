// The members of the chosen model: switches and sliders, and the weights that they stand for.

import { byId, el, percent } from "./dom.js";

const STEPS = 100;
const PAUSE = 350;

export class Votes {
  constructor(onChange) {
    this.onChange = onChange;
    this.members = [];
    this.timer = null;
    byId("reset").addEventListener("click", () => {
      this.show(this.members);
      this.changed(0);
    });
  }

  /** Begin with a model's own weights. */
  show(members) {
    this.members = members;
    const largest = Math.max(...members.map((m) => m.weight));
    this.rows = members.map((member, place) => {
      const own = Math.max(1, Math.round((member.weight / largest) * (STEPS / 2)));
      const name = `member-${place}`;
      const on = el("input", { type: "checkbox", id: `${name}-on`, checked: true });
      const slider = el("input", {
        type: "range", id: `${name}-weight`, min: 1, max: STEPS, value: own, "aria-label": `Weight of ${member.name}`,
      });
      const share = el("output", { for: `${name}-on ${name}-weight`, "aria-live": "off" });
      on.addEventListener("change", () => this.changed(0));
      slider.addEventListener("input", () => this.changed(PAUSE));
      const item = el("li", {}, el("label", { for: on.id }, on, member.name), share, slider);
      return { on, slider, share, own, item };
    });
    byId("vote-list").replaceChildren(...this.rows.map((row) => row.item));
    this.draw();
  }

  get touched() {
    return this.rows.some((row) => !row.on.checked || Number(row.slider.value) !== row.own);
  }

  /** How many members are switched on. */
  get voting() {
    return this.rows.filter((row) => row.on.checked).length;
  }

  /** Weights for the server, null for the run's own. */
  get weights() {
    if (!this.touched) return null;
    return this.rows.map((row, place) => {
      if (!row.on.checked) return null;
      // A slider that was left alone stands for the exact weight, not for its rounded place.
      const factor = Number(row.slider.value) / row.own;
      return this.members[place].weight * factor;
    });
  }

  changed(pause) {
    this.draw();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.onChange(), pause);
  }

  draw() {
    const weights = this.weights ?? this.members.map((m) => m.weight);
    const sum = weights.reduce((a, b) => a + (b ?? 0), 0);
    for (const [place, row] of this.rows.entries()) {
      row.slider.disabled = !row.on.checked;
      const text = row.on.checked ? percent((weights[place] ?? 0) / sum) : "off";
      row.share.value = row.on.checked ? `${text} of the vote` : "does not vote";
      row.slider.setAttribute("aria-valuetext", row.share.value);
    }
    byId("reset").disabled = !this.touched;
    byId("votes-note").textContent = this.voting === 0
      ? "Nobody votes: switch at least one member on."
      : "Switch a member off or change its weight: the answer is voted on again.";
  }
}
