"use strict";
// Small charts in SVG: lines, dots with intervals, bars, clouds of points. Each is drawn for the width that it gets, has
// its figures in a table below it, and tells series apart by dash and marker as well as by colour.

const DASHES = ["", "7 3", "2 3", "10 3 2 3", "1 4", "12 4"];
const MARKERS = ["circle", "square", "triangle", "diamond", "cross", "ring"];
const MOST_ROWS = 400; // of a table below a chart

const Charts = {
  svg(tag, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) element.setAttribute(name, value);
    element.append(...children);
    return element;
  },

  colour: (i) => `var(--s${i % 6})`,

  // Round steps that make about `count` ticks between two values.
  ticks(low, high, count) {
    const raw = (high - low) / Math.max(1, count) || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((one) => one * power >= raw) * power;
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
    return found;
  },

  // Ticks of a clock: whole minutes, five, ten, fifteen, thirty, hours.
  clockTicks(low, high, count) {
    const steps = [10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
    const step = steps.find((one) => (high - low) / one <= count) || 86400;
    const found = [];
    for (let n = Math.ceil(low / step); n * step <= high; n++) found.push(n * step);
    return found;
  },

  // Of any number of values: as arguments of Math.min they would be too many.
  least: (values) => values.reduce((least, value) => Math.min(least, value), Infinity),
  largest: (values) => values.reduce((largest, value) => Math.max(largest, value), -Infinity),

  short: (value) => (Math.abs(value) >= 10000 ? `${value / 1000}k` : String(Number(value.toPrecision(6)))).replace("-", "−"),

  marker(kind, x, y, size, fill) {
    const shape = MARKERS[kind % MARKERS.length];
    const s = size;
    const paths = {
      circle: `M${x - s} ${y}a${s} ${s} 0 1 0 ${2 * s} 0a${s} ${s} 0 1 0 ${-2 * s} 0z`,
      square: `M${x - s} ${y - s}h${2 * s}v${2 * s}h${-2 * s}z`,
      triangle: `M${x} ${y - 1.2 * s}L${x + 1.2 * s} ${y + s}L${x - 1.2 * s} ${y + s}z`,
      diamond: `M${x} ${y - 1.4 * s}L${x + 1.4 * s} ${y}L${x} ${y + 1.4 * s}L${x - 1.4 * s} ${y}z`,
      cross: `M${x - s} ${y - s}L${x + s} ${y + s}M${x + s} ${y - s}L${x - s} ${y + s}`,
      ring: `M${x - s} ${y}a${s} ${s} 0 1 0 ${2 * s} 0a${s} ${s} 0 1 0 ${-2 * s} 0z`,
    };
    const open = shape === "cross" || shape === "ring";
    return Charts.svg("path", { d: paths[shape], fill: open ? "none" : fill, stroke: fill, "stroke-width": open ? 1.6 : 0 });
  },

  // The element of a chart: title, drawing (made anew for every width) and table.
  frame(title, height, draw, table, { note = null } = {}) {
    const drawing = Charts.svg("svg", { role: "img", "aria-label": title });
    const figure = Page.el("figure", { class: "chart" }, Page.el("figcaption", { class: "title" }, title), drawing);
    if (note) figure.append(Page.el("p", { class: "note" }, note));
    if (table) {
      const details = Page.el("details", {}, Page.el("summary", {}, Page.t("chart.figures")));
      details.ontoggle = () => {
        if (details.open && details.childElementCount === 1) details.append(table());
      };
      figure.append(details);
    }
    let before = 0;
    const render = () => {
      const width = Math.floor(figure.clientWidth);
      if (!width || width === before) return;
      before = width;
      drawing.replaceChildren();
      const tall = typeof height === "function" ? height(width) : height;
      drawing.setAttribute("viewBox", `0 0 ${width} ${tall}`);
      drawing.setAttribute("height", tall);
      draw(drawing, width, tall);
    };
    new ResizeObserver(render).observe(figure);
    return figure;
  },

  // Scales, grid and labels of a pair of axes; returns {x, y, box}.
  axes(drawing, box, x, y) {
    const sx = (value) => box.left + ((value - x.low) / (x.high - x.low || 1)) * (box.right - box.left);
    const sy = (value) => box.bottom - ((value - y.low) / (y.high - y.low || 1)) * (box.bottom - box.top);
    const { svg } = Charts;
    for (const tick of y.ticks) {
      drawing.append(
        svg("line", { x1: box.left, x2: box.right, y1: sy(tick), y2: sy(tick), stroke: tick === 0 ? "var(--faint)" : "var(--line)" }),
        svg("text", { x: box.left - 6, y: sy(tick) + 4, "text-anchor": "end", fill: "var(--faint)" }, (y.format || Charts.short)(tick)),
      );
    }
    for (const tick of x.ticks) {
      drawing.append(
        svg("line", { x1: sx(tick), x2: sx(tick), y1: box.bottom, y2: box.bottom + 4, stroke: "var(--faint)" }),
        svg("text", { x: sx(tick), y: box.bottom + 17, "text-anchor": sx(tick) > box.right - 20 ? "end" : "middle", fill: "var(--faint)" }, (x.format || Charts.short)(tick)),
      );
    }
    if (x.label) drawing.append(svg("text", { x: box.right, y: box.bottom + 32, "text-anchor": "end", fill: "var(--faint)" }, x.label));
    if (y.label) drawing.append(svg("text", { x: box.left, y: box.top - 8, fill: "var(--faint)" }, y.label));
    return { x: sx, y: sy };
  },

  // Lines over x. series: {name, points: [[x, y]], band: [[x, low, high]]?}. With `cursor` the figure has setCursor(x).
  lines({ title, x, y, series, height = 220, cursor = false, note = null }) {
    const all = series.flatMap((one) => [...one.points.map((point) => point[1]), ...(one.band || []).flatMap((point) => point.slice(1))]).filter(Number.isFinite);
    const xs = series.flatMap((one) => one.points.map((point) => point[0]));
    let [low, high] = all.length ? [Charts.least(all), Charts.largest(all)] : [0, 1];
    if (y.zero) [low, high] = [Math.min(0, low), Math.max(y.one ? 1 : 0, high)];
    if (low === high) high = low + 1;
    let mark = null;
    let scale = null;
    let place = null;
    const draw = (drawing, width, tall) => {
      const named = series.filter((one) => one.name);
      const key = Charts.key(named, width);
      const box = { left: 48, right: width - 12, top: 22 + key.height, bottom: tall - (x.label ? 36 : 22) };
      key.draw(drawing);
      const xAxis = { low: Charts.least(xs), high: Charts.largest(xs), format: x.format, label: x.label };
      xAxis.ticks = (x.format === Page.clock ? Charts.clockTicks : Charts.ticks)(xAxis.low, xAxis.high, Math.max(2, width / 110));
      const yAxis = { low, high, ticks: Charts.ticks(low, high, Math.max(2, (box.bottom - box.top) / 38)), label: y.label, format: y.format };
      scale = Charts.axes(drawing, box, xAxis, yAxis);
      series.forEach((one, i) => {
        const colour = Charts.colour(i);
        if (one.band && one.band.length > 1) {
          const edge = [...one.band.map((p) => [p[0], p[1]]), ...[...one.band].reverse().map((p) => [p[0], p[2]])];
          drawing.append(Charts.svg("path", { d: `M${edge.map((p) => `${scale.x(p[0]).toFixed(1)} ${scale.y(p[1]).toFixed(1)}`).join("L")}z`, fill: colour, opacity: 0.12 }));
        }
        const known = one.points.filter((point) => Number.isFinite(point[1]));
        drawing.append(Charts.svg("path", { class: "mark", d: `M${known.map((p) => `${scale.x(p[0]).toFixed(1)} ${scale.y(p[1]).toFixed(1)}`).join("L")}`, fill: "none", stroke: colour, "stroke-width": 1.8, "stroke-dasharray": DASHES[i % DASHES.length] }));
        if (one.dots || known.length === 1) for (const p of known) drawing.append(Charts.marker(i, scale.x(p[0]), scale.y(p[1]), 3.2, colour));
      });
      if (cursor) {
        mark = Charts.svg("line", { y1: box.top, y2: box.bottom, stroke: "var(--ink)", "stroke-width": 1.5 });
        drawing.append(mark);
        if (place !== null) figure.setCursor(place);
      }
    };
    const table = () => {
      const places = [...new Set(xs)].sort((a, b) => a - b);
      const step = Math.ceil(places.length / MOST_ROWS);
      const rows = places.filter((_, i) => i % step === 0);
      const values = series.map((one) => new Map(one.points));
      return Page.table([x.label || "", ...series.map((one) => one.name || y.label)], rows.map((at) => [(x.format || Charts.short)(at), ...values.map((map) => Page.number(map.get(at), 2))]));
    };
    const figure = Charts.frame(title, height, draw, table, { note });
    figure.setCursor = (at) => {
      place = at;
      if (mark && scale) for (const end of ["x1", "x2"]) mark.setAttribute(end, scale.x(at));
    };
    return figure;
  },

  // The names of series with their line or, with `look`, a piece of their bars, in as many rows as the width asks for.
  key(series, width, { look = null } = {}) {
    const items = series.map((one, i) => ({ name: one.name, i, wide: 34 + one.name.length * 6.6 }));
    let [left, row] = [0, 0];
    for (const item of items) {
      if (left && left + item.wide > width) [left, row] = [0, row + 1];
      [item.left, item.row] = [left, row];
      left += item.wide + 10;
    }
    return {
      height: items.length ? (row + 1) * 17 : 0,
      draw(drawing) {
        for (const { name, i, left: at, row: line } of items) {
          const y = 10 + line * 17;
          if (look) drawing.append(Charts.svg("rect", { x: at + 8, y: y - 5, width: 12, height: 10, ...look(i) }));
          else drawing.append(Charts.svg("line", { x1: at, x2: at + 24, y1: y, y2: y, stroke: Charts.colour(i), "stroke-width": 2.2, "stroke-dasharray": DASHES[i % DASHES.length] }));
          drawing.append(Charts.svg("text", { x: at + 30, y: y + 4 }, name));
        }
      },
    };
  },

  // One row each: points as small marks, a mean as a diamond, its interval as a line, the figure as text.
  // rows: {label, points: [value], mean, interval: [low, high], few, text, strong}; the interval of few values is so wide
  // that it must not set the scale, and leaves the chart. With `zero` the line of no difference.
  dots({ title, x, rows, zero = false, log = false, note = null, headings = null }) {
    const wide = (row) => (row.interval && !row.few ? row.interval.slice(log ? 1 : 0) : []); // a logarithm has no end below
    const values = rows.flatMap((row) => [...row.points, ...(row.mean === null ? [] : [row.mean]), ...wide(row)]).filter((value) => Number.isFinite(value) && (!log || value > 0));
    if (zero) values.push(0);
    const height = 40 + rows.length * 34;
    const draw = (drawing, width, tall) => {
      const narrow = width < 520;
      const longest = Math.max(...rows.map((row) => Charts.wide(row.label) * (row.strong ? 1.15 : 1))) + 16;
      const label = narrow ? 8 : Math.min(width * 0.42, longest);
      const box = { left: label, right: width - 20, top: 6, bottom: tall - 34 };
      const grow = (value) => (log ? Math.log10(value) : value);
      let [low, high] = values.length ? [Math.min(...values.map(grow)), Math.max(...values.map(grow))] : [0, 1];
      const air = (high - low) * 0.06 || 1;
      [low, high] = [low - air, high + air];
      const share = (value) => (log && value <= 0 ? -1 : (grow(value) - low) / (high - low));
      const sx = (value) => box.left + Math.min(1, Math.max(0, share(value))) * (box.right - box.left);
      const ticks = log ? [1, 2, 5].flatMap((k) => [0, 1, 2, 3, 4].map((p) => k * 10 ** p)).filter((t) => grow(t) >= low && grow(t) <= high) : Charts.ticks(low, high, Math.max(2, (box.right - box.left) / 90));
      for (const tick of ticks) {
        drawing.append(
          Charts.svg("line", { x1: sx(tick), x2: sx(tick), y1: box.top, y2: box.bottom, stroke: zero && tick === 0 ? "var(--ink)" : "var(--line)" }),
          Charts.svg("text", { x: sx(tick), y: box.bottom + 15, "text-anchor": "middle", fill: "var(--faint)" }, Charts.short(tick)),
        );
      }
      drawing.append(Charts.svg("text", { x: box.right, y: box.bottom + 30, "text-anchor": "end", fill: "var(--faint)" }, x.label));
      rows.forEach((row, i) => {
        const y = box.top + 21 + i * 34;
        const colour = row.strong ? "var(--accent)" : "var(--full)";
        const name = Charts.svg("text", { x: narrow ? 0 : label - 10, y: narrow ? y - 9 : y + 4, "text-anchor": narrow ? "start" : "end", "font-weight": row.strong ? 650 : 400 });
        name.textContent = narrow ? `${row.label}  ${row.text || ""}` : Charts.cut(row.label, label / 6.6);
        drawing.append(name);
        if (row.interval) {
          drawing.append(Charts.svg("line", { x1: sx(row.interval[0]), x2: sx(row.interval[1]), y1: y + 3, y2: y + 3, stroke: colour, "stroke-width": 2 }));
          for (const [end, way] of [[row.interval[0], -1], [row.interval[1], 1]]) {
            if (share(end) >= 0 && share(end) <= 1) continue;
            drawing.append(Charts.svg("path", { class: "beyond", d: `M${sx(end) - 5 * way} ${y - 1}l${5 * way} 4l${-5 * way} 4`, fill: "none", stroke: colour, "stroke-width": 2 }));
          }
        }
        for (const point of row.points.filter(Number.isFinite)) drawing.append(Charts.svg("circle", { class: "mark", cx: sx(point), cy: y + 3, r: 3.2, fill: "var(--paper)", stroke: "var(--faint)", "stroke-width": 1.4 }));
        if (row.mean !== null) {
          drawing.append(Charts.marker(3, sx(row.mean), y + 3, 4.6, colour));
          const half = Charts.wide(row.text || "") / 2;
          if (!narrow) drawing.append(Charts.svg("text", { x: Math.max(box.left + half, Math.min(width - half, sx(row.mean))), y: y - 6, "text-anchor": "middle", fill: colour }, row.text || ""));
        } else drawing.append(Charts.svg("text", { x: box.left + 4, y: y + 7, fill: "var(--faint)" }, row.text || ""));
      });
    };
    const table = () => Page.table(headings || ["", x.label, "95 %"], rows.map((row) => [row.label, row.mean === null ? "–" : Page.number(row.mean, 2), Page.interval(row.interval, 2)]));
    return Charts.frame(title, height, draw, table, { note });
  },

  // About how wide a text is; Chinese characters are as wide as they are high.
  wide: (text) => [...text].reduce((sum, one) => sum + (one > "\u2e80" ? 12 : 6.4), 0),

  cut: (text, length) => (text.length <= length ? text : `${text.slice(0, Math.max(3, Math.floor(length) - 1))}…`),

  // Counts as bars beside each other for each bin. series: {name, values}; bins: what each begins with, written there
  // for as many as there is room; the bin number `zero` begins at a line of its own.
  bars({ title, bins, x, y, series, height = 200, note = null, zero = 0 }) {
    const high = Math.max(1, ...series.flatMap((one) => one.values));
    const look = (k) => ({ fill: Charts.colour(k), "fill-opacity": [1, 0, 0.4][k % 3], stroke: Charts.colour(k) });
    const draw = (drawing, width, tall) => {
      const key = Charts.key(series.filter((one) => one.name), width, { look });
      const box = { left: 48, right: width - 8, top: 22 + key.height, bottom: tall - 36 };
      if (series.length > 1) key.draw(drawing);
      const scale = Charts.axes(drawing, box, { low: 0, high: bins.length, ticks: [], label: x.label }, { low: 0, high, ticks: Charts.ticks(0, high, Math.min(4, high)), label: y.label, format: y.format });
      const every = Math.ceil(bins.length / Math.max(3, width / 60));
      if (zero > 0) drawing.append(Charts.svg("line", { x1: scale.x(zero), x2: scale.x(zero), y1: box.top, y2: box.bottom + 4, stroke: "var(--ink)" }));
      bins.forEach((bin, i) => {
        if ((i - zero) % every === 0) drawing.append(Charts.svg("text", { x: scale.x(i), y: box.bottom + 16, "text-anchor": "middle", fill: "var(--faint)" }, bin));
        series.forEach((one, k) => {
          const wide = 0.84 / series.length;
          const top = scale.y(one.values[i]);
          drawing.append(Charts.svg("rect", { class: "mark", x: scale.x(i + 0.08 + k * wide), width: Math.max(0.5, scale.x(i + wide) - scale.x(i) - 0.6), y: top, height: Math.max(0, box.bottom - top), ...look(k) }));
        });
      });
    };
    const table = () => Page.table([x.label, ...series.map((one) => one.name || y.label)], bins.map((bin, i) => [bin, ...series.map((one) => (y.format || Charts.short)(one.values[i]))]));
    return Charts.frame(title, height, draw, table, { note });
  },
};
