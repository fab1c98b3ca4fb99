// A class that was started in one request: one bar for all of it, and what each person's server is doing.

import { ask } from "./api.js";
import { announce, confirmed, fill, h, unique } from "./dom.js";
import { extend } from "./extend.js";
import { clock, duration, many } from "./format.js";
import { ACTIVE, LOOK, WAITING, putOff, title } from "./launch.js";

const PARTS = [
  ["ready", ["ready"], "success"],
  ["starting", ["starting"], "info"],
  ["waiting", ["queued"], "secondary"],
  ["failed", ["failed"], "danger"],
  ["ended", ["cancelled", "stopped", "expired"], "dark"],
];
const COLUMNS = ["Person", "State", "Doing", "Last used", "Ends"];
const LOOK_AGAIN = 30_000; // milliseconds: no event tells when a server was used
const SOON = 2000; // milliseconds, for those who have just become ready

export class BatchCard {
  /** `batch` is the answer of `batches`. */
  constructor(batch) {
    const id = unique("batch");
    this.id = batch.id;
    this.name = h("h3", { id });
    this.bar = h("div", { class: "progress-stacked" });
    this.whole = h("div", { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 0, "aria-labelledby": id }, this.bar);
    this.said = h("p", { class: "said", role: "status" });
    const button = (text, look, action) => h("button", { class: `btn btn-sm btn-outline-${look}`, type: "button", "aria-describedby": id, onclick: action }, text);
    this.buttons = h("div", { class: "actions" }, button("Extend all", "contrast", () => this.extend()), button("Stop all", "danger", () => this.stop()));
    this.problems = h("ul", { class: "problems" }); // who was not accepted
    this.outcome = h("ul", { class: "problems" }); // what could not be done, and for whom
    this.rows = h("tbody");
    const head = h("thead", {}, h("tr", {}, COLUMNS.map((name) => h("th", { scope: "col" }, name))));
    const table = h("table", { class: "table table-sm", "aria-labelledby": id }, head, this.rows);
    this.details = h(
      "details",
      { ontoggle: () => this.details.open && this.lookAgain() },
      h("summary", {}, "What each server is doing"),
      h("div", { class: "people", role: "region", tabindex: 0, "aria-labelledby": id }, table),
    );
    this.element = h("article", { class: "batch", "data-id": batch.id, "aria-labelledby": id }, this.name, this.whole, this.said, this.buttons, h("div", { role: "alert" }, this.outcome), this.problems, this.details);
    setInterval(() => this.details.open && !document.hidden && this.element.isConnected && this.lookAgain(), LOOK_AGAIN);
    this.look(batch);
  }

  get launches() {
    return [...this.people.values()].map(({ launch }) => launch);
  }

  count(states) {
    return this.launches.filter(({ state }) => states.includes(state)).length;
  }

  /** The whole class, as it is now. */
  look(batch) {
    this.group = batch.group;
    this.refused = batch.items.filter(({ error }) => error);
    const before = this.people || new Map();
    const known = batch.items.filter(({ launch }) => launch);
    this.people = new Map(known.map((item) => [item.launch.id, { row: before.get(item.launch.id)?.row || row(), ...item }]));
    const turnedAway = this.refused.map(({ username, error }) => fillRow(row(), [username || "", h("span", { class: "badge text-bg-danger" }, "refused"), error.error, "", ""]));
    const shown = [...[...this.people.values()].map((person) => person.row), ...turnedAway];
    if (shown.length !== this.rows.children.length || !before.size) fill(this.rows, shown);
    for (const person of this.people.values()) showPerson(person);
    if (this.problems.childElementCount !== this.refused.length) list(this.problems, this.refused.map(({ error }) => error.error));
    this.show();
  }

  async lookAgain() {
    clearTimeout(this.soon);
    this.soon = null;
    try {
      this.look(await ask("GET", `batches/${this.id}`));
    } catch {
      // what is shown is what was known; it is asked again soon
    }
  }

  /** A launch, perhaps one of its own, is like this now. */
  update(launch) {
    const person = this.people.get(launch.id);
    if (!person) return;
    person.launch = launch;
    if (launch.state !== "starting") person.progress = null;
    showPerson(person);
    this.show();
    if (this.details.open && launch.state === "ready" && !person.last_activity) this.soon ||= setTimeout(() => this.lookAgain(), SOON);
  }

  /** An event of the stream; a launch that came to another state comes with `update`. */
  tell(name, data) {
    const person = this.people.get(data.id);
    if (!person || name !== "progress") return;
    person.progress = data;
    showPerson(person);
  }

  show() {
    const total = this.people.size;
    const counts = PARTS.map(([name, states, look]) => [name, this.count(states), look]).filter(([, count]) => count);
    this.name.textContent = `A class of ${total + this.refused.length}${this.group ? ` (${this.group})` : ""}`;
    fill(this.bar, counts.map(([name, count, look]) => {
      const part = h("div", { class: "progress" }, h("div", { class: `progress-bar text-bg-${look}` }, count));
      part.style.width = `${(100 * count) / total}%`;
      part.title = name;
      return part;
    }));
    this.whole.setAttribute("aria-valuemax", total);
    this.whole.setAttribute("aria-valuenow", total - this.count(WAITING));
    const words = counts.map(([name, count]) => `${count} ${name}`);
    if (this.refused.length) words.push(`${this.refused.length} not accepted`);
    this.said.textContent = words.join(", ");
    this.whole.setAttribute("aria-valuetext", this.said.textContent);
    this.buttons.hidden = !this.count(ACTIVE);
  }

  // -- what is done

  async extend() {
    try {
      const answer = await extend(`batches/${this.id}`, `More time for ${many(this.count(ACTIVE), "server")} of this class`);
      if (!answer) return;
      const refused = answer.items.filter(({ error }) => error);
      for (const { launch } of answer.items) this.update(launch);
      list(this.outcome, refused.map(({ launch, error }) => `${title(launch)}: ${error.error}`));
      const done = many(answer.items.length - refused.length, "server");
      announce(refused.length ? `${done} extended, ${refused.length} not.` : `${done} extended.`);
    } catch (error) {
      list(this.outcome, [error.message]);
    }
  }

  async stop() {
    if (!(await confirmed(`Stop ${many(this.count(ACTIVE), "server")} of this class? Unsaved work will be lost.`, "Stop them"))) return;
    try {
      await ask("DELETE", `batches/${this.id}`);
    } catch (error) {
      list(this.outcome, [error.message]);
    }
  }
}

const list = (element, texts) => fill(element, texts.map((text) => h("li", {}, text)));

// -- what each server is doing

const row = () => h("tr", {}, h("th", { scope: "row" }), COLUMNS.slice(1).map(() => h("td")));

/** Fill a row anew; what is as it was stays, and is not read out again. */
function fillRow(element, contents) {
  contents.forEach((content, place) => {
    const cell = element.children[place];
    if (cell.textContent !== (content.textContent ?? content)) fill(cell, content);
  });
  return element;
}

function showPerson({ row: element, launch, progress, last_activity: used }) {
  const stopping = launch.ended_by && ACTIVE.includes(launch.state);
  const badge = h("span", { class: `badge text-bg-${LOOK[launch.state]}` }, stopping ? "stopping" : launch.state);
  const ends = launch.expires ? clock(launch.expires) : "";
  fillRow(element, [title(launch), badge, doing(launch, progress), launch.state === "ready" && used ? ago(used) : "", ends]);
}

function doing(launch, progress) {
  if (launch.error) return `${launch.error.error} (${launch.error.reason})`;
  if (launch.state === "queued") return putOff(launch) || "Waiting for its turn";
  if (launch.state === "starting") return progress ? `${progress.progress} % ${progress.message}` : "Starting";
  return "";
}

const ago = (time) => `${duration((Date.now() - new Date(time)) / 1000)} ago`;
