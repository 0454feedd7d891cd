// Ask the server one question at a time; of the questions that come meanwhile, only the newest is asked.

const PATIENCE = 20_000; // milliseconds

/** Returns the JSON answer, or throws an Error whose message can be shown. */
export async function get(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw options.signal.reason;
    throw new Error("The server does not answer. Start innerloop demo again.");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `The server returned an error (${response.status}).`);
  return answer;
}

/**
 * Asks one address repeatedly. It calls `answered(answer, about)` with the value given along with the question, or
 * `failed(error)`; neither is called for a canceled question. The element has aria-busy until the newest question is
 * answered.
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

  /** Drops the pending questions. */
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
      // Show it even if the drawing has changed meanwhile, because the next answer is on its way.
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
