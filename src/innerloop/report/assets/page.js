"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const swatches = [...document.querySelectorAll("#palette span")];
  const boxes = [...document.querySelectorAll("[data-run]")];
  const plots = [...document.querySelectorAll(".plot")];
  const drawn = new Set();
  const place = new Map(); // figure -> the position of its slider, once it was moved

  const dark = () =>
    (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

  // The values of CSS variables in the current theme, which only elements have.
  function colours() {
    const of = (name) => getComputedStyle(document.querySelector(name));
    return { ink: of("body").color, line: of("fieldset").borderTopColor, card: of("body").backgroundColor };
  }

  function themed(layout) {
    const { ink, line, card } = colours();
    const found = { "font.color": ink, "hoverlabel.bgcolor": card, "hoverlabel.font.color": ink };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      found[`${axis}.gridcolor`] = line;
      found[`${axis}.linecolor`] = line;
    }
    return found;
  }

  // Apply the current colors of the page: each run has one shade for light pages and one for dark pages.
  function color(element) {
    const figure = figures[element.dataset.figure];
    const style = swatches.map((swatch) => getComputedStyle(swatch).color);
    const update = { "line.color": [], "marker.color": [], fillcolor: [] };
    const indices = [];
    figure.data.forEach((trace, i) => {
      if (trace.legendgroup === undefined) return;
      const shade = style[Number(trace.legendgroup) % style.length];
      indices.push(i);
      update["line.color"].push(shade);
      update["marker.color"].push(shade);
      update.fillcolor.push(shade.replace("rgb(", "rgba(").replace(")", ", 0.18)"));
    });
    if (indices.length) Plotly.restyle(element, update, indices);
    Plotly.relayout(element, themed(figure.layout));
  }

  // Return which traces are shown: if a figure's curves are runs, those of the checked runs.
  function shown(figure) {
    if (figure.ownLegend) return figure.data.map(() => true);
    const off = new Set(boxes.filter((box) => !box.checked).map((box) => box.dataset.run));
    return figure.data.map((trace) => !off.has(trace.legendgroup));
  }

  function draw(element) {
    if (drawn.has(element)) return;
    drawn.add(element);
    const figure = figures[element.dataset.figure];
    const visible = shown(figure);
    const data = figure.data.map((trace, i) => ({ ...trace, visible: visible[i] }));
    const layout = { ...figure.layout, showlegend: Boolean(figure.ownLegend) };
    const buttons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]]; // no buttons that send data
    const options = { responsive: true, displaylogo: false, modeBarButtons: buttons };
    Plotly.newPlot(element, data, layout, options).then(() => {
      color(element);
      element.querySelectorAll(".modebar-btn").forEach((button) => button.setAttribute("tabindex", "-1"));
      if (place.has(element.dataset.figure)) move(element, place.get(element.dataset.figure));
    });
  }

  function move(element, at) {
    const frame = figures[element.dataset.figure].frames[at].data;
    const keys = ["x", "y", "text"].filter((key) => frame.some((trace) => key in trace));
    const update = Object.fromEntries(keys.map((key) => [key, frame.map((trace) => trace[key] ?? [])]));
    Plotly.restyle(element, update, [...frame.keys()]);
  }

  for (const slider of document.querySelectorAll("input[type=range]")) {
    const element = document.getElementById(`figure-${slider.dataset.figure}`);
    const output = document.getElementById(`place-${slider.dataset.figure}`);
    slider.setAttribute("aria-valuetext", output.textContent);
    slider.addEventListener("input", () => {
      const at = Number(slider.value);
      place.set(slider.dataset.figure, at);
      output.textContent = figures[slider.dataset.figure].frames[at].name;
      slider.setAttribute("aria-valuetext", output.textContent);
      if (drawn.has(element)) move(element, at);
      else draw(element);
    });
  }

  for (const box of boxes) {
    box.addEventListener("change", () => {
      for (const element of drawn) {
        const figure = figures[element.dataset.figure];
        if (!figure.ownLegend) Plotly.restyle(element, { visible: shown(figure) });
      }
    });
  }

  function paint() {
    button.setAttribute("aria-pressed", String(dark()));
    drawn.forEach(color);
  }
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    paint();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  button.setAttribute("aria-pressed", String(dark()));

  // Draw figures when they come near the window, so that the page opens fast even with many runs.
  const near = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
    { rootMargin: "400px" },
  );
  plots.forEach((element) => near.observe(element));

  // Keep the targets of links from lying under the sticky legend.
  const runs = document.getElementById("runs");
  new ResizeObserver(() => {
    const above = getComputedStyle(runs).position === "sticky" ? runs.offsetHeight : 0;
    root.style.scrollPaddingTop = `${above + 8}px`;
  }).observe(runs);

  let theme;
  addEventListener("beforeprint", () => {
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    plots.forEach(draw);
    paint();
  });
  addEventListener("afterprint", () => {
    if (theme === undefined) delete root.dataset.theme;
    else root.dataset.theme = theme;
    paint();
  });
})();
