// Asking the server: one question at a time, and of those that come meanwhile only the newest.

const PATIENCE = 20_000; // milliseconds

/** The JSON answer; an Error whose message can be shown where there is none. */
export async function get(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw options.signal.reason;
    throw new Error("The server does not answer. Start innerloop demo again.");
  }
  const told = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(told.error ?? `The server answered ${response.status}.`);
  return told;
}

/**
 * A way to ask one address again and again. `answered(answer, about)` is told what was given along with its question,
 * `failed(error)` why there is no answer; neither hears of a question that was cancelled. The element says that it is
 * busy while there is no answer to the newest question.
 */
export class Newest {
  #path;
  #answered;
  #failed;
  #element;
  #running = null;
  #next = null;

  constructor(path, element, answered, failed) {
    this.#element = element;
    this.#path = path;
    this.#answered = answered;
    this.#failed = failed;
  }

  ask(question, about) {
    this.#next = [question, about];
    this.#element.setAttribute("aria-busy", "true");
    if (!this.#running) this.#send();
  }

  /** Nobody wants to know any more. */
  cancel() {
    this.#next = null;
    this.#running?.abort();
    this.#running = null;
    this.#element.setAttribute("aria-busy", "false");
  }

  async #send() {
    const running = new AbortController();
    const [question, about] = this.#next;
    const body = JSON.stringify(question);
    const headers = { "Content-Type": "application/json" };
    this.#running = running;
    this.#next = null;
    const late = setTimeout(() => running.abort(new Error("The server takes too long to answer.")), PATIENCE);
    try {
      const answer = await get(this.#path, { method: "POST", headers, body, signal: running.signal });
      // Shown even if the drawing has gone on meanwhile: it was true a moment ago, and the next answer is on its way.
      if (this.#running === running) this.#answered(answer, about);
    } catch (error) {
      if (this.#running === running) this.#failed(error);
    }
    clearTimeout(late);
    if (this.#running !== running) return;
    this.#running = null;
    if (this.#next) this.#send();
    else this.#element.setAttribute("aria-busy", "false");
  }
}
