// The launches that this person may see, kept up to date by one event stream, however many they are.

import { ask, groups, others, page, pages } from "./api.js";
import { BatchCard } from "./batch.js";
import { connectionIn } from "./connection.js";
import { announce, confirmed, fill, h } from "./dom.js";
import { many } from "./format.js";
import { ACTIVE, LaunchRow } from "./launch.js";
import { follow } from "./stream.js";

const ENDED = ["failed", "cancelled", "stopped", "expired"];
const AT_ONCE = 4; // requests to stop servers

export class LaunchList {
  /** `changed(launch)` is told each launch as it is shown; `again(launch)` fills the form with one. */
  constructor({ list, batches, filters, connection, changed, again }) {
    Object.assign(this, { list, batchRoot: batches, changed, again });
    this.connection = connectionIn(connection, "Servers", () => this.stream.again());
    this.rows = new Map();
    this.batches = new Map();
    this.running = h("ul", { class: "rows-of-launches" });
    this.past = h("ul", { class: "rows-of-launches" });
    this.empty = h("p", { class: "empty" });
    this.pastTitle = h("h3", { class: "past" }, "Ended");
    this.older = h("button", { class: "btn btn-sm btn-outline-contrast", type: "button", onclick: () => this.showOlder() }, "Show older ones");
    this.meanwhile = null; // events that have come while all launches are looked at
    this.everyone = false;
    if (others) this.showFilters(filters);
    setInterval(() => this.rows.forEach((row) => row.tick()), 10_000);
  }

  // -- whose

  showFilters(root) {
    const choose = (everyone) => () => this.look(everyone);
    const tab = (text, everyone) => h("button", { type: "button", class: "btn btn-outline-contrast", "aria-pressed": String(everyone === this.everyone), onclick: choose(everyone) }, text);
    this.tabs = [tab("Mine", false), tab("Everyone's", true)];
    this.who = h("input", { class: "form-control", placeholder: "user", "aria-label": "Only of this user", onchange: () => this.restart() });
    this.group = "everybody" in page
      ? h("input", { class: "form-control", placeholder: "group", "aria-label": "Only of this group", onchange: () => this.restart() })
      : h("select", { class: "form-select", "aria-label": "Only of this group", onchange: () => this.restart() }, ["", ...groups].map((name) => h("option", { value: name }, name || "every group")));
    this.state = h("select", { class: "form-select", "aria-label": "Only in this state", onchange: () => this.arrange() }, ["", ...ACTIVE, ...ENDED].map((name) => h("option", { value: name }, name || "every state")));
    this.all = h("input", { type: "checkbox", class: "form-check-input", id: "select-all", onchange: () => this.selectAll(this.all.checked) });
    this.stopButton = h("button", { type: "button", class: "btn btn-outline-danger", disabled: true, onclick: () => this.stopSelected() }, "Stop selected");
    this.narrow = h("div", { class: "narrow", hidden: true }, this.who, this.group, this.state, h("span", { class: "form-check" }, this.all, h("label", { for: "select-all", class: "form-check-label" }, "All")), this.stopButton);
    fill(root, h("div", { class: "btn-group", role: "group", "aria-label": "Whose servers" }, this.tabs), this.narrow);
  }

  /** Show one's own launches, or everyone's. */
  look(everyone) {
    if (!others || everyone === this.everyone) return;
    this.everyone = everyone;
    this.narrow.hidden = !everyone;
    this.tabs.forEach((tab, number) => tab.setAttribute("aria-pressed", String(Boolean(number) === everyone)));
    this.restart();
  }

  query(more = {}) {
    const whose = this.everyone ? { username: this.who.value.trim(), group: this.group.value.trim() } : { username: page.user };
    return new URLSearchParams(Object.entries({ ...whose, ...more }).filter(([, value]) => value));
  }

  // -- following

  restart() {
    this.stream?.close();
    this.loading = this.meanwhile = null;
    this.list.setAttribute("aria-busy", "true");
    this.stream = follow(`launches/events?${this.query()}`, (name, data) => this.tell(name, data), (...state) => this.connects(...state));
  }

  connects(state, ...more) {
    this.connection(state, ...more);
    if (state === "ended") this.list.removeAttribute("aria-busy");
  }

  tell(name, data) {
    if (name === "reset") return this.load();
    if (this.meanwhile) return this.meanwhile.push([name, data]);
    if (data.launch) this.put(data.launch);
    this.rows.get(data.id)?.tell(name, data);
    for (const card of this.batches.values()) card?.tell(name, data);
  }

  /** Look at all launches anew; what happens meanwhile is newer, and told after it. */
  async load() {
    const look = (this.loading = Symbol("a look"));
    this.meanwhile = [];
    try {
      const found = [];
      for await (const items of pages(`launches?${this.query({ state: ACTIVE.join(","), limit: 200 })}`)) found.push(...items);
      const ended = await ask("GET", `launches?${this.query({ state: ENDED.join(","), limit: 10 })}`);
      if (look !== this.loading) return; // another look began meanwhile
      const known = new Set([...found, ...ended.items].map(({ id }) => id));
      for (const id of this.rows.keys()) if (!known.has(id)) this.drop(id);
      for (const launch of [...ended.items, ...found].reverse()) this.put(launch, false);
      this.next = ended.next;
      fill(this.list, this.empty, this.running, this.pastTitle, this.past, this.older);
      this.arrange();
      this.batches.forEach((card, id) => card && this.lookAtBatch(id));
    } catch (error) {
      if (look === this.loading) this.showProblem(error);
    }
    if (look !== this.loading) return;
    const told = this.meanwhile;
    this.meanwhile = null;
    for (const event of told) this.tell(...event);
  }

  showProblem(error) {
    if (error.loggedOut) return this.connects("ended", error);
    const again = h("button", { class: "btn btn-sm btn-outline-contrast", type: "button", onclick: () => this.load() }, "Try again");
    fill(this.list, h("div", { class: "alert alert-warning", role: "alert" }, h("p", {}, error.message), again));
    this.list.removeAttribute("aria-busy");
  }

  async showOlder() {
    const look = this.loading;
    try {
      const older = await ask("GET", `launches?${this.query({ state: ENDED.join(","), limit: 20, cursor: this.next })}`);
      if (look !== this.loading) return;
      for (const launch of older.items) if (!this.rows.has(launch.id)) this.put(launch, false, false);
      this.next = older.next;
      this.arrange();
    } catch (error) {
      announce(error.message);
    }
  }

  // -- what is shown

  /** Show a launch as it is now. */
  put(launch, arrange = true, first = true) {
    let row = this.rows.get(launch.id);
    const wasActive = row?.active;
    if (row) row.update(launch);
    else {
      row = new LaunchRow(launch, { user: page.user, selected: others && (() => this.selectionChanged()), again: this.again });
      this.rows.set(launch.id, row);
    }
    if (wasActive !== row.active || !row.element.isConnected) {
      const home = row.active ? this.running : this.past;
      if (first) home.prepend(row.element);
      else home.append(row.element);
    }
    this.changed(launch);
    if (launch.batch) this.follows(launch);
    if (arrange) this.arrange();
  }

  /** Have it seen, where the page is longer than the screen. */
  reveal(id) {
    this.rows.get(id)?.element.scrollIntoView({ block: "nearest" });
  }

  drop(id) {
    this.rows.get(id).element.remove();
    this.rows.delete(id);
  }

  arrange() {
    const state = this.everyone ? this.state.value : "";
    let shown = 0;
    for (const row of this.rows.values()) {
      row.element.hidden = Boolean(state) && row.launch.state !== state;
      if (row.box) row.box.hidden = !this.everyone || !row.active;
      shown += !row.element.hidden;
    }
    // what is there stays where it is: whatever has the focus keeps it
    this.empty.textContent = this.everyone ? "No servers to show." : "Nothing runs. What you start appears here.";
    this.empty.hidden = shown > 0;
    this.pastTitle.hidden = !this.past.children.length;
    this.older.hidden = !this.next;
    this.list.removeAttribute("aria-busy");
    this.batchRoot.hidden = others && !this.everyone;
    this.selectionChanged();
  }

  // -- classes

  /** Show the class that a launch belongs to, if its bar may be seen. */
  follows(launch) {
    const card = this.batches.get(launch.batch);
    if (card) card.update(launch);
    else if (card === undefined && ACTIVE.includes(launch.state)) {
      this.batches.set(launch.batch, null);
      this.lookAtBatch(launch.batch);
    }
  }

  async lookAtBatch(id) {
    try {
      this.showBatch(await ask("GET", `batches/${id}`));
    } catch (error) {
      // somebody else's class: its servers are in the list all the same
      if (error.temporary && !this.batches.get(id)) this.batches.delete(id);
    }
  }

  showBatch(batch) {
    let card = this.batches.get(batch.id);
    if (card) return card.look(batch);
    card = new BatchCard(batch);
    this.batches.set(batch.id, card);
    for (const { launch } of this.rows.values()) card.update(launch);
    this.batchRoot.prepend(card.element);
  }

  // -- many at once

  get selection() {
    return [...this.rows.values()].filter((row) => row.box?.checked && !row.box.hidden && !row.element.hidden);
  }

  selectAll(checked) {
    for (const row of this.rows.values()) if (row.box && !row.box.hidden && !row.element.hidden) row.box.checked = checked;
    this.selectionChanged();
  }

  selectionChanged() {
    if (!this.stopButton) return;
    const { length } = this.selection;
    this.stopButton.disabled = !length;
    this.stopButton.textContent = length ? `Stop ${many(length, "server")}` : "Stop selected";
  }

  async stopSelected() {
    const rows = this.selection;
    if (!(await confirmed(`Stop ${many(rows.length, "server")}? Unsaved work will be lost.`, "Stop them"))) return;
    const left = [...rows];
    let refused = 0;
    const work = async () => {
      for (let row = left.pop(); row; row = left.pop()) refused += !(await row.end());
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    announce(refused ? `${many(refused, "server")} could not be stopped.` : `${many(rows.length, "server")} will stop.`);
    this.all.checked = false;
    this.selectAll(false);
  }
}
