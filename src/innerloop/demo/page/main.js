// The page: its tabs, and the code that they share.

import { get } from "./ask.js";
import { Characters } from "./characters.js";
import { Functions } from "./functions.js";

const trouble = document.getElementById("trouble");
const heard = document.getElementById("heard");
let saying;

/** Announces a text to screen readers; only the last of several in quick succession. */
function say(text, wait = 0) {
  clearTimeout(saying);
  saying = setTimeout(() => (heard.textContent = text), wait);
}

/** Shows an error, or hides the last one. */
function complain(error = null) {
  trouble.hidden = error === null;
  const text = error?.message ?? "";
  if (trouble.textContent !== text) trouble.textContent = text;
}

function select(name, names) {
  for (const other of names) {
    const tab = document.getElementById(`tab-${other}`);
    tab.setAttribute("aria-selected", String(other === name));
    tab.tabIndex = other === name ? 0 : -1;
    document.getElementById(other).hidden = other !== name;
  }
}

function tabs(names) {
  const list = document.querySelector("[role=tablist]");
  list.hidden = names.length < 2;
  for (const [i, name] of names.entries()) {
    const tab = document.getElementById(`tab-${name}`);
    tab.addEventListener("click", () => select(name, names));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = names.at((i + step) % names.length);
      select(next, names);
      document.getElementById(`tab-${next}`).focus();
    });
  }
  const wanted = location.hash.slice(1);
  select(names.includes(wanted) ? wanted : names[0], names);
}

async function start() {
  const about = await get("api/about");
  const kinds = { characters: Characters, functions: Functions };
  const names = Object.keys(kinds).filter((name) => about[name]);
  tabs(names);
  for (const name of names) new kinds[name](about[name], say, complain);
  const models = names.map((name) => about[name].name);
  document.getElementById("models").textContent = `Models: ${models.join(", ")}.`;
}

start().catch(complain);
