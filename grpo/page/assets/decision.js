"use strict";
// One decision: what was read, what was answered, and what all answers led to. Needs map.js.

// An answer in plain words; where greens do not follow a fixed cycle it names the green that it leads to.
function answerText(decision, answer) {
  const [, , phase, , , , , phases] = decision;
  if (!phases) return Page.t(`answer.${answer}`);
  const to = answer === "yes" ? phase : answer === "no" ? phases[1] : answer;
  return Page.t(to === phase ? "answer.keep" : "answer.go", { phase: to });
}

class DecisionPanel {
  constructor(player) {
    this.player = player;
    this.element = Page.el("div", { class: "decision", "aria-live": "polite" });
    this.preferred = null;
    this.shown = null;
  }

  // Whose decisions are shown where both controllers took some.
  prefer(recorded) {
    this.preferred = recorded;
  }

  show(second) {
    const { chosen, sides } = this.player;
    const deciding = sides.map((side) => side.recorded).filter((recorded) => recorded.decisions.length);
    if (!deciding.length) return this.replace("none", [Page.el("p", { class: "note" }, Page.t("decision.nobody"))]);
    if (!chosen) return this.replace("click", [Page.el("p", { class: "note" }, Page.t("decision.click"))]);
    const recorded = deciding.includes(this.preferred) ? this.preferred : deciding[0];
    const decision = recorded.decisionBefore(chosen, second);
    if (!decision) return this.replace(`early ${chosen}`, [Page.el("p", { class: "note" }, Page.t("decision.early", { light: chosen }))]);
    const key = [recorded.name, decision[0], chosen].join("\n");
    if (key !== this.shown) this.replace(key, this.content(deciding, recorded, decision));
  }

  replace(key, content) {
    if (key === this.shown) return;
    this.shown = key;
    if (this.futures) this.futures.stop();
    this.futures = null;
    this.element.replaceChildren(...content);
  }

  content(deciding, recorded, decision) {
    const [second, light, phase, answer, probability, prompt, written, phases] = decision;
    const t = Page.t;
    const futures = recorded.futuresOf.get(`${second} ${light}`);
    const worst = recorded.worst.find((one) => one.second === second && one.light === light);
    const sure = probability === null ? "" : t("decision.sure", { percent: (100 * probability).toFixed(1) });
    const parts = [Page.el("h4", {}, t("decision.title", { light, clock: Page.clock(recorded.begin + second) }))];
    if (deciding.length > 1) {
      parts.push(
        Page.el("p", { class: "choice", role: "group", "aria-label": t("controller") },
          ...deciding.map((one) => Page.el("button", { type: "button", "aria-pressed": String(one === recorded), onclick: () => {
            this.prefer(one);
            this.shown = null;
            this.show(Math.floor(this.player.time));
          } }, one.name))),
      );
    }
    parts.push(Page.el("p", { class: "answer" }, t("decision.said", { name: recorded.name, phase, answer: answerText(decision, answer) }), " ", sure));
    if (futures) parts.push(...this.outcomes(recorded, futures, decision));
    else parts.push(Page.el("p", { class: "note" }, t("decision.notsimulated")));
    if (worst) {
      this.futures = new Futures(this.player.map, recorded, worst, decision);
      parts.push(this.futures.element);
    }
    const read = recorded.instruction ? [Page.el("pre", {}, recorded.instruction), Page.el("pre", {}, prompt)] : [Page.el("pre", {}, prompt)];
    const numbered = recorded.action_set === "choose" ? phases.map((id, number) => t("decision.number", { number, phase: id })) : [];
    const numbers = numbered.length ? Page.el("p", { class: "note" }, t("decision.numbers", { numbers: listed(numbered) })) : null;
    parts.push(Page.el("details", {}, Page.el("summary", {}, t(recorded.instruction ? "decision.prompt" : "decision.state")), ...read, Page.el("pre", { class: "given" }, written), numbers));
    return parts;
  }

  outcomes(recorded, futures, decision) {
    const t = Page.t;
    const answer = decision[3];
    const least = Math.min(...futures.filter(([one]) => one !== answer).map(([, figures]) => figures[0]));
    const cost = futures.find(([one]) => one === answer)[1][0] - least;
    const verdict = Math.abs(cost) < 0.05 ? "decision.same" : cost > 0 ? "decision.cost" : "decision.saved";
    const rows = futures.map(([one, figures]) =>
      Page.el("tr", {},
        Page.el("th", { scope: "row" }, answerText(decision, one), one === answer ? ` (${t("decision.given")})` : ""),
        ...figures.map((value, column) => Page.el("td", {}, column < 2 ? value.toFixed(1) : value.toFixed(0)))),
    );
    const head = ["answer", "outcome.delay", "outcome.queue", "outcome.stops", "outcome.arrivals"].map((word) => Page.el("th", { scope: "col" }, t(word)));
    return [
      Page.el("p", {}, t(futures.length > 2 ? `${verdict}.best` : verdict, { cost: Math.abs(cost).toFixed(1), seconds: recorded.horizon.seconds })),
      Page.el("div", { class: "scroll", tabindex: "0" }, Page.el("table", {}, Page.el("thead", {}, Page.el("tr", {}, ...head)), Page.el("tbody", {}, ...rows))),
      Page.el("p", { class: "note" }, t(futures.length > 2 ? "decision.how.all" : "decision.how", recorded.horizon)),
    ];
  }
}

// Two futures of one decision, side by side around the light: after the given answer, and after the best other one.
class Futures {
  constructor(map, recorded, worst, decision) {
    this.worst = worst;
    this.seconds = recorded.horizon.seconds;
    this.time = 0;
    this.playing = false;
    const light = recorded.lights.find((one) => one.id === worst.light);
    this.sides = worst.futures.map(([answer, future]) => {
      const canvas = Page.el("canvas", { class: "map small", role: "img" });
      const figures = Page.el("p", { class: "figures" });
      const caption = `${answerText(decision, answer)}${answer === decision[3] ? ` (${Page.t("decision.given")})` : ""}`;
      const side = { future, canvas, figures, caption, traffic: new Traffic(future.tracks, future.lengths), view: new View(canvas, map, [light]) };
      side.element = Page.el("figure", {}, Page.el("figcaption", {}, Page.el("b", {}, caption), figures), canvas);
      return side;
    });
    this.light = light;
    this.button = Page.el("button", { type: "button", onclick: () => this.toggle() });
    this.slider = Page.el("input", { type: "range", min: 0, max: this.seconds, step: 1, "aria-label": Page.t("decision.seconds"), oninput: () => {
      this.time = Number(this.slider.value);
      this.draw();
    } });
    this.element = Page.el("div", { class: "futures" },
      Page.el("h5", {}, Page.t("decision.both")),
      Page.el("div", { class: "controls" }, this.button, this.slider),
      Page.el("div", { class: "sides" }, ...this.sides.map((side) => side.element)));
    this.say();
    new ResizeObserver(() => {
      for (const side of this.sides) {
        side.view.resize();
        side.view.show(light, 100);
      }
      this.draw();
    }).observe(this.element);
  }

  say() {
    this.button.textContent = this.playing ? `❚❚ ${Page.t("replay.pause")}` : `▶ ${Page.t("decision.play")}`;
  }

  toggle() {
    if (this.playing) return this.stop();
    if (this.time >= this.seconds) this.time = 0;
    this.playing = true;
    this.say();
    let before = performance.now();
    const frame = (now) => {
      if (!this.playing) return;
      this.time = Math.min(this.seconds, this.time + ((now - before) / 1000) * 5);
      before = now;
      this.draw();
      if (this.time >= this.seconds) this.stop();
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  stop() {
    this.playing = false;
    this.say();
  }

  draw() {
    this.slider.value = Math.floor(this.time);
    for (const { future, canvas, figures, caption, traffic, view } of this.sides) {
      view.draw({ full: () => 0, states: { [this.light.id]: valueAt(future.signals, this.time) }, vehicles: traffic.at(this.time), chosen: null });
      figures.textContent = Page.t("decision.lost", { seconds: Math.floor(this.time), lost: future.delay[Math.floor(this.time)].toFixed(0) });
      canvas.setAttribute("aria-label", `${caption}: ${figures.textContent}`);
    }
  }
}
