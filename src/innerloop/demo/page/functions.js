// The functions: points in a plot, and the model's function before and after adaptation.

import { Newest, get as fetched } from "./ask.js";
import { Axes, lossCurve, short, ticks } from "./chart.js";
import { count } from "./pad.js";

const MOST = 50; // points
const NEAR = 14; // pixels within which a click is on a point
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const get = (id) => document.getElementById(id);

export class Functions {
  points = [];
  answer = null;
  truth = null;
  cross = null;

  constructor(about, say, complain) {
    this.about = about;
    this.say = say;
    this.complain = complain;
    this.newest = new Newest(
      "api/function",
      get("functions"),
      (answer) => (complain(), this.show(answer)),
      (error) => complain(error),
    );
    const plot = get("plot");
    plot.addEventListener("click", (event) => this.click(event));
    plot.addEventListener("keydown", (event) => this.key(event));
    plot.addEventListener("blur", () => ((this.cross = null), this.draw()));
    new ResizeObserver(() => this.draw()).observe(plot);
    get("sinusoid").addEventListener("click", () => this.sinusoid());
    get("undo-point").addEventListener("click", () => this.set(this.points.slice(0, -1)));
    get("clear-points").addEventListener("click", () => this.set([]));
    this.slider();
    this.set([]);
  }

  slider() {
    const [slider, label] = [get("function-steps"), get("function-steps-told")];
    slider.max = this.about.most_steps;
    slider.value = this.about.steps;
    const update = () => {
      label.textContent = count(Number(slider.value), "step");
      slider.setAttribute("aria-valuetext", label.textContent);
    };
    slider.addEventListener("input", () => (update(), this.ask()));
    update();
  }

  async sinusoid() {
    try {
      const { points, y } = await fetched("api/sinusoid");
      this.set(points, y);
    } catch (error) {
      this.complain(error);
    }
  }

  set(points, truth = null) {
    this.points = points;
    this.truth = truth;
    get("truth-key").hidden = truth === null;
    if (!points.length) {
      this.answer = null;
      this.newest.cancel();
      get("fit").textContent = "Click or tap in the plot to place a point, or click Random sinusoid for ten points of one.";
      get("function-loss").parentElement.hidden = true;
    }
    this.draw();
    this.ask();
  }

  ask() {
    if (this.points.length) this.newest.ask({ points: this.points, steps: Number(get("function-steps").value) });
  }

  show(answer) {
    this.answer = answer;
    get("function-loss").parentElement.hidden = false;
    lossCurve(get("function-loss"), answer.losses);
    const [before, after] = [answer.losses[0], answer.losses.at(-1)];
    const steps = count(answer.losses.length - 1, "step");
    const text =
      after === null
        ? `The adaptation diverged within ${steps}.`
        : `Mean squared error on the points: ${short(before)} before, ${short(after)} after ${steps}.`;
    get("fit").textContent = text;
    this.draw();
    this.say(text, 700);
  }

  draw() {
    const { x, y, grid } = this.about;
    const axes = (this.axes = new Axes(get("plot"), x, y, ["x", "y"], ticks(...x, 6), ticks(...y, 6)));
    const curve = (values) => values.map((value, i) => [x[0] + ((x[1] - x[0]) * i) / (grid - 1), value]);
    if (this.truth) axes.line(curve(this.truth), "truth");
    if (this.answer) {
      axes.line(curve(this.answer.before), "before");
      axes.line(curve(this.answer.after), "after");
    }
    for (const [u, v] of this.points) axes.add("circle", { class: "point", cx: axes.x(u), cy: axes.y(v), r: 6 });
    if (!this.cross) return;
    const [a, b] = [axes.x(this.cross[0]), axes.y(this.cross[1])];
    axes.add("path", { class: "pen", d: `M${a - 12} ${b}H${a + 12}M${a} ${b - 12}V${b + 12}` });
  }

  within(point) {
    const inside = (value, [low, high]) => Math.min(Math.max(value, low), high);
    return [inside(point[0], this.about.x), inside(point[1], this.about.y)];
  }

  /** Places a point, or removes the one that is there. */
  toggle(point) {
    const far = ([u, v]) =>
      Math.hypot(this.axes.x(u) - this.axes.x(point[0]), this.axes.y(v) - this.axes.y(point[1])) > NEAR;
    const others = this.points.filter(far);
    if (others.length === this.points.length && others.length >= MOST) {
      this.say(`A plot has at most ${MOST} points.`);
      return;
    }
    this.set(others.length < this.points.length ? others : [...others, point.map((v) => Number(v.toFixed(3)))]);
  }

  click(event) {
    const box = get("plot").getBoundingClientRect();
    const at = [this.axes.xOf(event.clientX - box.left), this.axes.yOf(event.clientY - box.top)];
    this.cross = null;
    this.toggle(this.within(at));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { x, y } = this.about;
    if (event.key in KEYS) {
      const step = event.shiftKey ? 0.01 : 0.05;
      const from = this.cross ?? [(x[0] + x[1]) / 2, (y[0] + y[1]) / 2];
      const [dx, dy] = KEYS[event.key];
      this.cross = this.within([from[0] + step * dx * (x[1] - x[0]), from[1] + step * dy * (y[1] - y[0])]);
      this.draw();
      this.say(`x ${short(this.cross[0])}, y ${short(this.cross[1])}`, 200);
    } else if (event.key === " " || event.key === "Enter") {
      this.cross ??= [(x[0] + x[1]) / 2, (y[0] + y[1]) / 2];
      this.toggle(this.cross);
    } else if (event.key === "Backspace") {
      this.set(this.points.slice(0, -1));
    } else if (event.key === "Escape") {
      this.set([]);
    } else {
      return;
    }
    event.preventDefault();
  }
}
