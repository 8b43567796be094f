// Small charts as inline SVG. Every number in them also stands in a table or in words beside them.

import { svg } from "./dom.js";

const WIDTH = 370;
const MARKS = ["circle", "square", "triangle", "diamond"];

const fixed = (value) => String(Math.round(value * 100) / 100);

function mark(kind, x, y, color, full = false) {
  const paths = {
    circle: `M${x - 4} ${y}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0`,
    square: `M${x - 4} ${y - 4}h8v8h-8z`,
    triangle: `M${x} ${y - 5}l5 9h-10z`,
    diamond: `M${x} ${y - 5}l5 5l-5 5l-5 -5z`,
  };
  return svg("path", { d: paths[kind], class: `dot c${color} ${full ? "full" : ""}` });
}

function chart(label, height, ...parts) {
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label }, ...parts);
}

const text = (x, y, content, anchor = "start", quiet = true) =>
  svg("text", { x: fixed(x), y: fixed(y), "text-anchor": anchor, class: quiet ? "quiet" : "" }, content);

const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });

const share = (value) => `${Math.round(100 * value)} %`;

/** Round marks of an axis of shares, at most six, around the values. */
function marks(values) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  for (const percents of [1, 2, 5, 10, 20]) {
    const low = Math.floor((100 * least) / percents);
    const high = Math.max(low + 1, Math.ceil((100 * most) / percents));
    if (high - low <= 5) return Array.from({ length: high - low + 1 }, (_, i) => ((low + i) * percents) / 100);
  }
  return [0, 0.25, 0.5, 0.75, 1];
}

/**
 * Systems below each other, each with its interval.
 * @param rows [{label, value, low, high, strong}]
 * @param guess a value to compare with, or null
 */
export function intervals(label, rows, guess) {
  const ticks = marks([...rows.flatMap((r) => [r.value, r.low, r.high]), ...(guess === null ? [] : [guess])]);
  const [low, high] = [ticks[0], ticks.at(-1)];
  const left = 8;
  const right = WIDTH - 60;
  const at = (value) => left + ((value - low) / (high - low)) * (right - left);
  const height = rows.length * 38 + 34;
  const parts = [];
  for (const [i, value] of ticks.entries()) {
    parts.push(line(at(value), 4, at(value), height - 22, "grid"), text(at(value), height - 6, share(value), i ? "middle" : "start"));
  }
  if (guess !== null) parts.push(line(at(guess), 4, at(guess), height - 22, "mark"));
  rows.forEach((row, i) => {
    const y = i * 38 + 30;
    parts.push(
      text(left, y - 12, row.label, "start", false),
      line(at(row.low), y, at(row.high), y, "range"),
      line(at(row.low), y - 4, at(row.low), y + 4, "range"),
      line(at(row.high), y - 4, at(row.high), y + 4, "range"),
      mark("circle", at(row.value), y, 0, row.strong),
      text(right + 8, y + 4, `${(100 * row.value).toFixed(1)} %`, "start", false),
    );
  });
  return chart(label, height, ...parts);
}

/**
 * Lines over members or rounds, told apart by their marks as well as by colour.
 * @param series [{label, values}], null where there is none
 * @param ticks names of the places
 * @param chosen place to mark, from 0, or null
 */
export function lines(label, series, ticks, chosen = null) {
  const values = series.flatMap((s) => s.values).filter((v) => v !== null);
  const shares = marks(values);
  const [low, high] = [shares[0], shares.at(-1)];
  const [left, right, top, bottom] = [44, WIDTH - 12, 10, 190];
  const x = (i) => (ticks.length === 1 ? (left + right) / 2 : left + 14 + (i / (ticks.length - 1)) * (right - left - 28));
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  const parts = [];
  for (const value of shares) {
    parts.push(line(left, y(value), right, y(value), "grid"), text(left - 6, y(value) + 4, share(value), "end"));
  }
  const every = Math.ceil(ticks.length / 10);
  ticks.forEach((tick, i) => i % every === 0 && parts.push(text(x(i), bottom + 18, tick, "middle")));
  if (chosen !== null) parts.push(line(x(chosen), top, x(chosen), bottom, "mark"));
  series.forEach((one, n) => {
    const known = one.values.map((value, i) => [value, i]).filter(([value]) => value !== null);
    const points = known.map(([value, i]) => `${fixed(x(i))},${fixed(y(value))}`).join(" ");
    parts.push(svg("polyline", { points, class: `series c${n % 7}` }));
    for (const [value, i] of known) parts.push(mark(MARKS[n % 4], x(i), y(value), n % 7));
    const [column, row] = [n % 2, Math.floor(n / 2)];
    const [keyX, keyY] = [left + column * 176, bottom + 42 + row * 20];
    parts.push(mark(MARKS[n % 4], keyX + 5, keyY - 4, n % 7), text(keyX + 18, keyY, one.label, "start", false));
  });
  return chart(label, bottom + 50 + 20 * Math.floor((series.length - 1) / 2), ...parts);
}

/**
 * Bars with their numbers.
 * @param rows [{label, value, hollow, text}]
 */
export function columns(label, rows) {
  const [left, right, top, bottom] = [8, WIDTH - 8, 20, 150];
  const values = rows.map((row) => row.value);
  const low = Math.min(0, ...values);
  const high = Math.max(0, ...values, low + 1e-9);
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  const step = (right - left) / rows.length;
  const width = Math.min(48, step * 0.6);
  const parts = [line(left, y(0), right, y(0), "grid")];
  const every = Math.ceil(rows.length / 9);
  rows.forEach((row, i) => {
    const middle = left + step * (i + 0.5);
    const [from, to] = [Math.min(y(0), y(row.value)), Math.max(y(0), y(row.value))];
    parts.push(
      svg("rect", { x: fixed(middle - width / 2), y: fixed(from), width: fixed(width), height: fixed(Math.max(1, to - from)), class: `box ${row.hollow ? "hollow" : ""}` }),
    );
    if (i % every !== 0) return;
    parts.push(text(middle, row.value >= 0 ? from - 5 : to + 14, row.text, "middle", false), text(middle, bottom + 18, row.label, "middle"));
  });
  return chart(label, bottom + 26, ...parts);
}
