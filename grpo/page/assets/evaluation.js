"use strict";
// What an evaluation says: the headline, seeds and networks, the hour, and what else happened.

// Calls `show(part, evaluation, group)` for every evaluation, under its name where there are several.
function eachEvaluation(root, data, show) {
  if (!data.evaluations.length) return false;
  for (const evaluation of data.evaluations) {
    if (data.evaluations.length > 1) root.append(Page.el("h3", {}, evaluation.name));
    show(root, evaluation);
  }
}

const total = (evaluation) => evaluation.groups[evaluation.groups.length - 1];
const isModel = (evaluation, name) => evaluation.controllers.some((one) => one.name === name && one.model);
const listed = (names) => names.join(Page.t("comma"));

Page.section({
  id: "headline",
  title: "headline.title",
  build: (root, data) =>
    eachEvaluation(root, data, (part, evaluation) => {
      for (const advice of evaluation.advice) part.append(Page.el("p", { class: "lead" }, headline(evaluation, advice)), ...jams(advice));
      if (evaluation.failures.length) part.append(Page.el("p", {}, Page.t("headline.failed", { count: evaluation.failures.length })), Page.el("pre", {}, evaluation.failures.join("\n")));
      const group = total(evaluation);
      part.append(Page.el("div", { class: "charts" }, delays(evaluation, group), differences(evaluation, group)));
      if (evaluation.verdicts.length) part.append(judged(evaluation.verdicts));
      const about = evaluation.controllers.map((one) => [one.name, aboutController(one)]);
      part.append(Page.el("details", {}, Page.el("summary", {}, Page.t("controllers.about")), Page.table([Page.t("controller"), ""], about, { kind: "settings" }), Page.el("p", {}, Page.t("controllers.delay"))));
    }),
});

function aboutController(one) {
  const about = Page.t(one.model ? (one.action_set === "choose" ? "controllers.model.choose" : "controllers.model") : `about.${one.rule}`);
  return one.action_set === "cycle" ? about : Page.t(`controllers.${one.action_set}`, { about });
}

// What `grpo benchmark` answers for each model and group of networks, and why.
function judged(verdicts) {
  const why = (verdict) => {
    const said = ["higher delay", "not clear", "too few pairs", "no result"].flatMap((word) => {
      const names = Object.keys(verdict.against).filter((rule) => verdict.against[rule] === word);
      return names.length ? [Page.t(`judged.against.${word}`, { names: listed(names) })] : [];
    });
    if (verdict.failed) said.push(Page.t("failed.count", { count: verdict.failed }));
    if (verdict.more_jams) said.push(Page.t("jammed.count", { count: verdict.jammed }));
    if (verdict.more_brakings) said.push(Page.t("judged.brakings"));
    return [Page.t(`judged.${verdict.below_all}`), said.join("; ")].filter(Boolean).join(": ");
  };
  const rows = verdicts.map((one) => [one.group, one.model, Page.number(one.avg_delay_s), one.strongest_rule ?? "–", `${Page.number(one.difference_s, 1, { sign: true })} ${Page.interval(one.interval_95)}`, String(one.n), why(one)]);
  const columns = ["judged.group", "judged.model", "outcomes.mean", "judged.strongest", "judged.difference", "judged.pairs", "judged.answer"];
  return Page.table(columns.map((word) => Page.t(word)), rows, { caption: Page.t("judged.title"), kind: "judged" });
}

function headline(evaluation, advice) {
  const where = evaluation.scenarios.length > 1 && advice.scenario !== "all" ? `${advice.scenario}: ` : "";
  const said = Page.t("headline.best", { best: advice.best, delay: Page.number(advice.delay_s) });
  const pairs = `${advice.pairs} ${Page.t(advice.pairs > 1 ? advice.unit : `${advice.unit}.one`)}`;
  let sure;
  if (advice.pairs < 6) sure = Page.t("headline.few", { pairs });
  else if (!advice.lower.length) sure = Page.t("headline.unclear", { unclear: listed(advice.unclear), pairs });
  else {
    sure = Page.t("headline.clear", { lower: listed(advice.lower), p: advice.p.toPrecision(2), pairs });
    if (advice.unclear.length) sure += Page.t("headline.but", { unclear: listed(advice.unclear) });
  }
  const judged = [advice.best, ...advice.lower, ...advice.unclear];
  const failed = total(evaluation).rows.filter((row) => row.failed && !judged.includes(row.name)).map((row) => row.name);
  return `${where}${said}${sure}${failed.length ? Page.t("headline.notjudged", { names: listed(failed) }) : ""}`;
}

function jams(advice) {
  if (!advice.jammed) return [];
  const text = Page.t("headline.jams", { best: advice.best, jammed: advice.jammed, episodes: advice.episodes });
  return [Page.el("p", {}, text + (advice.fewer_jams ? Page.t("headline.fewer", { name: advice.fewer_jams[0], count: advice.fewer_jams[1] }) : ""))];
}

// One jammed controller must not squeeze the others together.
const spread = (values) => Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 8;

function notes(row) {
  const said = [row.delay === null ? Page.t("noresult") : Page.number(row.delay)];
  if (row.jammed) said.push(Page.t("jammed.count", { count: row.jammed }));
  if (row.failed) said.push(Page.t("failed.count", { count: row.failed }));
  return said.join(", ");
}

function delays(evaluation, group) {
  const rows = group.rows.map((row) => ({ label: row.name, points: row.points.map((point) => point[1]), mean: row.delay, interval: row.interval, few: row.points.length < 6, text: notes(row), strong: isModel(evaluation, row.name) }));
  const values = rows.flatMap((row) => row.points);
  const title = group.scenario === null ? Page.t("delay.networks", { count: evaluation.scenarios.length }) : Page.t("delay.seeds", { scenario: group.scenario });
  return Charts.dots({ title, x: { label: Page.t("delay.unit") }, rows, log: values.length > 0 && spread(values), headings: [Page.t("controller"), Page.t("delay.unit"), Page.t("interval")] });
}

function differences(evaluation, group) {
  const rows = group.differences
    .filter((one) => one.mean !== null)
    .map((one) => ({ label: one.name, points: [], mean: one.mean, interval: one.interval_95, few: one.n < 6, strong: one.verdict === "lower delay" || one.verdict === "higher delay", text: `${Page.number(one.mean, 1, { sign: true })} ${Page.interval(one.interval_95)}, ${Page.t(`verdict.${one.verdict}`)}` }));
  if (!rows.length) return "";
  return Charts.dots({ title: Page.t("difference.title", { name: group.compared }), x: { label: Page.t("difference.unit") }, rows, zero: true, note: Page.t("difference.about"), headings: [Page.t("controller"), Page.t("difference.unit"), Page.t("interval")] });
}

const MOST_CHARTS = 12; // of networks beside each other; of more, one at a time

// Mean delay by network, the least of each marked; a controller with failures is never the best.
function means(groups, names) {
  const rows = groups.map((group) => {
    const whole = group.rows.filter((row) => row.delay !== null && !row.failed);
    const least = Math.min(...whole.map((row) => row.delay));
    return [group.scenario, ...group.rows.map((row) => (whole.length > 1 && !row.failed && row.delay === least ? Page.el("strong", {}, `${Page.number(row.delay)}*`) : Page.number(row.delay)))];
  });
  return Page.table([Page.t("scenario"), ...names], rows, { caption: Page.t("points.means") });
}

Page.section({
  id: "points",
  title: "points.title",
  build: (root, data) =>
    eachEvaluation(root, data, (part, evaluation) => {
      const groups = evaluation.groups.filter((group) => group.scenario !== null);
      const names = evaluation.controllers.map((one) => one.name);
      if (groups.length > 1) part.append(means(groups, names));
      if (groups.length > MOST_CHARTS) {
        const host = Page.el("div");
        const show = () => host.replaceChildren(delays(evaluation, groups[select.value]));
        const select = Page.el("select", { onchange: show }, ...groups.map((group, i) => Page.el("option", { value: i }, group.scenario)));
        part.append(Page.el("div", { class: "controls" }, Page.el("label", {}, Page.el("span", {}, Page.t("scenario")), select)), host);
        show();
      } else if (groups.length > 1) part.append(Page.el("div", { class: "charts" }, ...groups.map((group) => delays(evaluation, group))));
      const seeds = (row) => new Map(row.points);
      const rows = groups.flatMap((group) => {
        const columns = group.rows.map(seeds);
        const all = [...new Set(columns.flatMap((column) => [...column.keys()]))];
        return all.map((seed) => [group.scenario, seed, ...columns.map((column) => Page.number(column.get(seed)))]);
      });
      const table = Page.table([Page.t("scenario"), Page.t("seed"), ...names], rows, { caption: Page.t("points.caption") });
      part.append(rows.length > 60 ? Page.el("details", {}, Page.el("summary", {}, Page.t("points.all", { count: rows.length })), table) : table);
    }),
});

Page.section({
  id: "hour",
  title: "hour.title",
  build(root, data) {
    const found = data.evaluations.filter((evaluation) => evaluation.series.length);
    if (!found.length) return false;
    return eachEvaluation(root, { evaluations: found }, (part, evaluation) => {
      const host = Page.el("div", { class: "charts" });
      const select = Page.el("select", { onchange: () => show() }, ...evaluation.scenarios.map((name) => Page.el("option", {}, name)));
      const show = () => {
        const own = evaluation.series.filter((one) => one.scenario === select.value);
        host.replaceChildren(
          ...["queue", "delay", "outside"].map((kind) => {
            const points = (one, column) => one[kind].map((values, i) => [one.begin + i * one.every, ...(column ? values.slice(1) : values.slice(0, 1))]);
            const series = own.map((one) => ({ name: one.name, points: points(one), band: points(one, true) }));
            return Charts.lines({ title: Page.t(`hour.${kind}`), x: { label: Page.t("time"), format: Page.clock }, y: { label: Page.t(`hour.${kind}.unit`), zero: true }, series });
          }),
        );
      };
      if (evaluation.scenarios.length > 1) part.append(Page.el("div", { class: "controls" }, Page.el("label", {}, Page.el("span", {}, Page.t("scenario")), select)));
      part.append(host, Page.el("p", { class: "note" }, Page.t("hour.about")));
      show();
    });
  },
});

Page.section({
  id: "outcomes",
  title: "outcomes.title",
  build: (root, data) =>
    eachEvaluation(root, data, (part, evaluation) => {
      const host = Page.el("div");
      const select = Page.el("select", { onchange: () => show() }, ...evaluation.groups.map((group, i) => Page.el("option", { value: i }, group.scenario === null ? Page.t("allnetworks") : group.scenario)));
      const show = () => host.replaceChildren(outcomes(evaluation.groups[select.value]));
      select.value = evaluation.groups.length - 1;
      if (evaluation.groups.length > 1) part.append(Page.el("div", { class: "controls" }, Page.el("label", {}, Page.el("span", {}, Page.t("scenario")), select)));
      part.append(host, Page.el("p", { class: "note" }, Page.t("outcomes.about")));
      show();
    }),
});

function outcomes(group) {
  const walked = group.rows.some((row) => row.people_mean);
  const columns = [
    ["mean", (row) => Page.number(row.delay)],
    ["median", (row) => Page.number(row.median)],
    [group.scenario === null ? "worstof" : "worst", (row) => (row.worst === null ? "–" : `${Page.number(row.worst)} (${row.worst_at})`)],
    ["gridlocked", (row) => `${row.jammed}/${row.n}`],
    ["completed", (row) => Page.number(row.throughput_veh_mean, 0)],
    ["notinserted", (row) => Page.number(row.not_inserted_veh_mean)],
    ["spillback", (row) => Page.number(row.spillback_s_mean, 0)],
    ["stops", (row) => Page.number(row.stops_mean, 0)],
    ["brakings", (row) => Page.number(row.emergency_brakings_mean)],
    ["teleports", (row) => Page.number(row.teleports_mean)],
    ...(walked ? [["onfoot", (row) => Page.number(row.avg_people_waiting_s_mean)]] : []),
    ...(group.rows.some((row) => row.failed) ? [["failed", (row) => `${row.failed}/${row.n}`]] : []),
  ];
  const rows = group.rows.map((row) => [row.name, ...columns.map(([, value]) => value(row))]);
  return Page.table([Page.t("controller"), ...columns.map(([word]) => Page.t(`outcomes.${word}`))], rows);
}
