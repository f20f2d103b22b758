// The table, the opened object, its plot and its notes. Names only ever become text (textContent), never markup.
"use strict";

const HERE = { ...JSON.parse(document.getElementById("here").textContent), ...KIND };  // KIND: what differs between kinds of page
const find = (name) => document.querySelector(`[data-is="${name}"]`);
const number = (value, digits = 4) => (value === null || value === undefined ? "–" : value.toFixed(digits));

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Table -----------------------------------------------------------------------------------------------------------------------

const table = find("table"), body = table.tBodies[0];
const rows = [...body.rows];
const objects = new Map([...document.querySelectorAll("script.part")].map((script) => [script.dataset.id, script]));

function sortBy(column, falling) {
  const key = (row) => row.cells[column].dataset.value, numeric = table.tHead.rows[0].cells[column].dataset.kind === "number";
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  rows.sort((one, two) => {
    const [a, b] = [key(one), key(two)];
    if (a === "" || b === "") return (a === "") - (b === "");  // what is not known stays last
    return (falling ? -1 : 1) * (numeric ? a - b : compare(a, b)) || one.dataset.order - two.dataset.order;
  });
  body.append(...rows);
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", falling ? "descending" : "ascending");
}

[...table.tHead.rows[0].cells].forEach((cell, column) => {
  cell.querySelector("button").addEventListener("click", () => {
    const now = cell.getAttribute("aria-sort");
    sortBy(column, now === null ? cell.dataset.kind === "number" && cell.dataset.first !== "rising" : now === "ascending");
  });
});

function filterRows() {
  const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  find("filtered").textContent = words.length ? `${shown} of ${rows.length}` : "";
}
find("filter").addEventListener("input", filterRows);

// The opened object -----------------------------------------------------------------------------------------------------------

const scale = new ColourScale(HERE.scale);
let viewer = null, views = null, open = null, chosenView = 0, loading = 0;
try {
  viewer = new CloudViewer(find("canvas"), scale);
} catch (error) {
  find("canvas").hidden = true;
  find("without").hidden = false;
}

const slider = find("slider");
slider.min = 0;
slider.max = 1000;
slider.step = "any";
const TOP = Math.max(1, HERE.highest === null ? 1 : scale.share(HERE.highest));  // it reaches above every point of every object
const START = HERE.scale.threshold === null ? 0 : 1000 * 0.5 / TOP;
slider.value = START;
/** The score at the slider; null at its lower end: everything is coloured. */
const sliderScore = () => (+slider.value === 0 ? null : scale.score(TOP * slider.value / 1000));

function applyThreshold() {
  const score = sliderScore();
  find("mark").style.bottom = `${score === null ? 0 : Math.min(100 * scale.share(score), 100)}%`;
  if (viewer) viewer.threshold(score);
  let said = score === null ? "all points are coloured" : `coloured from ${number(score)} on`;
  if (viewer && viewer.cloud && score !== null) {
    const above = viewer.above(score), share = 100 * above / Math.max(viewer.cloud.n, 1);
    said += `: ${above.toLocaleString("en")} points (${share < 0.1 && above ? share.toFixed(3) : share.toFixed(1)} %)`;
  }
  find("above").textContent = said;
  slider.setAttribute("aria-valuetext", said);
  paintViews();
}
let waiting = false;
slider.addEventListener("input", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; applyThreshold(); });
});
find("reset").addEventListener("click", () => { slider.value = START; applyThreshold(); });
find("face").addEventListener("click", () => viewer && viewer.face(viewer.cloud && viewer.cloud.facing));
find("front").addEventListener("click", () => viewer && viewer.face([0, -1, 0]));
find("top").addEventListener("click", () => viewer && viewer.face([0, 0, 1]));
find("size").addEventListener("input", () => viewer && viewer.pointSize(1.25 ** +find("size").value));
find("mode").addEventListener("change", () => viewer && viewer.mode(+find("mode").value));
find("gone").addEventListener("change", () => viewer && viewer.removed(find("gone").checked));

find("bar").style.background = scale.gradient();
for (const [name, value] of [["bar-high", scale.high], ["bar-low", scale.low]]) find(name).textContent = number(value, 3);
if (HERE.scale.threshold !== null) {
  find("bar-threshold").textContent = `${number(HERE.scale.threshold, 3)} threshold`;
  find("bar-threshold").style.bottom = "50%";
}

let pressed = null;
find("canvas").addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; });
find("canvas").addEventListener("pointerup", (event) => {
  if (!pressed || !viewer || Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > 4) return;
  const box = find("canvas").getBoundingClientRect(), found = viewer.pick(event.clientX - box.left, event.clientY - box.top);
  find("picked").textContent = found
    ? `Point at ${found.place.map((value) => value.toPrecision(7)).join(", ")}: score ${number(found.score)}`
    : "No point there.";
});

const viewNumber = (view) => (views.packed.numbers ? views.packed.numbers[view] : view) + 1;

function paintViews() {
  if (!views) return;
  const score = sliderScore();
  for (const kind of ["render", "depth", "heat"]) views.paint(chosenView, kind, find(`view-${kind}`), score);
  find("view-name").textContent = `View ${viewNumber(chosenView)}${views.packed.numbers ? "" : ` of ${views.packed.count}`}`;
  [...find("thumbs").children].forEach((button, view) => {
    views.paint(view, "heat", button.firstChild, score);
    button.setAttribute("aria-pressed", view === chosenView);
  });
}

function showViews() {
  find("views").hidden = !views;
  find("thumbs").replaceChildren();
  if (!views) return;
  for (let view = 0; view < views.packed.count; view++) {
    const button = element("button", undefined, { type: "button", "aria-label": `view ${viewNumber(view)}` });
    button.append(element("canvas"));
    button.addEventListener("click", () => { chosenView = view; paintViews(); });
    find("thumbs").append(button);
  }
}

async function show(id) {
  const script = objects.get(id), turn = ++loading;
  if (!script) return;
  const [about, packed] = JSON.parse(script.textContent);
  open = about;
  find("detail").hidden = false;
  find("nothing").hidden = true;
  find("name").textContent = about.name;
  find("source").textContent = about.source;
  const [said, tone] = HERE.chip(about);
  find("verdict").textContent = said;
  find("verdict").className = `chip ${tone}`;
  find("reason").textContent = about.verdict ? HERE.reason(about) : HERE.statement;
  find("facts").replaceChildren(...HERE.facts(about).map(([term, value]) => {
    const pair = element("div");
    pair.append(element("dt", term), element("dd", value));
    return pair;
  }));
  find("read").replaceChildren(...about.notes.map((note) => element("li", note)));
  find("read-box").hidden = !about.notes.length;
  find("gone-box").hidden = !packed.removed;
  find("gone").checked = false;
  const modes = { 0: true, 1: packed.cloud.columns.includes("red"), 2: packed.cloud.columns.includes("mask"), 3: true };
  for (const option of find("mode").options) option.hidden = option.disabled = !modes[option.value];
  if (!modes[find("mode").value]) find("mode").value = 0;
  for (const row of rows) row.toggleAttribute("aria-current", row.dataset.id === id);
  const { groups, threshold } = HERE.plot(about);
  find("plot").replaceChildren(strips(groups, { threshold, score: about.score }));
  showNote(about);
  find("detail").setAttribute("aria-busy", "true");
  const drawn = packed.views ? await Views.of(packed.views, scale) : null;
  if (viewer) await viewer.load(packed.cloud, packed.removed);
  if (turn !== loading) return;  // another one was opened meanwhile
  views = drawn;
  chosenView = packed.views ? packed.views.hottest : 0;
  if (viewer) viewer.mode(+find("mode").value);
  showViews();
  applyThreshold();
  find("picked").textContent = "";
  find("detail").setAttribute("aria-busy", "false");
}

const shownId = () => (location.hash.startsWith("#part-") ? location.hash.slice(6) : null);
function follow() {
  const row = rows.find((one) => one.dataset.id === shownId()) || rows.find((one) => objects.has(one.dataset.id));
  if (row && objects.has(row.dataset.id)) show(row.dataset.id);
}
window.addEventListener("hashchange", () => {
  follow();
  if (matchMedia("(max-width: 900px)").matches) find("detail").scrollIntoView();
});
body.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (row && !event.target.closest("a")) row.querySelector("a").click();
});
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea, select, canvas") || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const shown = rows.filter((row) => !row.hidden), at = shown.findIndex((row) => open && row.dataset.id === open.id);
  const next = shown[Math.min(Math.max(at + step, 0), shown.length - 1)];
  if (!next) return;
  const link = next.querySelector("a");
  link.click();
  link.focus();
  event.preventDefault();
});

// Notes: kept by the browser where it allows that, exported as JSON or CSV ------------------------------------------------------

const PLACE = `notes of ${location.pathname.replace(/[^/]*$/, "")}`;
let notes = {}, kept = true, unsaved = false;
try {
  notes = JSON.parse(localStorage.getItem(PLACE) || "{}");
  localStorage.setItem(PLACE, JSON.stringify(notes));
} catch (error) {
  kept = false;
}
const noteState = () => {
  const count = Object.keys(notes).length, said = count === 1 ? "1 note" : `${count} notes`;
  find("kept").textContent = kept ? `${said}, kept in this browser.` : `${said}. This browser keeps none: export them before you close the page.`;
};
function keepNotes() {
  unsaved = true;
  try { localStorage.setItem(PLACE, JSON.stringify(notes)); } catch (error) { kept = false; }
  noteState();
}
function markRow(id) {
  const row = rows.find((one) => one.dataset.id === id), cell = row && row.querySelector(".noted");
  if (cell) { cell.textContent = notes[id] ? notes[id].decision || "note" : ""; cell.dataset.value = cell.textContent; }
}
function showNote(about) {
  const note = notes[about.id] || { decision: "", text: "" };
  find("decision").value = note.decision;
  find("note").value = note.text;
}
function takeNote() {
  if (!open) return;
  const text = find("note").value, decision = find("decision").value;
  if (text || decision) {
    notes[open.id] = { name: open.name, source: open.source, score: open.score, verdict: open.verdict ? open.verdict.kind : "",
      decision, text, changed: new Date().toISOString() };
  } else delete notes[open.id];
  keepNotes();
  markRow(open.id);
}
/** A cell that no spreadsheet computes. */
function csvCell(value) {
  let text = value === null || value === undefined ? "" : String(value);
  if (typeof value === "string" && (/^ *[=+\-@\t\r\n＝＋－＠]/.test(text) || text.startsWith("'"))) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
function exported(kind) {
  const all = Object.values(notes), columns = ["name", "source", "score", "verdict", "decision", "text", "changed"];
  if (kind === "json") return JSON.stringify({ title: HERE.title, notes: all }, null, 1);
  return "\ufeff" + [columns, ...all.map((note) => columns.map((name) => note[name]))].map((row) => row.map(csvCell).join(",")).join("\r\n") + "\r\n";
}
for (const kind of ["json", "csv"]) {
  find(`export-${kind}`).addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([exported(kind)], { type: kind === "json" ? "application/json" : "text/csv" }));
    const link = element("a", undefined, { href: url, download: `notes.${kind}` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    unsaved = false;
  });
}
find("note").addEventListener("input", takeNote);
find("decision").addEventListener("change", takeNote);
window.addEventListener("beforeunload", (event) => { if (unsaved && !kept) event.preventDefault(); });
Object.keys(notes).forEach(markRow);
noteState();
follow();
