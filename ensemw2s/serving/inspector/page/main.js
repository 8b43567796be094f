// Starts the page: what the server serves, the two tabs, the key where one is needed, and what went wrong.

import { get, onMissingKey, useKey } from "./api.js";
import { Ask } from "./ask.js";
import { byId } from "./dom.js";
import { showStory } from "./story.js";
import { setUpTabs } from "./tabs.js";

function showProblem(problem) {
  byId("error").textContent = problem === null ? "" : problem.message;
  // What is no answer of the server is a fault of this page: its place belongs into the console.
  if (problem !== null && problem.status === undefined) console.error(problem);
}

const ask = new Ask(showProblem);
let started = false;
let told = false;

async function showRun(tab) {
  if (tab !== "tab-run" || told) return;
  told = true;
  try {
    await showStory();
  } catch (problem) {
    told = false;
    showProblem(problem);
  }
}

async function start() {
  try {
    const run = await get("run");
    byId("key-form").hidden = true;
    showProblem(null);
    if (started) return;
    started = true;
    byId("run-name").textContent = `run ${run.name}`;
    document.title = `${run.name}: ensemw2s inspector`;
    ask.show(run);
    setUpTabs(showRun);
  } catch (problem) {
    showProblem(problem);
  }
}

onMissingKey(() => {
  byId("key-form").hidden = false;
  byId("key").focus();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
  start();
});
start();
