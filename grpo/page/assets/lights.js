"use strict";
// The charts of signal engineers, from the recordings: a table of all phases, then of one light the coordination diagram
// (phase bars with arrivals), split failures and the greens' lengths; of a corridor time and space.

Page.section({
  id: "lights",
  title: "lights.title",
  build(root, data) {
    if (!data.recorded || !data.recorded.length) return false;
    new Lights(root, data);
  },
});

class Lights {
  constructor(root, data) {
    this.data = data;
    const select = (onchange, labels) => Page.el("select", { onchange }, ...labels.map((label, i) => Page.el("option", { value: i }, label)));
    this.scenario = select(() => this.openScenario(), data.recorded.map((one) => one.name));
    this.controller = select(() => this.openRecording(), []);
    this.light = select(() => this.draw(), []);
    this.phase = select(() => this.draw(), []);
    this.figures = Page.el("div");
    this.charts = Page.el("div");
    this.corridor = Page.el("div");
    const named = (word, control) => Page.el("label", {}, Page.el("span", {}, Page.t(word)), control);
    root.append(
      Page.el("p", {}, Page.t("lights.about")),
      Page.el("div", { class: "controls" }, named("scenario", this.scenario), named("controller", this.controller), named("light", this.light), named("phase", this.phase)),
      this.charts,
      this.corridor,
      this.figures,
    );
    this.openScenario();
  }

  get entry() {
    return this.data.recorded[this.scenario.value || 0];
  }

  openScenario() {
    const entry = this.entry;
    const last = entry.recordings.length - 1;
    this.controller.replaceChildren(...entry.recordings.map((one, i) => Page.el("option", { value: i }, one.name)));
    this.controller.value = last;
    this.drawTable();
    this.openRecording();
  }

  drawTable() {
    const rows = this.data.phases.filter((row) => row.scenario === this.entry.name);
    const head = ["light", "phase", "controller", "lights.greens", "lights.mean", "lights.arrivals", "lights.ongreen", "lights.failures"].map((word) => Page.t(word));
    rows.sort((a, b) => a.order - b.order);
    const table = Page.table(head, rows.map((row) => [row.light, row.phase, row.controller, row.greens, Page.number(row.green_mean_s), row.arrivals, row.arrivals ? `${Math.round((100 * row.arrivals_on_green) / row.arrivals)} %` : "–", `${row.split_failures}`]));
    this.figures.replaceChildren(
      Page.el("details", { open: rows.length <= 24 }, Page.el("summary", {}, Page.t("lights.table", { seed: this.entry.recordings[0].seed })), table),
      Page.el("p", { class: "note" }, Page.t("lights.table.about")),
    );
  }

  async openRecording() {
    const entry = this.entry;
    const which = Number(this.controller.value);
    const recording = await Page.json(entry.recordings[which].blob);
    if (entry !== this.entry || which !== Number(this.controller.value)) return;
    this.recording = recording;
    const before = this.light.value;
    const lights = recording.lights.filter((light) => light.phases.length);
    this.light.replaceChildren(...lights.map((light) => Page.el("option", { value: light.id }, light.id)));
    if (lights.some((light) => light.id === before)) this.light.value = before;
    this.draw();
    this.drawCorridors();
  }

  draw() {
    const light = this.recording.lights.find((one) => one.id === this.light.value);
    if (!light) return this.charts.replaceChildren(Page.el("p", { class: "note" }, Page.t("lights.none")));
    const place = `${this.scenario.value} ${light.id}`;
    if (this.phase.of !== place) {
      this.phase.of = place;
      this.phase.replaceChildren(...light.phases.map((one, i) => Page.el("option", { value: i }, one.id)));
      this.phase.value = this.busiest(light);
    }
    const phase = Number(this.phase.value);
    this.charts.replaceChildren(
      this.coordination(light, phase),
      Page.el("div", { class: "charts" }, this.failures(light), this.lengths(light)),
    );
  }

  // The phase for which most vehicles come.
  busiest(light) {
    const counts = this.recording.meant[light.id].map((links) => this.recording.approaches.filter(([, name, link]) => name === light.id && links.includes(link)).length);
    return counts.indexOf(Math.max(...counts));
  }

  // Purdue coordination diagram: each cycle of the phase is a bar from the end of its green to the end of the next one;
  // the green part is wide and tinted, each vehicle a point at the second of the cycle at which it arrives.
  coordination(light, phase) {
    const { begin, approaches, signals, meant } = this.recording;
    const links = new Set(meant[light.id][phase]);
    const greens = light.greens.filter((green) => green[0] === phase);
    const cycles = greens.slice(1).map((green, i) => ({ from: greens[i][2], green: green[1], to: green[2] }));
    const points = [];
    for (const [, name, link, arrives, stood] of approaches) {
      if (name !== light.id || !links.has(link)) continue;
      const cycle = cycles.find((one) => arrives >= one.from && arrives < one.to);
      if (cycle) points.push({ at: arrives, after: arrives - cycle.from, green: "Gg".includes(valueAt(signals[light.id], arrives)[link]), stood: stood !== null });
    }
    const share = points.length ? Math.round((100 * points.filter((point) => point.green).length) / points.length) : 0;
    const title = Page.t("lights.pcd", { light: light.id, phase: light.phases[phase].id, share });
    if (!cycles.length) return Page.el("p", { class: "note" }, Page.t("lights.nocycles", { light: light.id, phase: light.phases[phase].id }));
    const high = Math.max(...cycles.map((cycle) => cycle.to - cycle.from));
    const draw = (drawing, width, tall) => {
      const box = { left: 48, right: width - 12, top: 22, bottom: tall - 36 };
      const x = { low: begin + cycles[0].from, high: begin + cycles[cycles.length - 1].to, format: Page.clock, label: Page.t("time") };
      x.ticks = Charts.clockTicks(x.low, x.high, Math.max(2, width / 110));
      const scale = Charts.axes(drawing, box, x, { low: 0, high, ticks: Charts.ticks(0, high, 5), label: Page.t("lights.incycle") });
      for (const cycle of cycles) {
        const [left, right] = [scale.x(begin + cycle.from), scale.x(begin + cycle.to)];
        const [start, end] = [scale.y(cycle.green - cycle.from), scale.y(cycle.to - cycle.from)];
        drawing.append(
          Charts.svg("rect", { x: left, width: Math.max(1, right - left - 0.5), y: end, height: start - end, fill: "var(--good)", opacity: 0.22 }),
          Charts.svg("line", { x1: left, x2: right, y1: start, y2: start, stroke: "var(--good)", "stroke-width": 2 }),
          Charts.svg("line", { x1: left, x2: right, y1: end, y2: end, stroke: "var(--bad)", "stroke-width": 2, "stroke-dasharray": "4 2" }),
        );
      }
      for (const point of points) drawing.append(Charts.svg("circle", { class: "mark", cx: scale.x(begin + point.at).toFixed(1), cy: scale.y(point.after).toFixed(1), r: 2, fill: point.stood ? "var(--ink)" : "var(--paper)", stroke: "var(--ink)", "stroke-width": 0.8 }));
    };
    const table = () => Page.table([Page.t("lights.cyclefrom"), Page.t("lights.red"), Page.t("lights.green"), Page.t("lights.arrivals"), Page.t("lights.ongreen")], cycles.map((cycle) => {
      const own = points.filter((point) => point.at >= cycle.from && point.at < cycle.to);
      return [Page.clock(begin + cycle.from), Page.number(cycle.green - cycle.from), Page.number(cycle.to - cycle.green), own.length, own.filter((point) => point.green).length];
    }));
    return Charts.frame(title, 300, draw, table, { note: Page.t("lights.pcd.about") });
  }

  failures(light) {
    const { begin, seconds, behind } = this.recording;
    const every = Math.max(60, Math.ceil(seconds / 24 / 60) * 60);
    const bins = Array.from({ length: Math.ceil(seconds / every) }, (_, i) => Page.clock(begin + i * every).slice(0, -3));
    const series = light.phases.map((phase, number) => {
      const values = bins.map(() => 0);
      light.greens.forEach(([which, , end], i) => {
        if (which === number && behind[light.id][i] > 0) values[Math.min(bins.length - 1, Math.floor(end / every))] += 1;
      });
      return { name: `${Page.t("phase")} ${phase.id}`, values };
    });
    return Charts.bars({ title: Page.t("lights.failed", { light: light.id }), bins, x: { label: Page.t("time") }, y: { label: Page.t("lights.failed.y") }, series });
  }

  lengths(light) {
    const all = light.greens.map((green) => green[2] - green[1]);
    const step = [1, 2, 5, 10, 20, 30, 60, 120, 300].find((one) => Math.max(...all, 1) / one <= 20) || 600;
    const bins = Array.from({ length: Math.floor(Math.max(...all, 1) / step) + 1 }, (_, i) => String(i * step));
    const series = light.phases.map((phase, number) => {
      const values = bins.map(() => 0);
      for (const [which, start, end] of light.greens) if (which === number) values[Math.floor((end - start) / step)] += 1;
      return { name: `${Page.t("phase")} ${phase.id}`, values };
    });
    return Charts.bars({ title: Page.t("lights.lengths", { light: light.id }), bins, x: { label: Page.t("lights.lengths.x", { step }) }, y: { label: Page.t("lights.lengths.y") }, series });
  }

  async drawCorridors() {
    const { entry } = this;
    const name = entry.recordings[this.controller.value].name;
    const charts = [];
    for (const way of entry.corridors) {
      const found = way.diagrams.find((one) => one.name === name);
      if (found) charts.push(this.timeSpace(way.row, await Page.json(found.blob)));
    }
    if (entry !== this.entry || name !== entry.recordings[this.controller.value].name) return;
    this.corridor.replaceChildren(...(charts.length ? [Page.el("h3", {}, Page.t("lights.corridor")), ...charts] : []));
  }

  timeSpace(row, { lights, paths }) {
    const { begin, seconds } = this.recording;
    const span = Math.min(900, seconds);
    let from = Math.max(0, Math.min(seconds - span, Math.floor(seconds / 2 / 300) * 300));
    const box = {};
    const host = Page.el("div");
    const slider = Page.el("input", { type: "range", min: 0, max: Math.max(0, seconds - span), step: 60, value: from, "aria-label": Page.t("lights.window"), oninput: () => {
      from = Number(slider.value);
      host.replaceChildren(chart());
    } });
    const [low, high] = [Math.min(0, Charts.least(paths.map((path) => path[1]))), lights[lights.length - 1].at + 150];
    const chart = () => {
      const draw = (drawing, width, tall) => {
        Object.assign(box, { left: 48, right: width - 12, top: 22, bottom: tall - 36 });
        const x = { low: begin + from, high: begin + from + span, format: Page.clock, label: Page.t("time") };
        x.ticks = Charts.clockTicks(x.low, x.high, Math.max(2, width / 110));
        const scale = Charts.axes(drawing, box, x, { low, high, ticks: Charts.ticks(low, high, 6), label: Page.t("lights.metres") });
        const clip = `clip${from}-${row.join("-").length}-${width}`;
        drawing.append(Charts.svg("clipPath", { id: clip }, Charts.svg("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top })));
        const inside = Charts.svg("g", { "clip-path": `url(#${clip})` });
        for (const path of paths) {
          const points = [];
          for (let i = 0; i < path.length; i += 2) if (path[i] >= from - 10 && path[i] <= from + span + 10) points.push(`${scale.x(begin + path[i]).toFixed(1)} ${scale.y(path[i + 1]).toFixed(1)}`);
          if (points.length > 1) inside.append(Charts.svg("path", { class: "mark", d: `M${points.join("L")}`, fill: "none", stroke: "var(--s1)", "stroke-width": 0.9, opacity: 0.75 }));
        }
        for (const light of lights) {
          for (const [start, end, shown] of light.spans) {
            if (end < from || start > from + span) continue;
            const red = !"GgyY".includes(shown);
            inside.append(Charts.svg("line", { x1: scale.x(begin + start), x2: scale.x(begin + end), y1: scale.y(light.at), y2: scale.y(light.at), stroke: red ? "var(--bad)" : "yY".includes(shown) ? "var(--warn)" : "var(--good)", "stroke-width": red ? 6 : 2 }));
          }
          inside.append(Charts.svg("text", { x: box.left + 3, y: scale.y(light.at) - 5, "font-weight": 650 }, Charts.cut(light.id, 28)));
        }
        drawing.append(inside);
      };
      return Charts.frame(Page.t("lights.timespace", { from: row[0], to: row[row.length - 1] }), 340, draw, null, { note: Page.t("lights.timespace.about") });
    };
    host.append(chart());
    if (span >= seconds) return host;
    return Page.el("div", {}, host, Page.el("div", { class: "controls" }, Page.el("label", {}, Page.el("span", {}, Page.t("lights.window")), slider)));
  }
}
