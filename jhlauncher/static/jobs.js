// User jobs on systems with Slurm: the form to start one, and those that there are.
//
// One stream tells the whole list whenever something of it changes: browsers have six connections to a host, which a
// stream for each job would use up.

import { ask } from "./api.js";
import { connectionIn } from "./connection.js";
import { fill, h } from "./dom.js";
import { many } from "./format.js";
import { JobRow, goesOn, keyOf } from "./job.js";
import { JobForm } from "./jobform.js";
import { follow } from "./stream.js";

const ENDED_AT_FIRST = 10;

/** Show the part of the page with jobs, if this person has an account on a system. */
export async function showJobs({ root, link, form, list, connection }) {
  const shown = () => (root.hidden = link.hidden = false);
  try {
    const systems = await ask("GET", "api/systems/");
    if (!systems.length) return;
    const jobs = new JobList(list, connection, systems);
    const forJobs = systems.filter((system) => system.jobs);
    form.parentElement.hidden = !forJobs.length;
    if (forJobs.length) {
      const asking = new JobForm(form, forJobs, { started: (view) => jobs.started(view) });
      jobs.changed = (names) => asking.suggest(names);
    }
    shown();
  } catch (error) {
    if (!error.temporary) return; // this person has no user jobs
    const again = h("button", { class: "btn btn-outline-contrast", type: "button", onclick: () => showJobs({ root, link, form, list, connection }) }, "Try again");
    form.parentElement.hidden = true;
    fill(list, h("div", { class: "alert alert-warning", role: "alert" }, h("p", {}, error.message), again));
    shown();
  }
}

class JobList {
  constructor(list, connection, systems) {
    this.list = list;
    this.systems = new Map(systems.map((system) => [system.name, system]));
    this.rows = new Map();
    this.views = [];
    this.changed = () => {};
    this.empty = h("p", { class: "empty", tabindex: -1 }, "No jobs. What you start appears here.");
    this.running = h("ul", { class: "rows-of-launches" });
    this.pastTitle = h("h3", { class: "past" }, "Ended");
    this.past = h("ul", { class: "rows-of-launches" });
    this.older = h("button", { class: "btn btn-sm btn-outline-contrast", type: "button", onclick: () => this.showAll() });
    this.most = ENDED_AT_FIRST;
    const state = connectionIn(connection, "Jobs", () => stream.again());
    const stream = follow("api/userjobs/", (name, views) => this.show(views), (what, ...more) => {
      state(what, ...more);
      if (what === "ended") this.list.removeAttribute("aria-busy");
    });
    setInterval(() => this.rows.forEach((row) => row.tick()), 10_000);
  }

  /** Show these user jobs, the newest first, and no others. */
  show(views) {
    if (!this.running.isConnected) fill(this.list, this.empty, this.running, this.pastTitle, this.past, this.older);
    this.list.removeAttribute("aria-busy");
    this.views = views;
    const keys = new Set(views.map(keyOf));
    for (const [key, row] of this.rows) if (!keys.has(key)) this.drop(key, row);
    for (const view of views) this.put(keyOf(view), view);
    this.arrange();
    this.changed(views.map(({ service }) => service));
  }

  /** Show one that was started just now, unless the stream was quicker. */
  started(view) {
    if (!this.rows.has(keyOf(view))) this.show([view, ...this.views.filter(({ service }) => service !== view.service)]);
    this.rows.get(keyOf(view)).element.scrollIntoView({ block: "nearest" });
  }

  put(key, view) {
    const row = this.rows.get(key);
    if (row) return row.update(view);
    const gone = () => this.show(this.views.filter((other) => keyOf(other) !== key));
    this.rows.set(key, new JobRow(view, { gone, prints: this.systems.get(view.hostname)?.forwards }));
  }

  drop(key, row) {
    const held = row.element.contains(document.activeElement);
    row.element.remove();
    this.rows.delete(key);
    if (held) this.list.focus();
  }

  arrange() {
    const held = document.activeElement;
    const elements = (views) => views.map((view) => this.rows.get(keyOf(view)).element);
    const ended = this.views.filter((view) => !goesOn(view));
    place(this.running, elements(this.views.filter(goesOn)));
    place(this.past, elements(ended));
    elements(ended).forEach((element, number) => (element.hidden = number >= this.most));
    if (document.activeElement !== held) held.focus({ preventScroll: true }); // it was moved to those that have ended
    this.empty.hidden = this.views.length > 0;
    this.pastTitle.hidden = !ended.length;
    this.older.hidden = ended.length <= this.most;
    this.older.textContent = `Show ${many(ended.length - this.most, "older one")}`;
  }

  showAll() {
    this.most = Infinity;
    this.arrange();
    this.list.focus();
  }
}

/** Have these elements in a list, in this order; those that are where they belong are not touched. */
function place(home, elements) {
  elements.forEach((element, number) => {
    if (home.children[number] !== element) home.insertBefore(element, home.children[number] || null);
  });
}
