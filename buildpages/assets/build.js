// The page of a build while somebody looks at it: shows the log as it grows and keeps the state up to date. Everything from the log goes in as
// text, never as markup. Without this script the page still works: it links to the log and reloads itself.
"use strict";

const refreshMilliseconds = 5000; // between looks at the state of a running build
const retryMilliseconds = 2000; // before a log that ended or broke off is looked at again
const drawMilliseconds = 100; // between additions to the page
const maxCharacters = 2000000; // of the log on the page; the oldest go first

const section = document.getElementById("log");
const screen = document.getElementById("log-text");
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const logState = () => document.getElementById("log-state").dataset.log;
const isComplete = () => document.getElementById("log-state").dataset.complete === "true";
const isReadable = () => logState() === "live" || logState() === "ended";

// refresh brings the parts of the page that change up to date, from the page itself. It tells whether the build is still there.
async function refresh() {
  const response = await fetch(location.href, { cache: "no-store" });
  if (response.status === 404) return false;
  if (!response.ok) return true;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const update = fresh.getElementById(part.id);
    if (!update || update.isEqualNode(part)) continue;
    for (const attribute of update.attributes) part.setAttribute(attribute.name, attribute.value);
    part.replaceChildren(...update.childNodes);
  }
  const icon = fresh.getElementById("icon");
  if (icon) document.getElementById("icon").setAttribute("href", icon.getAttribute("href"));
  if (document.title !== fresh.title) document.title = fresh.title;
  showHints();
  return true;
}

// showHints reveals what only holds where this script runs.
function showHints() {
  for (const hint of document.querySelectorAll(".scripted")) hint.hidden = false;
}

// Cleaner takes the colours and other terminal codes out of a text that comes in pieces, and shows control characters as �. Everything that is
// repeated is bounded, so that no log makes it slow.
class Cleaner {
  #held = ""; // the end of the last piece, where it may be the beginning of a code
  static #code =
    /\x1b(?:\[[0-?]{0,100}[ -/]{0,10}[@-~]|\][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)|[PX^_][^\x1b]{0,2000}\x1b\\|[ -/]{1,3}[0-~]|[0-OQ-WYZ\\`-~])/g;
  static #unfinished = /\x1b(?:\[[0-?]{0,100}[ -/]{0,10}|[\]PX^_][^\x07\x1b]{0,2000}\x1b?|[ -/]{0,3})?$|\r$/;
  static #unseen = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

  clean(piece) {
    let text = this.#held + piece;
    const cut = text.search(Cleaner.#unfinished);
    this.#held = cut < 0 ? "" : text.slice(cut);
    if (cut >= 0) text = text.slice(0, cut);
    return text.replace(Cleaner.#code, "").replace(/\r?\r\n/g, "\n").replace(/\r/g, "\n").replace(Cleaner.#unseen, "\ufffd");
  }
}

// Screen is the log on the page: it grows at its end, follows it while the reader looks at it, and forgets its beginning.
class Screen {
  #pending = "";
  #timer = 0;
  #size = 0;

  clear() {
    this.#pending = "";
    this.#size = 0;
    screen.replaceChildren();
    screen.hidden = false;
  }

  add(text) {
    this.#pending += text;
    if (this.#pending.length > maxCharacters) this.#pending = this.#pending.slice(-maxCharacters / 2);
    if (!this.#timer) this.#timer = setTimeout(() => this.#draw(), drawMilliseconds);
  }

  #draw() {
    this.#timer = 0;
    const atEnd = screen.scrollHeight - screen.scrollTop - screen.clientHeight < 40;
    screen.append(document.createTextNode(this.#pending));
    this.#size += this.#pending.length;
    this.#pending = "";
    while (this.#size > maxCharacters && screen.childNodes.length > 1) {
      this.#size -= screen.firstChild.length;
      screen.firstChild.remove();
    }
    if (atEnd) screen.scrollTop = screen.scrollHeight;
  }
}

// showLog reads the log to its end and tells whether it got there.
async function showLog(display) {
  const response = await fetch(section.dataset.url + "&tail=" + section.dataset.tail, { cache: "no-store" });
  if (!response.ok) return false;
  const cleaner = new Cleaner();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let first = true; ; first = false) {
    const { done, value } = await reader.read();
    // What was shown before the connection broke stays until there is something newer.
    if (first) display.clear();
    if (done) return true;
    display.add(cleaner.clean(value));
  }
}

// followLog shows the log from when there is one until it is whole or gone.
async function followLog() {
  const display = new Screen();
  for (;;) {
    const before = logState();
    if (before === "gone" || before === "none" || before === "withheld") return;
    const whole = isReadable() && (await showLog(display).catch(() => false));
    if (whole && before === "ended") return;
    await sleep(retryMilliseconds);
    if (!(await refresh().catch(() => true))) return;
    if (whole && logState() === "ended") return;
  }
}

async function followState() {
  while (!isComplete()) {
    await sleep(refreshMilliseconds);
    if (!(await refresh().catch(() => true))) return;
  }
}

showHints();
followLog();
followState();
