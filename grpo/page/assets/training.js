"use strict";
// How the model came about: training curves, labels, latency, and what was run.

Page.section({
  id: "training",
  title: "training.title",
  build(root, data) {
    if (!data.trainings.length) return false;
    for (const { name, curves, figures } of data.trainings) {
      root.append(Page.el("h3", {}, name));
      const charts = Object.entries(curves)
        .filter(([, series]) => series.length)
        .map(([chart, series]) => Charts.lines({ title: Page.t(`training.${chart}`), x: { label: Page.t("training.step") }, y: { label: Page.t(`training.${chart}.unit`), zero: chart === "format", one: chart === "format" }, series: series.map((one) => ({ name: Page.t(`curve.${one.name}`), points: one.points, dots: one.points.length < 30 })) }));
      if (charts.length) root.append(Page.el("div", { class: "charts" }, ...charts));
      const rows = Object.entries(figures).map(([key, value]) => [Page.t(`sft.${key}`), Page.number(value, Number.isInteger(value) ? 0 : 3)]);
      if (rows.length) root.append(Page.table([Page.t("training.heldout"), ""], rows));
    }
    root.append(Page.el("p", { class: "note" }, Page.t("training.about")));
  },
});

Page.section({
  id: "labels",
  title: "labels.title",
  build(root, data) {
    if (!data.labels.length) return false;
    const chart = (title, histogram, label) => {
      if (!histogram) return null;
      const bins = histogram.counts.map((_, i) => Charts.short(histogram.first + i * histogram.width));
      const zero = Math.round(-histogram.first / histogram.width);
      return Charts.bars({ title, bins, x: { label }, y: { label: Page.t("labels.count") }, series: [{ name: "", values: histogram.counts }], zero: zero < bins.length ? zero : 0, note: Page.t("labels.outer") });
    };
    for (const one of data.labels) {
      const choose = one.action_set === "choose" ? ".choose" : "";
      const share = (count) => `${count} (${Math.round((100 * count) / Math.max(1, one.rows))} %)`;
      root.append(
        Page.el("h3", {}, one.name),
        Page.el("p", {}, Page.t(`labels.sentence${choose}`, { rows: one.rows, extend: share(one.extend_better), near: share(one.near_zero), horizon: one.horizon, futures: one.futures })),
      );
      const charts = [chart(Page.t(`labels.advantages${choose}`), one.advantages, Page.t(`labels.advantages.unit${choose}`)), chart(Page.t("labels.spreads"), one.spreads, Page.t("labels.spreads.unit"))];
      root.append(Page.el("div", { class: "charts" }, ...charts.filter(Boolean)));
      const rows = Object.entries(one.results).map(([key, count]) => [Page.t(`labels.${key}`), Page.number(count, 0)]);
      const scenarios = Page.table([Page.t("scenario"), Page.t("labels.count")], one.by_scenario.map(([name, count]) => [name, String(count)]));
      if (rows.length) root.append(Page.table([Page.t("labels.results"), ""], rows));
      root.append(Page.el("details", {}, Page.el("summary", {}, Page.t("labels.scenarios", { count: one.by_scenario.length })), scenarios));
    }
  },
});

Page.section({
  id: "latency",
  title: "latency.title",
  build(root, data) {
    const rows = data.evaluations.flatMap((evaluation) => total(evaluation).rows.filter((row) => row.decision_ms_p50 !== null).map((row) => [row.name, Page.number(row.decisions, 0), Page.number(row.decision_ms_p50, 2), Page.number(row.decision_ms_p99, 2)]));
    if (!rows.length) return false;
    root.append(Page.table([Page.t("controller"), Page.t("latency.decisions"), Page.t("latency.p50"), Page.t("latency.p99")], rows), Page.el("p", { class: "note" }, Page.t("latency.about")));
  },
});

Page.section({
  id: "runs",
  title: "runs.title",
  build(root, data) {
    if (data.left_out.length) root.append(Page.el("p", {}, Page.t("runs.leftout", { names: listed(data.left_out) })));
    for (const run of data.runs) {
      const settings = (title, values) => Page.table([title, ""], Object.entries(values), { kind: "settings" });
      const copy = Page.el("button", { type: "button", onclick: async () => {
        await navigator.clipboard.writeText(run.command).catch(() => getSelection().selectAllChildren(code));
        copy.textContent = Page.t("copied");
      } }, Page.t("copy"));
      const code = Page.el("pre", {}, run.command);
      root.append(
        Page.el("h3", {}, `${run.name} (${run.stage})`),
        run.finished ? "" : Page.el("p", {}, Page.t("runs.unfinished")),
        Page.el("div", { class: "copy" }, code, copy),
        Object.keys(run.changed).length ? settings(Page.t("runs.changed"), run.changed) : "",
        Page.el("details", {}, Page.el("summary", {}, Page.t("runs.more")), settings(Page.t("runs.defaults"), run.defaults), settings(Page.t("runs.versions"), { ...run.versions, ...(run.commit ? { commit: run.commit } : {}) })),
      );
    }
  },
});
