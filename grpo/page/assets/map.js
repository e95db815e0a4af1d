"use strict";
// A network on a canvas: roads by how full they are, signal heads, vehicles. Knows no controls and no clock.
//
// A map is `Drawing.content` of the recorder; coordinates are decimetres, y upwards. Positions of vehicles count in half
// metres (UNIT). What a colour says is also said without it: a full road is a broad one, a vehicle that stands is filled,
// a red is a bar across the lane, a green an arrow along it, a yellow two dots.

const UNIT = 5; // decimetres
const FAR = 8; // units: from there a direction can be told

class View {
  constructor(canvas, map, lights) {
    this.canvas = canvas;
    this.map = map;
    this.lights = lights;
    this.box = View.bounds(map);
    this.fit();
  }

  static bounds(map) {
    const box = { left: Infinity, right: -Infinity, bottom: Infinity, top: -Infinity };
    for (const [, , , ...points] of map.lanes) {
      for (let i = 0; i < points.length; i += 2) {
        box.left = Math.min(box.left, points[i]);
        box.right = Math.max(box.right, points[i]);
        box.bottom = Math.min(box.bottom, points[i + 1]);
        box.top = Math.max(box.top, points[i + 1]);
      }
    }
    return box;
  }

  // The whole network.
  fit() {
    const { left, right, bottom, top } = this.box;
    this.centre = [(left + right) / 2, (bottom + top) / 2];
    this.zoom = 1;
    this.scaleToFit();
  }

  // A circle around a light, radius in metres.
  show(light, metres) {
    const heads = light.heads;
    if (!heads.length) return;
    this.centre = [1, 2].map((k) => heads.reduce((sum, head) => sum + head[k], 0) / heads.length);
    this.scaleToFit();
    this.zoom = Math.min(this.canvas.width, this.canvas.height) / (20 * metres) / this.whole;
  }

  scaleToFit() {
    const { left, right, bottom, top } = this.box;
    const size = [right - left + 200, top - bottom + 200];
    this.whole = Math.min(this.canvas.width / size[0], this.canvas.height / size[1]);
  }

  get scale() {
    return this.whole * this.zoom; // pixels a decimetre
  }

  magnify(factor) {
    this.zoom = Math.min(400, Math.max(0.5, this.zoom * factor));
  }

  move(dx, dy) {
    this.centre = [this.centre[0] - dx / this.scale, this.centre[1] + dy / this.scale];
  }

  // Fit the canvas to the room that the page gives it.
  resize() {
    const density = Math.min(2, window.devicePixelRatio || 1);
    const width = Math.max(50, Math.round(this.canvas.clientWidth * density));
    const height = Math.max(50, Math.round(this.canvas.clientHeight * density));
    if (width !== this.canvas.width || height !== this.canvas.height) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.scaleToFit();
    }
  }

  x(x) {
    return this.canvas.width / 2 + (x - this.centre[0]) * this.scale;
  }

  y(y) {
    return this.canvas.height / 2 - (y - this.centre[1]) * this.scale;
  }

  // The light nearest to a place on the canvas (pixels), if it is near.
  lightAt(px, py) {
    let best = null;
    let nearest = 40 ** 2;
    for (const light of this.lights) {
      for (const [, x, y] of light.heads) {
        const distance = (this.x(x) - px) ** 2 + (this.y(y) - py) ** 2;
        if (distance < nearest) [best, nearest] = [light, distance];
      }
    }
    return best;
  }

  // `full`: edge -> 0 to 1, `states`: light -> its state, `vehicles`: [x, y, angle, length, whether it stands], chosen: a light's id.
  draw({ full, states, vehicles, chosen }) {
    this.resize();
    const pen = this.canvas.getContext("2d");
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const ink = { paper: colour("paper"), road: colour("road"), full: colour("full"), ink: colour("ink"), accent: colour("accent"), good: colour("good"), bad: colour("bad"), warn: colour("warn") };
    pen.fillStyle = ink.paper;
    pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.drawRoads(pen, ink, full);
    for (const light of this.lights) this.drawHeads(pen, ink, light, states[light.id], light.id === chosen);
    this.drawVehicles(pen, ink, vehicles);
  }

  line(pen, points) {
    pen.beginPath();
    for (let i = 0; i < points.length; i += 2) pen.lineTo(this.x(points[i]), this.y(points[i + 1]));
  }

  drawRoads(pen, ink, full) {
    pen.lineCap = "butt";
    pen.lineJoin = "round";
    pen.fillStyle = ink.road;
    for (const outline of this.map.junctions) {
      this.line(pen, outline);
      pen.fill();
    }
    const widest = (width) => Math.max(1, (width - 3) * this.scale);
    for (const [, width, cars, ...points] of this.map.lanes) {
      this.line(pen, points);
      pen.strokeStyle = ink.road;
      pen.lineWidth = widest(cars ? width : width / 2);
      pen.stroke();
    }
    pen.strokeStyle = ink.full;
    for (const [edge, width, cars, ...points] of this.map.lanes) {
      const share = cars ? full(edge) : 0;
      if (share < 0.05) continue;
      this.line(pen, points);
      pen.lineWidth = Math.max(1, widest(width) * share);
      pen.globalAlpha = 0.25 + 0.5 * share;
      pen.stroke();
    }
    pen.globalAlpha = 1;
  }

  drawHeads(pen, ink, light, state, chosen) {
    if (!state) return;
    const bar = Math.max(2, 8 * this.scale);
    for (const [link, x, y, degrees, width] of light.heads) {
      const shown = state[link];
      const half = Math.max(2.5, (width / 2) * this.scale);
      pen.save();
      pen.translate(this.x(x), this.y(y));
      pen.rotate((-degrees * Math.PI) / 180);
      if (shown === "G" || shown === "g") {
        pen.strokeStyle = ink.good;
        pen.lineWidth = shown === "G" ? bar : bar / 2;
        pen.beginPath();
        pen.moveTo(-3 * half, 0);
        pen.lineTo(0, 0);
        pen.moveTo(-half, -half * 0.8);
        pen.lineTo(0, 0);
        pen.lineTo(-half, half * 0.8);
        pen.stroke();
      } else if ("yYuU".includes(shown)) {
        pen.fillStyle = ink.warn;
        for (const place of [-half / 2, half / 2]) {
          pen.beginPath();
          pen.arc(-bar / 2, place, Math.max(1.5, half / 2.5), 0, 7);
          pen.fill();
        }
      } else {
        pen.fillStyle = shown === "r" || shown === "s" ? ink.bad : ink.full;
        pen.fillRect(-bar, -half, bar, 2 * half);
      }
      pen.restore();
    }
    if (chosen) {
      const xs = light.heads.map((head) => this.x(head[1]));
      const ys = light.heads.map((head) => this.y(head[2]));
      const mid = [xs, ys].map((all) => (Math.min(...all) + Math.max(...all)) / 2);
      const radius = Math.max(18, Math.hypot(Math.max(...xs) - mid[0], Math.max(...ys) - mid[1]) + 8);
      pen.strokeStyle = ink.accent;
      pen.lineWidth = 2;
      pen.setLineDash([6, 4]);
      pen.beginPath();
      pen.arc(mid[0], mid[1], radius, 0, 7);
      pen.stroke();
      pen.setLineDash([]);
    }
  }

  drawVehicles(pen, ink, vehicles) {
    const wide = Math.max(2.5, 18 * this.scale);
    pen.lineWidth = Math.max(1, this.scale * 2);
    for (const [x, y, angle, length, stands] of vehicles) {
      const long = Math.max(4, length * this.scale);
      pen.save();
      pen.translate(this.x(x), this.y(y));
      pen.rotate(-angle);
      pen.fillStyle = stands ? ink.accent : ink.paper;
      pen.strokeStyle = stands ? ink.accent : ink.ink;
      pen.beginPath();
      pen.rect(-long, -wide / 2, long, wide);
      pen.fill();
      pen.stroke();
      pen.restore();
    }
  }
}

// Vehicles over time, from [second, x, y, dx, dy, ...] and their lengths.
class Traffic {
  constructor(tracks, lengths) {
    this.vehicles = tracks.map((track, number) => {
      const count = (track.length - 3) / 2 + 1;
      const xs = new Int32Array(count);
      const ys = new Int32Array(count);
      [xs[0], ys[0]] = [track[1], track[2]];
      for (let i = 1; i < count; i++) {
        xs[i] = xs[i - 1] + track[2 * i + 1];
        ys[i] = ys[i - 1] + track[2 * i + 2];
      }
      return { begin: track[0], xs, ys, length: lengths[number] };
    });
  }

  // Who is where at a time, which may lie between two seconds.
  at(time) {
    const found = [];
    for (const { begin, xs, ys, length } of this.vehicles) {
      const after = time - begin;
      if (after < 0 || after > xs.length - 1) continue;
      const i = Math.floor(after);
      const j = Math.min(i + 1, xs.length - 1);
      const part = after - i;
      const x = (xs[i] + (xs[j] - xs[i]) * part) * UNIT;
      const y = (ys[i] + (ys[j] - ys[i]) * part) * UNIT;
      found.push([x, y, Traffic.heading(xs, ys, j), length, xs[i] === xs[j] && ys[i] === ys[j]]);
    }
    return found;
  }

  // Where it has come from, or will go, at some distance, in radians: one step of half a metre has no direction.
  static heading(xs, ys, now) {
    for (const [step, sign] of [[-1, 1], [1, -1]]) {
      for (let i = now + step; i >= 0 && i < xs.length; i += step) {
        const [dx, dy] = [xs[now] - xs[i], ys[now] - ys[i]];
        if (dx * dx + dy * dy >= FAR * FAR) return Math.atan2(sign * dy, sign * dx);
      }
    }
    return Math.atan2(ys[ys.length - 1] - ys[0], xs[xs.length - 1] - xs[0]);
  }
}

// The last of [second, value, second, value, ...] that has begun.
function valueAt(steps, time) {
  let low = 0;
  let high = steps.length / 2 - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (steps[2 * middle] <= time) low = middle;
    else high = middle - 1;
  }
  return steps[2 * low + 1];
}
