// Questions of the run's splits, a page at a time. What is right is not among what the server sends.

import { get } from "./api.js";
import { byId, el } from "./dom.js";

const PAGE = 8;
const PAUSE = 250;

export class Samples {
  constructor(onPick, onProblem) {
    this.onPick = onPick;
    this.onProblem = onProblem;
    this.offset = 0;
    this.asked = 0;
    byId("samples").addEventListener("toggle", () => byId("samples").open && this.load());
    byId("split").addEventListener("change", () => this.from(0));
    byId("find").addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.from(0), PAUSE);
    });
    byId("earlier").addEventListener("click", () => this.from(this.offset - PAGE));
    byId("later").addEventListener("click", () => this.from(this.offset + PAGE));
  }

  show(splits) {
    const options = Object.entries(splits).map(([name, n]) => el("option", { value: name }, `${name} (${n})`));
    byId("split").replaceChildren(...options);
    if ("test" in splits) byId("split").value = "test";
  }

  from(offset) {
    this.offset = Math.max(0, offset);
    this.load();
  }

  async load() {
    const number = ++this.asked;
    const split = byId("split").value;
    let page;
    try {
      page = await get("samples", { split, offset: this.offset, limit: PAGE, find: byId("find").value });
    } catch (problem) {
      this.onProblem(problem);
      return;
    }
    if (number !== this.asked) return;
    byId("sample-list").replaceChildren(
      ...page.data.map((sample) =>
        el("li", {}, el("button", { type: "button", onclick: () => this.onPick({ ...sample, split }) }, sample.question)),
      ),
    );
    const last = this.offset + page.data.length;
    byId("sample-place").textContent = page.total ? `${this.offset + 1} to ${last} of ${page.total}` : "no such question";
    byId("earlier").disabled = this.offset === 0;
    byId("later").disabled = last >= page.total;
  }
}
