// Charts as SVG: curves with bands, and scores as dots.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
function drawing(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const shortNumber = (value) => (value === 0 ? "0" : Math.abs(value) >= 1000 || Math.abs(value) < 0.001 ? value.toPrecision(2) : String(+value.toPrecision(3)));

/** Scores in rows, dots on top of each other as in a histogram that shows every object. groups: [{ label, scores, tone }]. */
function strips(groups, { threshold = null, score = null, height = 54, label = "where this score lies" } = {}) {
  const width = 520, left = 118;
  let low = Infinity, high = -Infinity;
  for (const value of groups.flatMap((group) => group.scores).concat(threshold ?? [], score ?? [])) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (!(high > low)) { low = (Number.isFinite(low) ? low : 0) - 0.5; high = low + 1; }
  const margin = 0.04 * (high - low);
  low -= margin;
  high += margin;
  const x = (value) => left + (width - left - 14) * (value - low) / (high - low), bottom = height * groups.length + 12;
  const made = drawing("svg", { viewBox: `0 0 ${width} ${bottom + 34}`, role: "img", "aria-label": label });
  groups.forEach((group, order) => {
    const base = height * (order + 1), bins = new Map(), dots = [];
    made.append(drawing("text", { x: 0, y: base - (height > 40 ? 20 : 8), class: "label" }, group.label),
      drawing("line", { x1: left, x2: width, y1: base, y2: base, class: "base" }));
    if (height > 40) made.append(drawing("text", { x: 0, y: base - 6, class: "small" }, `${group.scores.length} scores`));
    for (const value of group.scores) {
      const bin = Math.round(x(value) / 5);
      bins.set(bin, (bins.get(bin) || 0) + 1);
      dots.push([bin, bins.get(bin)]);
    }
    const step = Math.min(5, (height - 10) / Math.max(1, ...bins.values()));
    if (dots.length > 2000) {
      for (const [bin, count] of bins) {
        made.append(drawing("rect", { x: 5 * bin - 2.5, width: 5, y: base - step * count, height: step * count, class: group.tone }));
      }
    } else {
      for (const [bin, count] of dots) made.append(drawing("circle", { cx: 5 * bin, cy: base - step * (count - 0.5), r: 2.3, class: group.tone }));
    }
  });
  for (let i = 0; i <= 4; i++) {
    const value = low + (high - low) * i / 4;
    made.append(drawing("text", { x: x(value), y: bottom + 12, class: "tick" }, value.toFixed(3)));
  }
  if (threshold !== null) {
    made.append(drawing("line", { x1: x(threshold), x2: x(threshold), y1: 2, y2: bottom, class: "threshold" }),
      drawing("text", { x: x(threshold), y: bottom + 28, class: "tick threshold-text" }, "threshold"));
  }
  if (score !== null) {
    made.append(drawing("line", { x1: x(score), x2: x(score), y1: 2, y2: bottom, class: "this" }),
      drawing("path", { d: `M${x(score) - 6} 0h12l-6 9z`, class: "this-mark" }));
  }
  return made;
}

/** One chart: { title, x, y, xmax?, ymax?, lines: [{ label, tone, x, y, low?, high? }] }; a band where a line has low and high. */
function curves(spec) {
  const width = 380, height = 290, left = 46, top = 26, right = width - 10, bottom = height - 40;
  const ends = (name, also, fixed) => {
    let [low, high] = [0, fixed ?? -Infinity];
    if (fixed === undefined) {
      low = Infinity;
      for (const line of spec.lines) for (const value of line[name]) { low = Math.min(low, value); high = Math.max(high, value); }
      if (also) low = Math.min(low, 0);
      if (!(high > low)) { low -= 0.5; high += 0.5; }
    }
    return [low, high];
  };
  const [x0, x1] = ends("x", false, spec.xmax), [y0, y1] = ends("y", true, spec.ymax);
  const x = (value) => left + (right - left) * (value - x0) / (x1 - x0), y = (value) => bottom - (bottom - top) * (value - y0) / (y1 - y0);
  const path = (xs, ys) => xs.map((value, i) => `${i ? "L" : "M"}${x(value).toFixed(1)} ${y(ys[i]).toFixed(1)}`).join("");
  const made = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spec.title });
  made.append(drawing("text", { x: left, y: 14, class: "title" }, spec.title));
  for (let i = 0; i <= 4; i++) {
    const across = x0 + (x1 - x0) * i / 4, up = y0 + (y1 - y0) * i / 4;
    made.append(drawing("line", { x1: left, x2: right, y1: y(up), y2: y(up), class: "grid" }),
      drawing("text", { x: x(across), y: bottom + 14, class: "tick" }, shortNumber(across)),
      drawing("text", { x: left - 5, y: y(up) + 4, class: "tick end" }, shortNumber(up)));
  }
  made.append(drawing("text", { x: (left + right) / 2, y: height - 8, class: "tick" }, spec.x));
  if (spec.y) made.append(drawing("text", { transform: `translate(11 ${(top + bottom) / 2}) rotate(-90)`, class: "tick" }, spec.y));
  spec.lines.forEach((line) => {
    if (line.low) {
      const band = path(line.x.concat([...line.x].reverse()), line.high.concat([...line.low].reverse()));
      made.append(drawing("path", { d: `${band}Z`, class: "band" }));
    }
  });
  spec.lines.forEach((line) => {
    const drawn = line.x.length > 1 ? drawing("path", { d: path(line.x, line.y), class: `curve ${line.tone}` })
      : drawing("circle", { cx: x(line.x[0]), cy: y(line.y[0]), r: 3, class: `curve ${line.tone}` });
    drawn.append(drawing("title", {}, line.label));
    made.append(drawn);
  });
  const box = document.createElement("figure");
  const legend = document.createElement("figcaption");
  const shown = spec.lines.filter((line) => line.tone !== "one");
  for (const line of shown) {
    const key = document.createElement("span"), sign = drawing("svg", { viewBox: "0 0 16 6", class: "key" });
    sign.append(drawing("path", { d: "M0 3H16", class: `curve ${line.tone}` }));
    key.append(sign, line.label + (line.low ? ", 95 % bootstrap band" : ""));
    legend.append(key);
  }
  if (shown.length < spec.lines.length) legend.append(Object.assign(document.createElement("span"), { textContent: "grey: single categories" }));
  box.append(made, legend);
  return box;
}
