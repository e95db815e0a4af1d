"use strict";
// The frame of the page: words, theme, sections, elements. Everything else registers sections with it.

const Page = {
  words: JSON.parse(document.getElementById("words").textContent),
  data: JSON.parse(document.getElementById("data").textContent),
  language: "en",
  sections: [],
  themeListeners: [],
  leaving: [], // what to stop before the page is built anew
  kept: {}, // what a section remembers over that

  // An element; `on...` attributes are listeners.
  el(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element[name] = value;
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  },

  // A text of the page in its language; {name} is filled in from `values`.
  t(key, values = {}) {
    const entry = Page.words[key];
    const text = entry ? entry[Page.language] : key;
    return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
  },

  // A number as text; what is not known is a dash.
  number(value, digits = 1, { sign = false } = {}) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const text = Math.abs(value).toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replaceAll(",", " ");
    const zero = Number(text.replaceAll(" ", "")) === 0;
    return (value < 0 && !zero ? "−" : sign && !zero ? "+" : "") + text;
  },

  interval(pair, digits = 1) {
    return pair ? `[${Page.number(pair[0], digits)}, ${Page.number(pair[1], digits)}]` : "";
  },

  // Seconds since midnight as h:mm:ss; SUMO's times may go past a day.
  clock(seconds) {
    const whole = Math.floor(seconds);
    const part = (value) => String(value).padStart(2, "0");
    return `${Math.floor(whole / 3600)}:${part(Math.floor(whole / 60) % 60)}:${part(whole % 60)}`;
  },

  // A section: `build(root, data)` fills it, and returns false where there is nothing to show.
  section(section) {
    Page.sections.push(section);
  },

  onTheme(listener) {
    Page.themeListeners.push(listener);
  },

  async blob(id) {
    const text = document.getElementById(id).textContent;
    const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  },

  async json(id) {
    return JSON.parse(new TextDecoder().decode(await Page.blob(id)));
  },

  // A table of plain cells; the first of each row is its heading. Of kind "settings" its cells are texts, not figures,
  // of kind "judged" the last ones are.
  table(headings, rows, { caption = null, kind = null } = {}) {
    const cell = (value, i) => (i === 0 ? Page.el("th", { scope: "row" }, value) : Page.el("td", {}, value));
    return Page.el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || headings[0] },
      Page.el(
        "table",
        { class: kind },
        caption ? Page.el("caption", {}, caption) : null,
        Page.el("thead", {}, Page.el("tr", {}, ...headings.map((heading) => Page.el("th", { scope: "col" }, heading)))),
        Page.el("tbody", {}, ...rows.map((row) => Page.el("tr", {}, ...row.map(cell)))),
      ),
    );
  },

  build() {
    document.documentElement.lang = Page.language === "zh" ? "zh-CN" : "en";
    const title = Page.data.title ?? Page.t("title.networks", { count: Page.data.networks });
    document.title = `${Page.t("title")}: ${title}`;
    Page.themeListeners = [];
    Page.leaving.splice(0).forEach((stop) => stop());
    const main = Page.el("main", { id: "content" });
    const links = [];
    for (const { id, title, build } of Page.sections) {
      const section = Page.el("section", { id, "aria-labelledby": `${id}-title` }, Page.el("h2", { id: `${id}-title` }, Page.t(title)));
      main.append(section);
      let shown = true;
      try {
        shown = build(section, Page.data) !== false;
      } catch (error) {
        // One section that fails must not cost the others.
        section.append(Page.el("p", {}, Page.t("section.failed", { error })));
        console.error(error);
      }
      if (!shown) section.remove();
      else links.push(Page.el("a", { href: `#${id}` }, Page.t(title)));
    }
    const header = Page.el(
      "header",
      {},
      Page.el("a", { href: "#content", class: "skip" }, Page.t("skip")),
      Page.el("h1", {}, title),
      Page.el(
        "p",
        { class: "switches" },
        Page.el("button", { type: "button", id: "language", onclick: () => Page.setLanguage(Page.language === "en" ? "zh" : "en") }, Page.t("language.other")),
        Page.el("button", { type: "button", id: "theme", onclick: () => Page.setTheme(Page.isDark() ? "light" : "dark") }, Page.t("theme.other")),
      ),
    );
    const nav = Page.el("nav", { "aria-label": Page.t("contents") }, ...links);
    document.querySelectorAll("body > header, body > nav, body > main, body > footer").forEach((old) => old.remove());
    document.body.prepend(header, nav, main, Page.el("footer", {}, Page.t("footer", { version: Page.data.version })));
  },

  setLanguage(language) {
    Page.language = language;
    Page.build();
    document.getElementById("language").focus();
  },

  isDark() {
    const theme = document.documentElement.dataset.theme;
    return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  },

  setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    Page.themeListeners.forEach((listener) => listener());
  },

  start() {
    Page.language = Page.data.language;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Page.themeListeners.forEach((listener) => listener()));
    Page.build();
  },
};
