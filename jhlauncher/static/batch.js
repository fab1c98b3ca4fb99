// A class that was started in one request: one bar for all of it.

import { ask } from "./api.js";
import { confirmed, fill, h, unique } from "./dom.js";
import { many } from "./format.js";
import { ACTIVE, WAITING } from "./launch.js";

const PARTS = [
  ["ready", ["ready"], "success"],
  ["starting", ["starting"], "info"],
  ["waiting", ["queued"], "secondary"],
  ["failed", ["failed"], "danger"],
  ["ended", ["cancelled", "stopped", "expired"], "dark"],
];

export class BatchCard {
  /** `batch` is the answer of `batches`. */
  constructor(batch) {
    const id = unique("batch");
    this.id = batch.id;
    this.name = h("h3", { id });
    this.states = new Map();
    this.refused = batch.items.filter(({ error }) => error);
    for (const { launch } of batch.items) if (launch) this.states.set(launch.id, launch.state);
    this.bar = h("div", { class: "progress-stacked" });
    this.whole = h("div", { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": this.states.size, "aria-labelledby": id }, this.bar);
    this.said = h("p", { class: "said", role: "status" });
    this.button = h("button", { class: "btn btn-sm btn-outline-danger", type: "button", "aria-describedby": id, onclick: () => this.stop() }, "Stop all");
    this.problems = h("ul", { class: "problems" }, this.refused.map(({ error }) => h("li", {}, error.error)));
    this.element = h("article", { class: "batch", "data-id": batch.id, "aria-labelledby": id }, this.name, this.whole, this.said, this.problems, h("div", { class: "actions" }, this.button));
    this.show();
  }

  /** The whole class, as it is now. */
  look(batch) {
    for (const { launch } of batch.items) if (launch) this.states.set(launch.id, launch.state);
    this.show();
  }

  /** A launch, perhaps one of its own, is in this state. */
  update(id, state) {
    if (!this.states.has(id)) return;
    this.states.set(id, state);
    this.show();
  }

  show() {
    const total = this.states.size;
    const counts = PARTS.map(([name, states, look]) => [name, [...this.states.values()].filter((state) => states.includes(state)).length, look]);
    const settled = [...this.states.values()].filter((state) => !WAITING.includes(state)).length;
    this.name.textContent = `A class of ${total + this.refused.length}`;
    fill(this.bar, counts.filter(([, count]) => count).map(([name, count, look]) => {
      const part = h("div", { class: "progress" }, h("div", { class: `progress-bar text-bg-${look}` }, count));
      part.style.width = `${(100 * count) / total}%`;
      part.title = name;
      return part;
    }));
    this.whole.setAttribute("aria-valuenow", settled);
    const words = counts.filter(([, count]) => count).map(([name, count]) => `${count} ${name}`);
    if (this.refused.length) words.push(`${this.refused.length} not accepted`);
    this.said.textContent = words.join(", ");
    this.whole.setAttribute("aria-valuetext", this.said.textContent);
    this.button.hidden = ![...this.states.values()].some((state) => ACTIVE.includes(state));
  }

  async stop() {
    const active = [...this.states.values()].filter((state) => ACTIVE.includes(state)).length;
    if (!(await confirmed(`Stop ${many(active, "server")} of this class? Unsaved work will be lost.`, "Stop them"))) return;
    try {
      await ask("DELETE", `batches/${this.id}`);
    } catch (error) {
      this.said.textContent = error.message;
    }
  }
}
