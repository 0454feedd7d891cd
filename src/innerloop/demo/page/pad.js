// Draw with mouse, finger, pen or keyboard on a canvas. Strokes are lists of [x, y] in [0, 1].

const APART = 0.008; // points nearer to the last one are left out
const STROKES = 32; // the server's maximum
const POINTS = 220; // of a drawing that is sent: enough to keep its corners
const PEN = 0.045; // width, in canvases
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const clamped = (value) => Math.min(Math.max(value, 0), 1);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

/** Draws strokes on a canvas, at the resolution of the screen. */
export function paint(canvas, strokes, place = (point) => point, pen = PEN) {
  const size = Math.round((canvas.clientWidth || 44) * (window.devicePixelRatio || 1));
  if (canvas.width !== size) canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, size, size);
  context.lineWidth = pen * size;
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = color("--ink");
  for (const stroke of strokes) {
    const points = stroke.map(place).map(([x, y]) => [x * size, y * size]);
    context.beginPath();
    context.moveTo(...points[0]);
    // Smooth the line through the midpoints, because fast strokes have few points.
    for (let i = 1; i < points.length - 1; i++) {
      const [x, y] = points[i];
      const [u, v] = points[i + 1];
      context.quadraticCurveTo(x, y, (x + u) / 2, (y + v) / 2);
    }
    context.lineTo(...points.at(-1));
    context.stroke();
  }
  return context;
}

/** Draws strokes as a thumbnail, centered and scaled. */
export function miniature(canvas, strokes) {
  const [xs, ys] = [0, 1].map((axis) => strokes.flat().map((point) => point[axis]));
  const [low, high] = [Math.min, Math.max].map((bound) => [bound(...xs), bound(...ys)]);
  const scale = 0.76 / Math.max(high[0] - low[0], high[1] - low[1], 0.08);
  paint(canvas, strokes, (point) => point.map((v, axis) => 0.5 + (v - (low[axis] + high[axis]) / 2) * scale), 0.07);
}

/** Reduces strokes to the number of points that are sent. */
export function sent(strokes) {
  const number = strokes.reduce((sum, stroke) => sum + stroke.length, 0);
  const every = Math.ceil(number / POINTS);
  const kept = (stroke) => stroke.filter((_, i) => i % every === 0 || i === stroke.length - 1);
  return strokes.map((stroke) => kept(stroke).map((point) => point.map((v) => Math.round(v * 1000) / 1000)));
}

export class Pad extends EventTarget {
  strokes = [];
  #canvas;
  #say;
  #pointer = null;
  #pen = [0.5, 0.5];
  #byKeyboard = false;
  #down = false;

  /** @param say announces to screen readers what the keyboard did. */
  constructor(canvas, say) {
    super();
    this.#canvas = canvas;
    this.#say = say;
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(end, (event) => event.pointerId === this.#pointer && (this.#pointer = null));
    }
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#leave());
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  get empty() {
    return this.strokes.length === 0;
  }

  set(strokes) {
    this.strokes = strokes;
    this.#down = false;
    this.#changed();
  }

  clear() {
    if (!this.empty) this.set([]);
  }

  draw() {
    const context = paint(this.#canvas, this.strokes);
    if (!this.#byKeyboard) return;
    const size = this.#canvas.width;
    const [x, y] = this.#pen.map((v) => v * size);
    const arm = 0.06 * size;
    context.lineWidth = Math.max(2, 0.012 * size);
    context.strokeStyle = color(this.#down ? "--accent" : "--truth");
    context.beginPath();
    for (const [dx, dy] of [[arm, 0], [0, arm]]) {
      context.moveTo(x - dx, y - dy);
      context.lineTo(x + dx, y + dy);
    }
    context.stroke();
  }

  #changed() {
    this.draw();
    this.dispatchEvent(new Event("change"));
  }

  #begin(point) {
    if (this.strokes.length >= STROKES) {
      this.#say(`A drawing has at most ${STROKES} strokes.`);
      return false;
    }
    this.strokes.push([point]);
    this.#changed();
    return true;
  }

  #extend(point) {
    const [x, y] = this.strokes.at(-1).at(-1);
    if (Math.hypot(point[0] - x, point[1] - y) < APART) return false;
    this.strokes.at(-1).push(point);
    return true;
  }

  #at(event) {
    const box = this.#canvas.getBoundingClientRect();
    return [clamped((event.clientX - box.left) / box.width), clamped((event.clientY - box.top) / box.height)];
  }

  #press(event) {
    if (event.button !== 0 || this.#pointer !== null) return;
    event.preventDefault(); // prevents selection and scrolling, but also the focus, which is set below
    this.#canvas.focus({ preventScroll: true, focusVisible: false });
    this.#byKeyboard = this.#down = false;
    if (!this.#begin(this.#at(event))) return;
    this.#pointer = event.pointerId;
    this.#canvas.setPointerCapture(event.pointerId);
  }

  #move(event) {
    if (event.pointerId !== this.#pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    const longer = (events.length ? events : [event]).map((one) => this.#extend(this.#at(one)));
    if (longer.some(Boolean)) this.#changed();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const done = this.#keyed(event.key, event.shiftKey ? 0.01 : 0.05);
    if (!done) return;
    event.preventDefault();
    this.#byKeyboard = true;
    this.draw();
  }

  #keyed(key, step) {
    if (key in KEYS) {
      this.#pen = this.#pen.map((v, axis) => clamped(v + step * KEYS[key][axis]));
      if (this.#down && this.#extend([...this.#pen])) this.#changed();
    } else if (key === " ") {
      this.#down = !this.#down && this.#begin([...this.#pen]);
      this.#say(this.#down ? "Pen down" : `Pen up, ${count(this.strokes.length, "stroke")}`);
    } else if (key === "Backspace") {
      this.set(this.strokes.slice(0, -1));
      this.#say(`${count(this.strokes.length, "stroke")} left`);
    } else if (key === "Escape") {
      this.set([]);
      this.#say("Cleared");
    } else {
      return false;
    }
    return true;
  }

  #leave() {
    this.#byKeyboard = this.#down = false;
    this.draw();
  }
}

export const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
