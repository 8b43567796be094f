// Asking, stopping, and voting again: what was asked last is asked anew when the weights change.

import { events, get, post } from "./api.js";
import { choiceList } from "./choices.js";
import { showDetail } from "./detail.js";
import { byId, el, percent, visible } from "./dom.js";
import { Samples } from "./samples.js";
import { heads, Tokens } from "./tokens.js";
import { Votes } from "./votes.js";

const TOP = 5;

/** Members that were asked for their vote and did not give it: they are down, and a quorum answered. */
const missing = (answer, asked) =>
  answer.ensemw2s.voted < asked ? ` Only ${answer.ensemw2s.voted} of ${asked} members voted.` : "";

const quoted = (text) => `“${visible(text.trim()).replace(/\.$/, "")}”`;

export class Ask {
  /** @param onProblem shows a Problem, null takes it away */
  constructor(onProblem) {
    this.onProblem = onProblem;
    this.last = null;
    this.forced = [];
    this.picked = null;
    this.running = null;
    this.tokens = new Tokens((token, place, byHand) => this.look(token, place, byHand));
    this.votes = new Votes(() => this.voteAgain());
    this.samples = new Samples((sample) => this.pick(sample), onProblem);
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    byId("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
    });
    byId("stop").addEventListener("click", () => this.stop("Stopped."));
    byId("own-answer").addEventListener("click", () => this.start(this.last, [], []));
    byId("model").addEventListener("change", () => this.useModel());
    for (const radio of document.querySelectorAll('input[name="kind"]')) {
      radio.addEventListener("change", () => this.useKind());
    }
  }

  show(run) {
    this.run = run;
    byId("model").replaceChildren(...run.models.map((m) => el("option", { value: m.name }, m.name)));
    byId("length").max = run.limits.max_tokens;
    byId("length").value = run.max_tokens;
    this.samples.show(run.splits);
    this.useModel();
    this.setKind("question");
  }

  get model() {
    return this.run.models.find((m) => m.name === byId("model").value);
  }

  get names() {
    return this.model.members.map((m) => m.name);
  }

  get kind() {
    return document.querySelector('input[name="kind"]:checked').value;
  }

  setKind(kind) {
    document.querySelector(`input[name="kind"][value="${kind}"]`).checked = true;
    this.useKind();
  }

  useKind() {
    const { kind } = this;
    byId("choices-field").hidden = kind !== "choose";
    byId("choices").required = kind === "choose";
    byId("length-field").hidden = kind === "choose";
    byId("text-label").textContent = kind === "prompt" ? "Text" : "Question";
    const inside = this.run.prompt.replace("{question}", "…");
    byId("text-note").textContent =
      kind === "prompt" ? "The members read exactly this." : `The members read: ${visible(inside)}`;
  }

  useModel() {
    this.stop("");
    this.last = null;
    this.clear();
    this.votes.show(this.model.members);
    const choose = document.querySelector('input[name="kind"][value="choose"]');
    choose.disabled = this.model.cannot_choose !== null;
    choose.parentElement.title = this.model.cannot_choose ?? "";
    if (choose.disabled && choose.checked) this.setKind("question");
  }

  clear() {
    this.tokens.clear();
    this.answer = null;
    for (const id of ["tokens-part", "choice-part", "detail", "before", "truth", "own-answer"]) byId(id).hidden = true;
  }

  pick(sample) {
    this.picked = sample;
    byId("text").value = sample.question;
    byId("choices").value = (sample.choices ?? []).join("\n");
    const choose = sample.choices !== null && this.model.cannot_choose === null;
    this.setKind(choose ? "choose" : "question");
    // The list makes way for the members and the answer.
    byId("samples").open = false;
    byId("go").focus();
  }

  submit() {
    const { kind } = this;
    const text = byId("text").value;
    // A sample's own choices: one of them may hold a line break.
    const typed = byId("choices").value;
    const own = this.picked?.choices?.join("\n") === typed ? this.picked.choices : null;
    const choices = own ?? typed.split("\n").map((line) => line.trim()).filter(Boolean);
    const picked = kind !== "prompt" && this.picked?.question === text ? this.picked : null;
    this.clear();
    this.start({ kind, text, choices, picked, length: Number(byId("length").value) }, [], []);
    byId("answer-title").scrollIntoView({ block: "nearest" });
  }

  voteAgain() {
    if (this.last === null || this.votes.voting === 0) return;
    this.start(this.last, this.forced, this.tokens.ids.slice(this.forced.length));
  }

  stop(said) {
    this.running?.abort();
    this.running = null;
    byId("stop").disabled = true;
    byId("status").textContent = said;
  }

  async start(question, forced, earlier) {
    const again = question === this.last;
    const forcedBefore = again ? this.forced : [];
    this.running?.abort();
    const mine = new AbortController();
    this.running = mine;
    this.last = question;
    this.forced = forced;
    this.onProblem(null);
    byId("stop").disabled = false;
    byId("status").textContent = again ? "Voting again …" : "Answering …";
    try {
      const before = again ? this.answer : null;
      const now = question.kind === "choose" ? await this.choose(question, mine) : await this.write(question, forced, earlier, mine);
      if (this.running !== mine) return;
      this.answer = now;
      this.compare(before, now);
      await this.showTruth(question, mine);
    } catch (problem) {
      if (problem.name === "AbortError" || this.running !== mine) return;
      // What stands there is still the answer before.
      if (again && problem.status === 400) this.forced = forcedBefore;
      byId("status").textContent = "";
      this.onProblem(problem);
    } finally {
      if (this.running === mine) {
        this.running = null;
        byId("stop").disabled = true;
      }
    }
  }

  /** Token by token; the answer as {text, said}. */
  async write(question, forced, earlier, mine) {
    const { kind, text, length } = question;
    const body = { model: this.model.name, weights: this.votes.weights, max_tokens: length, top: Math.min(TOP, this.run.limits.top), forced, earlier };
    body[kind === "prompt" ? "prompt" : "question"] = text;
    const asked = this.votes.voting;
    let end = null;
    for await (const event of events("answer", body, mine.signal)) {
      if (this.running !== mine) return null;
      if (event.type === "begin") {
        byId("choice-part").hidden = true;
        byId("tokens-part").hidden = false;
        byId("own-answer").hidden = forced.length === 0;
        this.tokens.begin(event);
      } else if (event.type === "token") this.tokens.add(event);
      else end = event;
    }
    this.tokens.end(end);
    const why = end.finish === "length" ? " It was cut at its longest length." : "";
    return { text: end.text, said: `Answered: ${quoted(end.text)}.${why}`, missing: missing(end, asked) };
  }

  async choose(question, mine) {
    const { text, choices } = question;
    const asked = this.votes.voting;
    const result = await post("choose", { model: this.model.name, question: text, choices, weights: this.votes.weights }, mine.signal);
    if (this.running !== mine) return null;
    byId("tokens-part").hidden = true;
    byId("detail").hidden = true;
    this.result = result;
    this.drawChoices(null);
    const said = `Voted: ${quoted(result.label)}, with ${percent(result.confidence)}.`;
    return { text: result.label, said, missing: missing(result, asked) };
  }

  drawChoices(truth) {
    byId("choice-part").replaceChildren(choiceList(this.result, this.last.choices, this.names, truth));
    byId("choice-part").hidden = false;
  }

  compare(before, now) {
    let said = now.said;
    const changed = before !== null && before.text !== now.text;
    if (before !== null && !changed) said = `The same answer: ${quoted(now.text)}.`;
    byId("status").textContent = said + now.missing;
    byId("before").hidden = !changed;
    if (changed) byId("before").replaceChildren("Before: ", el("del", {}, quoted(before.text)));
  }

  /** What is right, now that there is an answer. */
  async showTruth(question, mine) {
    byId("truth").hidden = true;
    if (question.picked === null) return;
    const { split, id } = question.picked;
    const truth = await get("truth", { split, id });
    if (this.running !== mine || truth.answer === null) return;
    byId("truth").textContent = `In the run's data: ${visible(truth.answer)}`;
    byId("truth").hidden = false;
    const same = question.picked.choices?.join("\n") === question.choices.join("\n");
    if (question.kind === "choose" && same) this.drawChoices(truth.choice);
  }

  look(token, place, byHand) {
    showDetail(token, place, this.names, this.tokens.weights, (id) => this.force(place, id));
    if (!byHand) return;
    const [same, all] = heads(token);
    // What is seen below is said to those who cannot see it.
    byId("looked").textContent = `Token ${place + 1}, ${visible(token.text)}: first choice of ${same} of ${all}. Who voted for what stands below.`;
  }

  force(place, id) {
    this.start(this.last, [...this.tokens.ids.slice(0, place), id], []);
  }
}
