// What the page of inspected parts says of one part.
"use strict";

const rank = (about) => `rank ${HERE.scores.filter((score) => score !== null && score > about.score).length + 1} of ${HERE.scores.length}`;
const KIND = {
  statement: "Without good parts to compare with, the score ranks the parts of this batch; it is no verdict.",
  chip: (about) => (about.verdict ? [about.verdict.kind, about.verdict.kind.replace(" ", "-")] : [rank(about), "unjudged"]),
  reason({ verdict, highest }) {
    const hidden = verdict.kind === "defective" && verdict.point_threshold !== null && highest <= verdict.point_threshold;
    return verdict.reason + (hidden ? " No single point is above the threshold of points; move the slider down to see its highest scores." : "");
  },
  facts(about) {
    const verdict = about.verdict, found = [["object score", number(about.score)], ["highest point score", number(about.highest)]];
    if (verdict) {
      found.push(["p-value", number(verdict.p_value, 3)], ["threshold", number(verdict.threshold)]);
      if (verdict.point_threshold !== null) found.push(["threshold of points", number(verdict.point_threshold)]);
    }
    const points = (count) => count.toLocaleString("en");
    found.push(["points", about.shown < about.points ? `${points(about.shown)} of ${points(about.points)} shown` : points(about.points)]);
    if (about.removed) found.push(["taken away", `${points(about.removed)} points`]);
    if (about.rows > about.points + about.removed) found.push(["rows that hold no point", points(about.rows - about.points - about.removed)]);
    return found;
  },
  plot: () => ({
    groups: [...(HERE.good ? [{ label: "good parts", scores: HERE.good.scores, tone: "good" }] : []),
      { label: "this batch", scores: HERE.scores.filter((score) => score !== null), tone: "batch" }],
    threshold: HERE.good ? HERE.good.threshold : null,
  }),
};
