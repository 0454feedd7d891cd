// Small SVG charts, redrawn to fit their size.

export function element(name, attributes = {}, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

/** Returns round numbers between two bounds, about the given number of them. */
export function ticks(low, high, number) {
  const rough = (high - low) / number;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

export const short = (value) => String(Number(value.toPrecision(3)));

/** The axes of a chart, with the positions of values. */
export class Axes {
  constructor(svg, x, y, titles, xTicks, yTicks) {
    const [width, height] = [svg.clientWidth || 320, svg.clientHeight || 150];
    const [left, right, top, bottom] = [46, 14, 12, 38];
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    this.svg = svg;
    const clip = this.add("clipPath", { id: `${svg.id}-inside` });
    clip.append(element("rect", { x: left, y: top, width: width - left - right, height: height - top - bottom }));
    this.x = (value) => left + ((value - x[0]) / (x[1] - x[0] || 1)) * (width - left - right);
    this.y = (value) => height - bottom - ((value - y[0]) / (y[1] - y[0] || 1)) * (height - top - bottom);
    this.xOf = (at) => x[0] + ((at - left) / (width - left - right)) * (x[1] - x[0]);
    this.yOf = (at) => y[0] + ((height - bottom - at) / (height - top - bottom)) * (y[1] - y[0]);
    for (const value of xTicks) {
      const [at, base] = [this.x(value), height - bottom];
      this.add("line", { class: "grid", x1: at, x2: at, y1: top, y2: base });
      this.add("text", { x: at, y: base + 15, "text-anchor": "middle" }, short(value));
    }
    for (const value of yTicks) {
      const at = this.y(value);
      this.add("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at });
      this.add("text", { x: left - 7, y: at + 4, "text-anchor": "end" }, short(value));
    }
    this.add("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom });
    this.add("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, titles[0]);
    const middle = (top + height - bottom) / 2;
    this.add("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, titles[1]);
  }

  add(name, attributes, text) {
    return this.svg.appendChild(element(name, attributes, text));
  }

  /** Draws a line through points [x, y], with a gap where y is null. */
  line(points, kind) {
    let pen = "M";
    const parts = points.map(([x, y]) => {
      const part = y === null ? "" : `${pen}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`;
      pen = y === null ? "M" : "L";
      return part;
    });
    return this.add("path", { class: kind, d: parts.join(""), "clip-path": `url(#${this.svg.id}-inside)` });
  }
}

/** Draws the loss before each step and after the last. */
export function lossCurve(svg, losses) {
  const known = losses.filter((value) => value !== null);
  const most = Math.max(...known, 1e-9);
  const number = Math.max(losses.length - 1, 1);
  const steps = ticks(0, number, Math.min(number, 10)).filter(Number.isInteger);
  const axes = new Axes(svg, [0, number], [0, 1.08 * most], ["steps", "loss"], steps, ticks(0, 1.08 * most, 3));
  const points = losses.map((loss, step) => [step, loss]);
  axes.line(points, "after");
  for (const [step, loss] of points) {
    if (loss !== null) axes.add("circle", { cx: axes.x(step), cy: axes.y(loss), r: 4.5 });
  }
  const text = known.length ? `from ${short(known[0])} before to ${short(known.at(-1))} after the last step` : "unknown";
  svg.setAttribute("aria-label", `Loss, step by step: ${text}`);
}
