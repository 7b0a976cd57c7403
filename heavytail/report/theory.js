"use strict";
// Theorem 3 with sliders: loss per class or frequency group over steps of gradient flow and sign flow, on the simple
// imbalanced setting with class frequencies in proportion to k^-exponent. The closed forms are those of
// heavytail.analysis.theory; the time of a flow is steps times step size. tests/browser compares both.
const theory = (() => {
  const CLASSES = [2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 7000, 10000];
  const halfDecades = (low, high) => Array.from({ length: 2 * (high - low) + 1 }, (_, i) => +(10 ** (low + i / 2)).toPrecision(2));
  const SHOWN = 6, GROUPS = 5, TARGET = 0.1, TRAINED = 1e5, FLOOR = 1e-3; // classes, groups, nats, steps, nats
  const kept = (loss) => loss > 1e-12 ? loss : null; // hundreds of decades are not drawn
  const STEPS = Array.from({ length: 97 }, (_, i) => 10 ** (i / 16));

  // -- closed forms ---------------------------------------------------------------------------------------------------

  // Wright's omega function of a real number, the solution of w + log(w) = x: a guess, and two steps of Fritsch's method.
  function omega(x) {
    let w = x < -2 ? Math.exp(x) : x < 1 ? Math.exp(2 * (x - 1) / 3) : x - Math.log(x) + Math.log(x) / x;
    for (let i = 0; i < 2; i++) {
      const r = x - w - Math.log(w), q = 2 * (w + 1) * (w + 1 + 2 * r / 3);
      w *= 1 + (r / (w + 1)) * (q - r) / (q - 2 * r);
    }
    return w;
  }
  const gradientLoss = (t, pi, c) => Math.log1p(1 / omega(1 / (c - 1) + (c / (c - 1)) * pi * t - Math.log(c - 1)));
  const signLoss = (t, c) => Math.log1p((c - 1) * Math.exp(-2 * t));
  const growth = (loss, c) => Math.max(Math.expm1(Math.log(c) - loss), 0) / -Math.expm1(-loss); // e^gap - 1 at a loss
  const gradientTime = (loss, pi, c) => ((c - 1) * Math.log1p(growth(loss, c)) + growth(loss, c)) / c / pi;
  const signTime = (loss, c) => Math.log1p(growth(loss, c)) / 2;

  function zipf(c, exponent) {
    const weights = Array.from({ length: c }, (_, k) => (k + 1) ** -exponent);
    const sum = weights.reduceRight((a, b) => a + b, 0);
    return weights.map((weight) => weight / sum);
  }

  // Losses of one class after 1, 3, 10, ... steps of gradient descent: only the gap between its logits changes.
  function descent(pi, c, rate) {
    const steps = halfDecades(0, Math.log10(TRAINED)).map(Math.round), losses = [];
    for (let step = 1, gap = 0, at = 0; at < steps.length; step++) {
      gap += rate * pi * c / (c - 1 + Math.exp(gap));
      if (step === steps[at]) { losses.push(Math.log1p((c - 1) * Math.exp(-gap))); at++; }
    }
    return [steps, losses];
  }

  // The group of each class: one whose first sample falls into the g-th part of the samples belongs to group g.
  function groupsOf(pi) {
    let before = 0;
    return pi.map((share) => { const group = Math.min(Math.floor(GROUPS * before + 1e-9), GROUPS - 1); before += share; return group; });
  }

  // -- what the charts show -------------------------------------------------------------------------------------------

  // Panels of both flows and of the steps to TARGET, for settings c, exponent, gd, sign (step sizes) and groups (or classes).
  function panelsOf({ c, exponent, gd, sign, groups }, colours) {
    const pi = zipf(c, exponent), total = STEPS.map(() => 0);
    const member = groupsOf(pi), used = [...new Set(member)].sort((a, b) => a - b);
    const sums = new Map(used.map((g) => [g, STEPS.map(() => 0)])), shares = new Map(used.map((g) => [g, 0]));
    pi.forEach((share, k) => {
      const sum = sums.get(member[k]);
      shares.set(member[k], shares.get(member[k]) + share);
      STEPS.forEach((step, i) => { const part = share * gradientLoss(gd * step, share, c); sum[i] += part; total[i] += part; });
    });
    const classes = [...new Set(Array.from({ length: SHOWN }, (_, i) => Math.round(c ** (i / (SHOWN - 1)))))];
    const colour = (i, n) => colours.groups[n > 1 ? Math.round(i * (colours.groups.length - 1) / (n - 1)) : 0];
    const alike = STEPS.map((step) => signLoss(sign * step, c));
    const line = (label, y, colour, dash) => ({ kind: "line", label, x: STEPS, y: y.map(kept), colour, dash });
    const left = [], right = [];
    if (groups) used.forEach((g, i) => {
      const label = `group ${g + 1}`;
      left.push(line(label, sums.get(g).map((sum) => sum / shares.get(g)), colour(i, used.length)));
      right.push(line(label, alike, colour(i, used.length)));
    });
    else classes.forEach((k, i) => {
      const label = `class ${k}`, [x, y] = descent(pi[k - 1], c, gd);
      left.push(line(label, STEPS.map((step) => gradientLoss(gd * step, pi[k - 1], c)), colour(i, classes.length)));
      left.push({ kind: "points", label, x, y: y.map(kept), colour: colour(i, classes.length) });
      right.push(line(label, alike, colour(i, classes.length)));
    });
    left.push(line("all", total, "#3a3a3a", true));
    right.push(line("all", alike, "#3a3a3a", true));
    const reach = [["gradient flow", (share) => gradientTime(TARGET, share, c) / gd, colours.gd], ["sign flow", () => signTime(TARGET, c) / sign, colours.sign]];
    const shown = classes.map((k) => pi[k - 1]);
    const flow = { xlabel: "step", ylabel: "loss (nats)", xscale: "log", yscale: "log", ylim: [FLOOR, 1.5 * Math.log(c)], notes: [] };
    return [
      { ...flow, title: "gradient flow", series: left },
      { ...flow, title: "sign flow", series: right },
      {
        title: `steps to a loss of ${TARGET}`, xlabel: "class frequency", ylabel: "steps", xscale: "log", yscale: "log", notes: [],
        series: reach.map(([label, steps, hue]) => ({ kind: "line", label, x: shown, y: shown.map(steps), colour: hue })),
      },
    ];
  }

  // -- the page -------------------------------------------------------------------------------------------------------

  const { Chart, charts, make } = window.heavytail;
  const place = document.querySelector("#flows .live");
  const colours = JSON.parse(place.querySelector("script").textContent);
  const SLIDERS = {
    c: { label: "number of classes", values: CLASSES, start: 1000, text: (v) => `c = ${v}` },
    exponent: { label: "exponent of frequencies", values: Array.from({ length: 21 }, (_, i) => i / 10), start: 1, text: (v) => v ? `k^−${v}` : "balanced" },
    gd: { label: "step size of gradient descent", values: halfDecades(-2, 4), start: 1, text: String },
    sign: { label: "step size of sign descent", values: halfDecades(-4, 0), start: 0.01, text: String },
  };
  const settings = { groups: false };
  let panels = [], waiting = false;
  const many = (steps) => steps < 1e15 ? Math.max(1, Math.ceil(steps)).toLocaleString("en") : steps.toExponential(1);
  const said = make("p", { className: "said" });
  said.setAttribute("role", "status");

  function draw() {
    waiting = false;
    panels = panelsOf(settings, colours);
    if (!charts.length) {
      charts.push(...panels.map((panel) => new Chart([{ panel }]))); // page.js draws them again in another colour scheme
      grid.append(...charts.map((chart) => chart.node));
    }
    charts.forEach((chart, i) => { chart.frames[0].panel = panels[i]; chart.draw(); });
    const { x, y: gradient } = panels[2].series[0], sign = panels[2].series[1].y, last = x.length - 1;
    said.textContent = `To a loss of ${TARGET}, gradient flow takes ${many(gradient[0])} steps on the most frequent class and ${many(gradient[last])} on the rarest, ${+(gradient[last] / gradient[0]).toPrecision(3)} times as many; sign flow takes ${many(sign[0])} on each.`;
  }

  const grid = make("div", { className: "charts" });
  const controls = make("div", { className: "controls" });
  for (const [name, { label, values, start, text }] of Object.entries(SLIDERS)) {
    const shown = make("output");
    const range = make("input", { type: "range", id: name, min: 0, max: values.length - 1, value: values.indexOf(start) });
    const read = () => {
      settings[name] = values[+range.value];
      shown.textContent = text(settings[name]);
      range.setAttribute("aria-valuetext", shown.textContent);
    };
    range.addEventListener("input", () => {
      read();
      if (!waiting) { waiting = true; requestAnimationFrame(draw); }
    });
    read();
    controls.append(make("label", {}, make("span", { textContent: label }), range, shown));
  }
  const grouped = make("input", { type: "checkbox", id: "groups" });
  grouped.addEventListener("change", () => { settings.groups = grouped.checked; draw(); });
  controls.append(make("label", { className: "check" }, grouped, `means of ${GROUPS} frequency groups`));
  place.replaceChildren(controls, said, grid);
  draw();
  return { shown: () => ({ settings, panels }) };
})();
