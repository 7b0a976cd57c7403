"use strict";
// The controls of a page: search, keyboard, reload, and charts of the numbers behind each picture. Without this script,
// or without uPlot, the pictures stay. Every text of the data is set as textContent, never as markup.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";
  const toggle = (text, on, change) => {
    const button = make("button", { type: "button", textContent: text });
    press(button, on);
    button.addEventListener("click", () => { press(button, !pressed(button)); change(pressed(button)); });
    return button;
  };

  // -- charts ---------------------------------------------------------------------------------------------------------

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const DASHES = [[5, 4], [1.5, 3], [8, 3, 1.5, 3]];
  const SPARE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933"];
  const short = (v) => v == null ? "" : v !== 0 && (Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3) ? v.toExponential(1).replace(".0e", "e") : String(+v.toPrecision(4));

  // A colour for the page's background: on a dark page, dark colours are mixed with white.
  function ink(colour, alpha = 1) {
    let rgb = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    const light = (0.3 * rgb[0] + 0.6 * rgb[1] + 0.1 * rgb[2]) / 255;
    if (dark.matches && light < 0.45) rgb = rgb.map((c) => Math.round(c + (255 - c) * (0.45 - light) * 1.4));
    return `rgba(${rgb.join(",")},${alpha})`;
  }

  // The columns that uPlot draws for a panel: two for a band, one for anything else.
  function columnsOf(panel) {
    const xs = panel.series.flatMap((one) => one.edges || one.x || []).filter((v) => v !== null);
    const ends = xs.length ? [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))] : [0, 1];
    const labels = [...new Set(panel.series.filter((one) => one.kind !== "level").map((one) => one.label))];
    const columns = panel.series.flatMap((one) => {
      const spare = SPARE[Math.max(labels.indexOf(one.label), 0) % SPARE.length]; // files of older versions have no colours
      const base = { kind: one.kind, label: one.label, x: one.x, colour: /^#[0-9a-f]{6}$/i.test(one.colour) ? one.colour : spare, dash: one.dash };
      if (one.kind === "band") return [{ ...base, y: one.low }, { ...base, y: one.high, top: true }];
      if (one.kind === "level") return [{ ...base, x: ends, y: [one.y, one.y], colour: "#000000", dash: true }];
      if (one.kind === "steps") return [{ ...base, x: one.edges, y: [...one.y, one.y.at(-1)] }];
      return [{ ...base, y: one.y }];
    });
    for (const c of columns.filter((one) => one.dash)) { // dashed series of one colour differ in their dashes
      const twins = [...new Set(columns.filter((one) => one.dash && one.colour === c.colour).map((one) => one.label))];
      c.dash = DASHES[twins.indexOf(c.label) % DASHES.length];
    }
    return columns;
  }

  // uPlot draws all columns over one sorted x. The k-th point of a series at the same x has a row of its own.
  function aligned(columns, keep) {
    const rows = new Map();
    columns.forEach((column, c) => {
      const seen = new Map();
      column.x.forEach((x, i) => {
        if (x === null || !keep(x, column.y[i])) return;
        const k = seen.get(x) || 0;
        seen.set(x, k + 1);
        const key = `${x} ${k}`;
        if (!rows.has(key)) rows.set(key, { x, k, y: [] });
        rows.get(key).y[c] = column.y[i];
      });
    });
    const sorted = [...rows.values()].sort((a, b) => a.x - b.x || a.k - b.k);
    return [sorted.map((row) => row.x), ...columns.map((_, c) => sorted.map((row) => row.y[c]))];
  }

  function nearest(values, index) {
    for (let d = 0; d < values.length; d++)
      for (const i of [index - d, index + d]) if (values[i] != null) return i;
    return null;
  }

  // Ticks of a logarithmic axis at round values, at most six of them with a label: uPlot counts from the end of the axis,
  // which need not be round.
  function logTicks(low, high) {
    const ticks = [], decades = Math.log10(high / low), stride = Math.ceil(decades / 6);
    if (decades < 0.7) {
      const step = 10 ** Math.floor(Math.log10((high - low) / 2));
      for (let k = Math.ceil(low / step); k * step <= high; k++) ticks.push(+(k * step).toPrecision(12));
      return ticks;
    }
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (let k = 1; k < 10; k++) {
        const tick = +`${k}e${power}`;
        if (tick >= low && tick <= high && (stride === 1 || (k === 1 && power % stride === 0))) ticks.push(tick);
      }
    return ticks;
  }
  function labelled(ticks) {
    const decades = Math.log10(ticks.at(-1) / ticks[0]), first = decades < 0.7 ? /./ : decades < 1.5 ? /^[125]/ : /^1/;
    return ticks.map((tick) => first.test(tick.toExponential()) ? tick : null);
  }

  // One chart of a panel, or of several that differ in their step only, behind a slider.
  class Chart {
    constructor(frames) {
      this.frames = frames;
      this.at = frames.length - 1;
      this.hidden = new Set();
      const all = frames.flatMap((frame) => frame.panel.series);
      const xs = all.flatMap((one) => one.x || one.edges || []);
      this.asinh = xs.some((x) => x !== null && x <= 0); // a logarithm of step 0 is none
      this.log = { x: frames[0].panel.xscale !== undefined && frames[0].panel.xscale !== "linear", y: frames[0].panel.yscale === "log" };
      this.plot = make("div", { className: "plot" });
      this.keys = make("div", { className: "keys" });
      this.place = make("span", { className: "soft" });
      const panel = frames[0].panel;
      this.title = frames.length > 1 ? frames[0].family : panel.title;
      const tools = make("div", { className: "tools" },
        toggle("log x", this.log.x, (on) => { this.log.x = on; this.draw(); }),
        toggle("log y", this.log.y, (on) => { this.log.y = on; this.draw(); }),
        make("button", { type: "button", textContent: "reset zoom", onclick: () => this.draw() }), this.place);
      this.node = make("figure", { className: "chart" }, make("h3", { textContent: this.title || [panel.ylabel, panel.xlabel].filter(Boolean).join(" against ") || "chart" }));
      if (frames.length > 1) this.node.append(this.slider());
      this.node.append(this.plot, tools, this.keys);
      if (panel.notes.length) this.note = this.node.appendChild(make("figcaption", {}));
      new ResizeObserver(() => this.u && this.plot.clientWidth && this.u.setSize({ width: this.plot.clientWidth, height: 250 })).observe(this.plot);
    }

    slider() {
      const shown = make("output", { textContent: `t = ${this.frames[this.at].step}` });
      const range = make("input", { type: "range", min: 0, max: this.frames.length - 1, value: this.at });
      range.setAttribute("aria-label", `step of ${this.title}`);
      range.addEventListener("input", () => {
        this.at = +range.value;
        shown.textContent = `t = ${this.frames[this.at].step}`;
        range.setAttribute("aria-valuetext", shown.textContent);
        this.draw();
      });
      return make("div", { className: "frame" }, "step", range, shown);
    }

    // The range of all frames, so that the slider moves points and not axes.
    range(axis) {
      const values = this.frames.flatMap(({ panel }) => columnsOf(panel).flatMap((c) => c[axis]))
        .filter((v) => v !== null && (!this.log[axis] || v > 0));
      const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
      const pad = (high - low) * 0.04;
      return this.log[axis] ? { min: low / 1.5, max: high * 1.5 } : { min: low - pad, max: high + pad };
    }

    draw() {
      const { panel } = this.frames[this.at];
      const columns = columnsOf(panel);
      const log = this.log, symlog = log.x && this.asinh;
      const data = aligned(columns, (x, y) => !(log.y && y <= 0) && !(log.x && !symlog && x <= 0));
      const label = (name) => this.frames.map((frame) => frame.panel[name]).find(Boolean) || "";
      const axis = (name, text) => ({
        stroke: dark.matches ? "#a3adb8" : "#3a3a3a", label: text || undefined, labelSize: 18, labelGap: 0, font: "11px system-ui", labelFont: "12px system-ui",
        grid: { stroke: dark.matches ? "#2c3238" : "#e8e8e8", width: 1 }, ticks: { show: false },
        values: (u, splits) => splits.map(short),
        ...(log[name] && !(name === "x" && symlog) ? { splits: (u, i, low, high) => logTicks(low, high), filter: (u, ticks) => labelled(ticks) } : {}),
      });
      const wide = (u, values) => values ? Math.max(...values.map((v) => v.length)) * 7 + 10 : 40;
      const padded = (u, low, high) => low === null || low <= 0 ? [0.1, 10] : [low / 1.1, high * 1.1];
      const kind = (name) => !log[name] ? { distr: 1 } : name === "x" && symlog ? { distr: 4, asinh: 1 } : { distr: 3, range: padded };
      const scale = (name) => {
        const limits = this.limits(name, panel);
        return { ...kind(name), ...(limits ? { range: () => [limits.min, limits.max] } : {}) };
      };
      const dots = { show: true, size: 5 };
      const series = columns.map((c) => ({
        label: c.label, show: !this.hidden.has(c.label), width: c.kind === "band" || c.kind === "points" ? 0 : 1.6, spanGaps: true,
        stroke: ink(c.colour, c.kind === "band" ? 0 : 1), dash: c.dash || undefined,
        paths: c.kind === "points" ? () => null : c.kind === "steps" ? uPlot.paths.stepped({ align: 1 }) : undefined,
        points: c.kind === "points" ? { ...dots, fill: ink(c.colour, 0.7), stroke: ink(c.colour) } : { show: false },
      }));
      const bands = columns.flatMap((c, i) => c.top ? [{ series: [i + 1, i], fill: ink(c.colour, 0.2) }] : []);
      if (this.u) this.u.destroy();
      this.u = new uPlot({
        width: this.plot.clientWidth || 320, height: 250, legend: { show: false }, series: [{}, ...series], bands,
        scales: { x: { time: false, ...scale("x") }, y: scale("y") },
        axes: [{ ...axis("x", label("xlabel")), size: 24 }, { ...axis("y", label("ylabel")), size: wide }],
        cursor: { drag: { x: true, y: true, uni: 20 }, dataIdx: (u, s, i) => s === 0 ? i : columns[s - 1].kind === "band" ? null : nearest(u.data[s], i) },
        hooks: { setCursor: [(u) => this.read(u, columns)] },
      }, data, this.plot);
      const canvas = $("canvas", this.plot);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${panel.title}: ${label("ylabel") || "values"} against ${label("xlabel") || "x"}, ${columns.map((c) => c.label).filter((v, i, a) => a.indexOf(v) === i).join(", ")}`);
      if (this.note) this.note.textContent = panel.notes.join("; ");
      this.legend(columns);
    }

    // What an axis shows unless it is zoomed, whichever series are hidden: the picture's limits; null to fit the data.
    limits(name, panel) {
      if (this.frames.length > 1) return this.range(name);
      const given = name === "y" && panel.ylim && this.log.y === (panel.yscale === "log");
      return given ? { min: panel.ylim[0], max: panel.ylim[1] } : null;
    }

    legend(columns) {
      this.outputs = new Map();
      this.keys.replaceChildren();
      for (const c of columns) {
        if (this.outputs.has(c.label)) continue;
        const value = make("output", {});
        const button = toggle("", !this.hidden.has(c.label), (on) => {
          this.hidden[on ? "delete" : "add"](c.label);
          columns.forEach((other, i) => other.label === c.label && this.u.setSeries(i + 1, { show: on }));
        });
        const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
        for (const [key, v] of Object.entries({ x1: "0%", x2: "100%", y1: "50%", y2: "50%", stroke: ink(c.colour), "stroke-width": c.kind === "points" ? 7 : 3, "stroke-dasharray": c.dash ? c.dash.join(" ") : "none" }))
          line.setAttribute(key, v);
        swatch.append(line);
        swatch.setAttribute("aria-hidden", "true");
        button.append(swatch, c.label || "values", value);
        this.outputs.set(c.label, value);
        this.keys.append(button);
      }
    }

    read(u, columns) {
      const i = u.cursor.idx;
      this.place.textContent = i == null ? "" : `x = ${short(u.posToVal(u.cursor.left, "x"))}`;
      columns.forEach((c, k) => {
        if (c.kind === "band") return;
        const at = u.cursor.idxs[k + 1];
        this.outputs.get(c.label).textContent = i == null || at == null ? "" : short(u.data[k + 1][at]);
      });
    }
  }

  // Panels titled "GD, t = 0", "GD, t = 20", ... are one chart with a slider.
  function framesOf(panels) {
    const families = new Map();
    panels.forEach((panel, i) => {
      const match = /^(.*?),? ?t = ([\d,]+)$/.exec(panel.title);
      const key = match ? match[1] : `#${i}`;
      if (!families.has(key)) families.set(key, []);
      families.get(key).push({ panel, family: match ? match[1] : "", step: match ? match[2] : "" });
    });
    return [...families.values()];
  }

  const charts = [];
  function explore(picture) {
    const data = $("script[type='application/json']", picture);
    if (!data || typeof uPlot === "undefined") return;
    const panels = JSON.parse(data.textContent);
    const image = $("img", picture);
    const grid = make("div", { className: "charts" });
    let drawn = false;
    const show = (live) => {
      grid.hidden = !live;
      image.hidden = live;
      if (!live || drawn) return;
      drawn = true;
      for (const frames of framesOf(panels)) {
        const chart = new Chart(frames);
        grid.append(chart.node);
        chart.draw();
        charts.push(chart);
      }
    };
    const views = [["interactive", true], ["picture", false]].map(([text, live]) =>
      make("button", { type: "button", textContent: text, onclick: () => choose(live) }));
    const choose = (live) => { press(views[0], live); press(views[1], !live); show(live); };
    image.before(make("div", { className: "views" }, ...views), grid);
    const whole = data.dataset.whole === "yes"; // a picture with matrices stays until it is asked for
    press(views[0], false);
    press(views[1], true);
    if (whole) new IntersectionObserver((entries, self) => {
      if (entries.some((entry) => entry.isIntersecting)) { self.disconnect(); choose(true); }
    }, { rootMargin: "500px" }).observe(picture);
  }
  $$(".picture").forEach(explore);
  dark.addEventListener("change", () => charts.forEach((chart) => chart.draw()));
  window.heavytail = { Chart, charts, make }; // for scripts of pages with more than these (theory.js)

  // -- search ---------------------------------------------------------------------------------------------------------

  const box = $("#find");
  const sections = $$("section[data-figure]");
  const filters = $$(".tally button");
  const state = { verdict: "" };
  const words = (node) => node.textContent.toLowerCase();
  const texts = new Map(sections.map((section) => [section, $$("h2, .soft, figcaption, code, td, summary", section).map(words).join(" ")]));
  const heads = new Map(sections.map((section) => [section, $$("h2, :scope > .soft, .picture > figcaption", section).map(words).join(" ")]));
  const matches = (text) => box.value.toLowerCase().split(/\s+/).every((word) => text.includes(word));

  function filter() {
    let figures = 0;
    for (const section of sections) {
      const all = matches(heads.get(section));
      const rows = $$(".claims tbody tr", section);
      const held = rows.filter((row) => (!state.verdict || row.dataset.verdict === state.verdict) && (all || matches(words(row))));
      const shown = state.verdict ? held.length > 0 : matches(texts.get(section));
      rows.forEach((row) => { row.hidden = shown && held.length > 0 && !held.includes(row); });
      section.hidden = !shown;
      figures += shown;
      const entry = $$(".index li").find((item) => item.dataset.figure === section.id);
      if (entry) entry.hidden = !shown;
    }
    for (const row of $$("#all tbody tr")) row.hidden = !(matches(words(row)) && (!state.verdict || row.dataset.verdict === state.verdict));
    const active = box.value.trim() || state.verdict;
    $("#count").textContent = active ? `${figures} of ${sections.length} figures` : "";
    remember();
  }

  function remember() {
    try { sessionStorage.setItem(location.pathname, JSON.stringify({ find: box.value, verdict: state.verdict })); } catch { /* not allowed */ }
  }

  function choose(verdict) {
    state.verdict = verdict;
    filters.forEach((button) => press(button, button.dataset.verdict === verdict));
    filter();
  }

  function clear() {
    box.value = "";
    choose("");
  }

  function move(by) {
    const shown = sections.filter((section) => !section.hidden);
    const here = shown.indexOf(document.activeElement.closest("section"));
    const next = shown[here < 0 ? (by > 0 ? 0 : shown.length - 1) : Math.min(Math.max(here + by, 0), shown.length - 1)];
    if (next) { next.focus({ preventScroll: true }); next.scrollIntoView(); }
  }

  if (box) {
    $(".find").hidden = false;
    box.addEventListener("input", filter);
    filters.forEach((button) => button.addEventListener("click", () => choose(state.verdict === button.dataset.verdict ? "" : button.dataset.verdict)));
    addEventListener("hashchange", () => {
      const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (target && target.hidden) { clear(); target.scrollIntoView(); }
    });
    addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
      if (event.key === "Escape") { clear(); document.activeElement.blur(); }
      else if (typing) return;
      else if (event.key === "/") { event.preventDefault(); box.focus(); box.select(); }
      else if (event.key === "j") move(1);
      else if (event.key === "k") move(-1);
    });
    try {
      const last = JSON.parse(sessionStorage.getItem(location.pathname));
      if (last && last.find) box.value = last.find;
      if (last) choose(last.verdict);
    } catch { /* not allowed */ }
  }

  // -- reload ---------------------------------------------------------------------------------------------------------

  const live = $("#reload");
  if (live) setInterval(() => live.checked && !document.hidden && location.reload(), 1000 * live.value);
})();
