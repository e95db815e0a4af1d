"use strict";
// The replay: recorded controllers side by side on one clock. Needs map.js and decision.js.

const SPEEDS = [1, 5, 20, 60];

Page.section({
  id: "replay",
  title: "replay.title",
  build(root, data) {
    if (data.recorded && data.recorded.length) new Player(root, data.recorded);
    else return false;
  },
});

// One recording, ready to be shown. `begin` is the scenario's time at second 0.
class Recorded {
  constructor(content, entry) {
    Object.assign(this, content);
    this.name = entry.name;
    this.traffic = new Traffic(content.tracks, content.lengths);
    this.lost = new Float64Array(content.seconds + 1); // vehicle-seconds, from the begin
    content.delay.forEach((tenths, i) => (this.lost[i + 1] = this.lost[i] + tenths / 10));
    this.fullness = new Map();
    content.fill.edges.forEach((edge, i) => {
      let percent = 0;
      this.fullness.set(edge, Float32Array.from(content.fill.percent[i] || [], (step) => (percent += step) / 100));
    });
    this.futuresOf = new Map(content.futures.map(([second, light, figures]) => [`${second} ${light}`, figures]));
    this.decisionsOf = new Map();
    for (const decision of content.decisions) {
      if (!this.decisionsOf.has(decision[1])) this.decisionsOf.set(decision[1], []);
      this.decisionsOf.get(decision[1]).push(decision);
    }
  }

  picture(time, chosen) {
    const place = Math.max(0, Math.floor((time - 1) / this.fill.every));
    const states = {};
    for (const light of this.lights) states[light.id] = valueAt(this.signals[light.id], time);
    return {
      full: (edge) => (this.fullness.get(edge) || [])[place] || 0,
      states,
      vehicles: this.traffic.at(time),
      chosen,
    };
  }

  // The light's last decision that was taken by then.
  decisionBefore(light, time) {
    const all = this.decisionsOf.get(light) || [];
    let low = 0;
    let high = all.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (all[middle][0] <= time) low = middle + 1;
      else high = middle;
    }
    return low ? all[low - 1] : null;
  }
}

class Player {
  constructor(root, scenarios) {
    this.scenarios = scenarios;
    this.time = 0;
    this.speed = 20;
    this.playing = false;
    this.sides = [];
    this.chosen = null;
    this.build(root);
    const before = Page.kept.replay || { number: 0 };
    this.time = before.time;
    this.chosen = before.chosen || null;
    this.open(before.number, before.pair);
    Page.leaving.push(() => {
      this.stop();
      Page.kept.replay = { number: this.number, pair: this.pair, time: this.time, chosen: this.chosen };
    });
  }

  build(root) {
    const t = Page.t;
    const options = (labels) => labels.map((label, i) => Page.el("option", { value: i }, label));
    this.scenario = Page.el("select", { onchange: () => this.open(Number(this.scenario.value)) }, ...options(this.scenarios.map((one) => one.name)));
    this.play = Page.el("button", { type: "button", class: "play", onclick: () => this.toggle() });
    this.slider = Page.el("input", { type: "range", min: 0, step: 1, class: "clock", "aria-label": t("replay.clock"), oninput: () => this.seek(Number(this.slider.value)) });
    this.clock = Page.el("output", { class: "clock" });
    this.pace = Page.el("select", { onchange: () => (this.speed = SPEEDS[this.pace.value]) }, ...options(SPEEDS.map((speed) => `${speed}×`)));
    this.pace.value = SPEEDS.indexOf(this.speed);
    this.light = Page.el("select", { onchange: () => this.choose(this.light.value || null) });
    const zoom = (label, words, action) => Page.el("button", { type: "button", title: t(words), "aria-label": t(words), onclick: action }, label);
    this.views = Page.el("div", { class: "sides" });
    this.difference = Page.el("div", { class: "difference" });
    this.worst = Page.el("div", { class: "worst" });
    this.about = Page.el("p", { class: "note" });
    this.panel = new DecisionPanel(this);
    const named = (words, control) => Page.el("label", {}, Page.el("span", {}, t(words)), control);
    root.append(
      Page.el("p", {}, t("replay.about")),
      Page.el(
        "div",
        { class: "controls", onkeydown: (event) => this.key(event) },
        ...(this.scenarios.length > 1 ? [named("scenario", this.scenario)] : []),
        this.play,
        this.slider,
        this.clock,
        named("replay.speed", this.pace),
        named("light", this.light),
        Page.el("span", { class: "zoom", role: "group", "aria-label": t("replay.zoom") },
          zoom("+", "replay.closer", () => this.magnify(1.5)),
          zoom("−", "replay.farther", () => this.magnify(1 / 1.5)),
          zoom("⤢", "replay.whole", () => this.whole())),
      ),
      this.views,
      Page.el("p", { class: "legend" }, t("replay.legend")),
      this.difference,
      this.panel.element,
      this.worst,
      this.about,
    );
    new ResizeObserver(() => this.draw()).observe(this.views);
    Page.onTheme(() => this.draw());
    this.showPlaying();
  }

  // Load a scenario's map and the two recordings that are wanted.
  async open(number, pair) {
    this.stop();
    const scenario = this.scenarios[number];
    const mine = (this.opening = {});
    this.number = number;
    this.scenario.value = number;
    const last = scenario.recordings.length - 1;
    this.pair = pair || [Math.max(0, last - 1), last];
    this.views.replaceChildren(Page.el("p", { class: "loading" }, Page.t("loading")));
    const map = await Page.json(scenario.map);
    if (this.opening !== mine) return;
    const entries = scenario.recordings.length > 1 ? this.pair : [0];
    const opened = await Promise.all(entries.map((i) => Page.json(scenario.recordings[i].blob)));
    if (this.opening !== mine) return; // something else was chosen meanwhile
    this.map = map;
    this.end = Math.max(...opened.map((one) => one.seconds));
    this.slider.max = this.end;
    this.sides = opened.map((content, side) => this.side(new Recorded(content, scenario.recordings[entries[side]]), side, scenario));
    this.views.replaceChildren(...this.sides.map((side) => side.element));
    const lights = this.sides[0].recorded.lights.filter((light) => light.phases.length);
    this.light.replaceChildren(Page.el("option", { value: "" }, "–"), ...lights.map((light) => Page.el("option", { value: light.id }, light.id)));
    this.whole();
    this.choose(lights.some((light) => light.id === this.chosen) ? this.chosen : lights.length === 1 ? lights[0].id : null);
    this.listWorst();
    this.seek(this.time ?? this.end / 4); // at the begin there is nobody yet
  }

  side(recorded, side, scenario) {
    const canvas = Page.el("canvas", { class: "map", role: "img" });
    const view = new View(canvas, this.map, recorded.lights);
    const figures = Page.el("p", { class: "figures" });
    const which = Page.el(
      "select",
      { "aria-label": Page.t(side ? "replay.right" : "replay.left"), onchange: () => this.open(this.number, this.pair.map((old, k) => (k === side ? Number(which.value) : old))) },
      ...scenario.recordings.map((one, i) => Page.el("option", { value: i }, one.name)),
    );
    which.value = scenario.recordings.length > 1 ? this.pair[side] : 0;
    this.drag(canvas, view);
    return { recorded, canvas, view, figures, element: Page.el("figure", {}, Page.el("figcaption", {}, which, figures), canvas) };
  }

  // Drag moves both maps, the wheel with Ctrl zooms both, a click chooses a light.
  drag(canvas, view) {
    let from = null;
    let moved = 0;
    canvas.onpointerdown = (event) => {
      from = [event.clientX, event.clientY];
      moved = 0;
      canvas.setPointerCapture(event.pointerId);
    };
    canvas.onpointermove = (event) => {
      if (!from) return;
      const step = [event.clientX - from[0], event.clientY - from[1]];
      moved += Math.abs(step[0]) + Math.abs(step[1]);
      from = [event.clientX, event.clientY];
      const density = canvas.width / canvas.clientWidth;
      for (const side of this.sides) side.view.move(step[0] * density, step[1] * density);
      this.draw();
    };
    canvas.onpointerup = (event) => {
      from = null;
      if (moved > 5) return;
      const density = canvas.width / canvas.clientWidth;
      const light = view.lightAt(event.offsetX * density, event.offsetY * density);
      if (light && light.phases.length) this.choose(light.id);
    };
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.magnify(event.deltaY < 0 ? 1.2 : 1 / 1.2);
    }, { passive: false });
  }

  key(event) {
    if (event.key === " " && event.target.tagName !== "BUTTON") {
      event.preventDefault();
      this.toggle();
    }
  }

  magnify(factor) {
    for (const side of this.sides) side.view.magnify(factor);
    this.draw();
  }

  whole() {
    for (const side of this.sides) side.view.fit();
    this.draw();
  }

  choose(id, { zoom = Boolean(id) } = {}) {
    this.chosen = id;
    this.light.value = id || "";
    for (const side of this.sides) {
      const light = side.recorded.lights.find((one) => one.id === id);
      if (light && zoom) side.view.show(light, 120);
    }
    this.draw();
  }

  seek(time) {
    this.time = Math.max(0, Math.min(this.end, time));
    this.draw();
  }

  toggle() {
    if (this.playing) return this.stop();
    if (this.time >= this.end) this.time = 0;
    this.playing = true;
    this.before = performance.now();
    const frame = (now) => {
      if (!this.playing) return;
      this.time = Math.min(this.end, this.time + ((now - this.before) / 1000) * this.speed);
      this.before = now;
      this.draw();
      if (this.time >= this.end) this.stop();
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    this.showPlaying();
  }

  stop() {
    this.playing = false;
    this.showPlaying();
  }

  showPlaying() {
    this.play.textContent = this.playing ? `❚❚ ${Page.t("replay.pause")}` : `▶ ${Page.t("replay.play")}`;
  }

  draw() {
    if (!this.sides.length) return;
    const second = Math.floor(this.time);
    this.slider.value = second;
    this.clock.textContent = Page.clock(this.sides[0].recorded.begin + second);
    for (const { recorded, view, figures, canvas } of this.sides) {
      view.draw(recorded.picture(Math.min(this.time, recorded.seconds), this.chosen));
      const now = Math.min(Math.max(0, second - 1), recorded.seconds - 1);
      const lost = Math.round(recorded.lost[Math.min(second, recorded.seconds)]);
      figures.textContent = Page.t("replay.figures", { queue: recorded.queue[now], outside: recorded.outside[now], lost: (lost / 60).toFixed(0) });
      canvas.setAttribute("aria-label", `${recorded.name}: ${figures.textContent}`);
    }
    this.drawDifference(second);
    this.panel.show(second);
  }

  // The running difference of delay, with the present second as a line.
  drawDifference(second) {
    if (this.sides.length < 2) return this.difference.replaceChildren();
    const [left, right] = this.sides.map((side) => side.recorded);
    if (this.difference.of !== left || this.difference.and !== right) {
      [this.difference.of, this.difference.and] = [left, right];
      const points = [];
      const last = Math.min(left.seconds, right.seconds);
      for (let s = 0; s <= last; s += Math.max(1, Math.ceil(last / 400))) points.push([left.begin + s, (right.lost[s] - left.lost[s]) / 60]);
      this.difference.replaceChildren(
        Charts.lines({
          title: Page.t("replay.difference", { left: left.name, right: right.name }),
          x: { label: Page.t("time"), format: Page.clock },
          y: { label: Page.t("vehicle-minutes"), zero: true },
          series: [{ name: "", points }],
          height: 150,
          cursor: true,
        }),
      );
    }
    const chart = this.difference.firstElementChild;
    if (chart && chart.setCursor) chart.setCursor(left.begin + second);
  }

  listWorst() {
    this.worst.replaceChildren();
    for (const { recorded } of this.sides) {
      if (!recorded.worst.length) continue;
      const items = recorded.worst.map((worst) =>
        Page.el("li", {}, Page.el("button", { type: "button", onclick: () => this.showWorst(recorded, worst) }, this.sayWorst(recorded, worst))),
      );
      this.worst.append(Page.el("div", {}, Page.el("h4", {}, Page.t("replay.worst", { name: recorded.name })), Page.el("ol", {}, ...items)));
    }
    this.about.textContent = this.worst.childElementCount ? Page.t("replay.worst.about", this.sides[0].recorded.horizon) : "";
  }

  sayWorst(recorded, worst) {
    const decision = recorded.decisionBefore(worst.light, worst.second);
    return Page.t("replay.worst.line", {
      clock: Page.clock(recorded.begin + worst.second),
      light: worst.light,
      answer: answerText(decision, decision[3]),
      cost: worst.cost.toFixed(0),
    });
  }

  showWorst(recorded, worst) {
    this.stop();
    this.time = worst.second;
    this.panel.prefer(recorded);
    this.choose(worst.light);
    this.views.scrollIntoView({ block: "start" });
  }
}
