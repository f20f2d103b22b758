// What the page of a run says of one object, and its charts.
"use strict";

const KIND = {
  statement: "",
  chip: (about) => (about.label ? [`defective: ${about.defect}`, "defective"] : ["sound", "sound"]),
  facts: (about) => [["category", about.category], ["object score", number(about.score)],
    ["rank in its category", `${about.rank} of ${about.of}`], ["highest point score", number(about.highest)],
    ["points", about.shown < about.points ? `${about.shown.toLocaleString("en")} of ${about.points.toLocaleString("en")} shown` : about.points.toLocaleString("en")]],
  plot: (about) => ({
    groups: [{ label: "sound", scores: HERE.scores[about.category].sound, tone: "good" },
      { label: "defective", scores: HERE.scores[about.category].defective, tone: "bad" }],
    threshold: null,
  }),
};

(() => {
  const drawn = JSON.parse(document.getElementById("charts").textContent);
  const fill = (name, parts) => document.querySelector(`[data-is="${name}"]`)?.replaceChildren(...parts);
  fill("curves", drawn.curves.map(curves));
  fill("losses", drawn.losses.map(curves));
  const groups = Object.entries(drawn.scores).flatMap(([category, { sound, defective }]) => [
    { label: `${category}, sound`, scores: sound, tone: "good" }, { label: `${category}, defective`, scores: defective, tone: "bad" }]);
  fill("distributions", [strips(groups, { height: 26, label: "object scores by category" })]);
})();
