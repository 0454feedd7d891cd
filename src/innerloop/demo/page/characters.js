// The characters: small canvases for one drawing of each, a large one for a new drawing, and its classification.

import { Newest } from "./ask.js";
import { lossCurve } from "./chart.js";
import { example } from "./examples.js";
import { Pad, count, miniature, sent } from "./pad.js";

const FEWEST_CARDS = 3;
const EXAMPLES = 5; // of a character, the server's maximum
const SECONDS = 1.1; // that it takes to draw the example
const get = (id) => document.getElementById(id);
const percent = (value) => (value === null ? "–" : `${Math.round(100 * value)} %`);
const icon = (path) => `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${path}"/></svg>`;

/** One character: its canvas, and its earlier examples. */
class Card {
  kept = [];

  constructor(number, say, changed) {
    this.number = number;
    this.changed = changed;
    this.root = document.createElement("div");
    this.root.className = "pad";
    this.root.innerHTML = `
      <canvas role="application" tabindex="0" aria-label="Character ${number}" aria-describedby="keys"></canvas>
      <span class="which" aria-hidden="true">${number}</span>
      <div class="under">
        <div class="kept"></div>
        <button class="icon more" aria-label="Draw another example of character ${number}"
          title="Another example">${icon("M12 5v14M5 12h14")}</button>
        <button class="icon clear" aria-label="Clear character ${number}" title="Clear">${icon("M6 6l12 12M18 6L6 18")}
        </button>
      </div>`;
    this.pad = new Pad(this.root.querySelector("canvas"), say);
    this.pad.addEventListener("change", changed);
    this.more = this.root.querySelector(".more");
    this.more.addEventListener("click", () => this.keep());
    this.root.querySelector(".clear").addEventListener("click", () => this.set([]));
  }

  get drawings() {
    return this.pad.empty ? this.kept : [...this.kept, this.pad.strokes];
  }

  set(strokes) {
    this.kept = [];
    this.pad.set(strokes);
    this.shelve();
  }

  keep() {
    if (this.pad.empty || this.kept.length >= EXAMPLES - 1) return;
    this.kept.push(this.pad.strokes);
    this.pad.set([]);
    this.shelve();
    this.root.querySelector("canvas").focus();
  }

  shelve() {
    const shelf = this.root.querySelector(".kept");
    shelf.textContent = this.kept.length ? `${this.kept.length} +` : "";
    shelf.title = this.kept.length ? `${count(this.kept.length, "example")} kept` : "";
    this.more.disabled = this.kept.length >= EXAMPLES - 1;
  }
}

export class Characters {
  constructor(about, say, complain) {
    this.about = about;
    this.say = say;
    this.newest = new Newest(
      "api/characters",
      get("answer"),
      (answer, cards) => (complain(), this.show(answer, cards)),
      (error) => complain(error),
    );
    this.cards = Array.from({ length: about.most }, (_, i) => new Card(i + 1, say, () => this.ask()));
    get("cards").append(...this.cards.map((card) => card.root));
    this.query = new Pad(get("query"), say);
    this.query.addEventListener("change", () => this.ask());
    get("pixels").textContent = `${about.size} × ${about.size}`;
    this.offer();
    this.slider();
    get("show").addEventListener("click", () => this.demonstrate());
    get("clear").addEventListener("click", () => this.clear());
    get("clear-query").addEventListener("click", () => (this.stop(), this.query.clear()));
    // Drawing stops the demonstration.
    get("characters").addEventListener("pointerdown", (event) => event.target.matches(".pad canvas") && this.stop());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
    new ResizeObserver(() => this.losses && lossCurve(get("loss"), this.losses)).observe(get("loss"));
    this.ask();
  }

  /** Offers the numbers of characters: three to five, or up to the number of classes of the model. */
  offer() {
    const fewest = Math.min(FEWEST_CARDS, this.about.most);
    for (let number = fewest; number <= this.about.most; number++) {
      const label = document.createElement("label");
      label.innerHTML = `<input type="radio" name="count" value="${number}">${number}`;
      label.firstChild.checked = number === fewest;
      get("count").append(label);
    }
    get("count").hidden = fewest === this.about.most;
    get("count").addEventListener("change", () => this.arrange());
    this.arrange();
  }

  get used() {
    return this.cards.slice(0, Number(get("count").querySelector(":checked").value));
  }

  arrange() {
    for (const card of this.cards) card.root.hidden = !this.used.includes(card);
    this.ask();
  }

  slider() {
    const [slider, label] = [get("steps"), get("steps-told")];
    slider.max = this.about.most_steps;
    slider.value = this.about.steps;
    const update = () => {
      const text = count(Number(slider.value), "step");
      label.textContent = Number(slider.value) === this.about.tested ? `${text}, as tested` : text;
      slider.setAttribute("aria-valuetext", label.textContent);
    };
    slider.addEventListener("input", () => (update(), this.ask()));
    update();
  }

  clear() {
    this.stop();
    for (const card of this.cards) card.set([]);
    this.query.clear();
    this.say("All drawings cleared");
  }

  /** Asks for the class of the new drawing, or says what is missing. */
  ask() {
    if (!this.query) return; // still in the constructor
    const drawn = this.used.filter((card) => card.drawings.length);
    const missing =
      drawn.length < this.about.fewest
        ? "Draw at least two characters, then one of them again. Or click Show me."
        : this.query.empty
          ? "Now draw one of them again, in the large field."
          : "";
    if (missing) {
      this.newest.cancel();
      this.forget(missing);
      return;
    }
    const question = {
      characters: drawn.map((card) => card.drawings.map(sent)),
      drawing: sent(this.query.strokes),
      steps: Number(get("steps").value),
    };
    this.newest.ask(question, drawn);
  }

  forget(text) {
    get("verdict").textContent = text;
    get("bars").replaceChildren();
    get("bars-legend").hidden = true;
    get("loss").parentElement.hidden = true;
    get("sees").getContext("2d").clearRect(0, 0, 1000, 1000);
    this.rows = this.losses = this.image = null;
  }

  show({ before, after, losses, image }, cards) {
    this.losses = losses;
    this.image = image;
    if (this.rows?.length !== cards.length || this.rows.some((row, i) => row.card !== cards[i])) this.lay(cards);
    const first = after.indexOf(Math.max(...after));
    for (const [i, row] of this.rows.entries()) {
      row.root.classList.toggle("first", i === first);
      row.after.style.width = `${100 * (after[i] ?? 0)}%`;
      row.before.style.width = `${100 * (before[i] ?? 0)}%`;
      row.told.innerHTML = `<strong>${percent(after[i])}</strong><small>before ${percent(before[i])}</small>`;
      miniature(row.thumb, row.card.drawings.at(-1));
    }
    const steps = count(losses.length - 1, "step");
    const known = after[first] !== null;
    const text = known
      ? `Character ${cards[first].number}, ${percent(after[first])} after ${steps}.`
      : `The adaptation diverged within ${steps}.`;
    get("verdict").textContent = text;
    get("bars-legend").hidden = get("loss").parentElement.hidden = false;
    lossCurve(get("loss"), losses);
    this.pixels();
    this.say(known ? `${text} Before: ${percent(before[first])}.` : text, 700);
  }

  /** Creates a row for each character. */
  lay(cards) {
    this.rows = cards.map((card) => {
      const root = document.createElement("li");
      root.innerHTML = `
        <canvas role="img" aria-label="Character ${card.number}"></canvas>
        <div class="track" aria-hidden="true"><div class="after"></div><div class="before"></div></div>
        <div class="told"></div>`;
      const part = (selector) => root.querySelector(selector);
      return {
        card, root, thumb: part("canvas"), after: part(".after"), before: part(".before"), told: part(".told"),
      };
    });
    get("bars").replaceChildren(...this.rows.map((row) => row.root));
  }

  /** Shows the drawing as the model sees it, in the page's ink color. */
  pixels() {
    const canvas = get("sees");
    const size = this.image.length;
    if (canvas.width !== size) canvas.width = canvas.height = size;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(size, size);
    const ink = matchMedia("(prefers-color-scheme: dark)").matches ? [233, 235, 238] : [27, 32, 39];
    this.image.flat().forEach((value, i) => picture.data.set([...ink, value], 4 * i));
    context.putImageData(picture, 0, 0);
  }

  repaint() {
    if (!this.rows) return;
    for (const row of this.rows) miniature(row.thumb, row.card.drawings.at(-1));
    this.pixels();
  }

  stop() {
    cancelAnimationFrame(this.frame);
  }

  /** Draws some figures, and one of them again, slowly enough to watch. */
  demonstrate() {
    this.stop();
    const [figures, again] = example(this.used.length);
    this.query.clear();
    this.used.forEach((card, i) => card.set(figures[i]));
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.query.set(again);
      return;
    }
    const whole = again.reduce((sum, stroke) => sum + stroke.length, 0);
    let start = null;
    const advance = (now) => {
      start ??= now;
      let left = Math.max(1, Math.ceil((whole * (now - start)) / (1000 * SECONDS)));
      const finished = left >= whole;
      const part = again.map((stroke) => stroke.slice(0, Math.max(0, (left -= stroke.length) + stroke.length)));
      this.query.set(part.filter((stroke) => stroke.length));
      if (!finished) this.frame = requestAnimationFrame(advance);
    };
    this.frame = requestAnimationFrame(advance);
  }
}
