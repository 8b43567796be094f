// Tabs by click and by arrow keys, as WAI-ARIA describes them.

import { byId } from "./dom.js";

export function setUpTabs(onShow) {
  const tabs = [byId("tab-ask"), byId("tab-run")];
  const show = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
    onShow(chosen.id);
  };
  for (const [place, tab] of tabs.entries()) {
    tab.addEventListener("click", () => show(tab));
    tab.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tabs.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      const next = tabs[(moves[event.key] + tabs.length) % tabs.length];
      next.focus();
      show(next);
    });
  }
  byId("tabs").hidden = false;
  show(tabs[0]);
}
