// Elements, and numbers and tokens as people read them. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "class") node.setAttribute("class", value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, String(value));
  }
  node.append(...children.flat().filter((child) => child != null));
  return node;
}

export function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** A share as "61.2 %"; small ones are never 0. */
export function percent(value) {
  if (value > 0 && value < 0.001) return "< 0.1 %";
  return `${(100 * value).toFixed(1)} %`;
}

/** White space and characters that cannot be seen, made visible. */
export function visible(text) {
  const shown = text
    .replace(/\n/g, "↵")
    .replace(/\t/g, "⇥")
    .replace(/^ | $/g, "␣")
    .replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, "\ufffd");
  return shown === "" ? "(no text)" : shown;
}

/** A table cell with a bar; the number beside it says the same. */
export function bar(share) {
  const inner = el("span", { class: "fill" });
  inner.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return el("td", { "aria-hidden": "true" }, el("span", { class: "track" }, inner));
}

/** Table of shares. Rows: {name, share, chosen, beside, note, action}; `beside` and `note` stand after the name. */
export function bars(caption, rows, { actions = false, unseen = false } = {}) {
  return el(
    "table",
    { class: "bars" },
    el("caption", {}, el("span", { class: unseen ? "unseen" : "" }, caption)),
    el(
      "tbody",
      {},
      rows.map((row) =>
        el(
          "tr",
          { class: row.chosen ? "chosen" : "" },
          el(
            "th",
            { scope: "row", class: "what" },
            `${row.name} `,
            row.beside ? el("span", { class: "beside" }, row.beside) : null,
            row.note ? el("span", { class: "badge" }, row.note) : null,
          ),
          bar(row.share),
          el("td", { class: "value" }, percent(row.share)),
          actions ? el("td", { class: "act" }, row.action) : null,
        ),
      ),
    ),
  );
}
