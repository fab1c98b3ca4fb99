// One launch as it is shown: state, progress, what to do with it, and why it failed.

import { ask } from "./api.js";
import { announce, confirmed, copy, fill, h, unique } from "./dom.js";
import { extend } from "./extend.js";
import { clock, duration } from "./format.js";

export const WAITING = ["queued", "starting"];
export const ACTIVE = [...WAITING, "ready"];
export const LOOK = { queued: "secondary", starting: "info", ready: "success", failed: "danger", cancelled: "secondary", stopped: "secondary", expired: "warning" };
const HINT = { stopped: "It ran, and has been stopped.", cancelled: "It was ended before it was ready.", expired: "Its time was over." };

/** "ada" for the default server, "ada / analysis" for a named one; without the user where that is clear. */
export function title(launch, user) {
  const server = launch.server_name || "Default server";
  return launch.username === user ? server : `${launch.username}${launch.server_name ? ` / ${launch.server_name}` : ""}`;
}

/** When its start was put off to, while that is still to come; "" else. */
export function putOff(launch) {
  const { not_before: time } = launch;
  return launch.state === "queued" && time && new Date(time) > Date.now() ? `Starts at ${clock(time)}` : "";
}

export class LaunchRow {
  /** `selected()` is told when the checkbox has been used; without it there is none. */
  constructor(launch, { user, selected, again }) {
    Object.assign(this, { user, again, events: new Map(), progress: null, message: "", position: null });
    const id = unique("launch");
    this.box = selected && h("input", { type: "checkbox", class: "form-check-input", onchange: selected, "aria-labelledby": id });
    this.name = h("h3", { id });
    this.badge = h("span", { class: "badge" });
    this.about = h("p", { class: "about" });
    this.bar = h("div", { class: "progress", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-labelledby": id }, h("div", { class: "progress-bar" }));
    this.said = h("p", { class: "said" });
    this.actions = h("div", { class: "actions" });
    this.failure = h("div");
    this.log = h("ol", { class: "events" });
    this.details = h("details", { ontoggle: () => this.details.open && this.history() }, h("summary", {}, "Events"), this.log);
    this.element = h("li", { class: "launch", "data-id": launch.id }, h("div", { class: "head" }, this.box, this.name, this.badge), this.about, this.bar, this.said, this.actions, this.failure, this.details);
    this.update(launch);
    if (this.active && launch.state !== "ready" && launch.username === user) this.history();
  }

  get active() {
    return ACTIVE.includes(this.launch.state);
  }

  // -- what happens

  update(launch) {
    const before = this.launch?.state;
    this.launch = launch;
    if (launch.state !== "queued") this.position = null;
    else if (launch.position) Object.assign(this, { position: launch.position, estimate: launch.estimate });
    if (before !== launch.state) {
      if (launch.state === "starting") this.progress = 0;
      if (before === "starting" && launch.state === "ready") this.arrive();
      if (launch.state !== "queued") this.message = "";
      if (before) announce(`${title(launch, this.user)}: ${launch.state}`);
      this.fails();
    }
    this.show();
  }

  /** Have the bar seen at its end. */
  arrive() {
    Object.assign(this, { progress: 100, arrived: true });
    setTimeout(() => {
      this.arrived = false;
      this.show();
    }, 1500);
  }

  /** An event of the stream; the launch itself comes with `update`. */
  tell(name, data) {
    if (name === "progress") this.progress = Math.max(this.progress || 0, data.progress);
    if (name === "queued" && data.position) Object.assign(this, { position: data.position, estimate: data.estimate });
    if (name === "warning" && data.reason) this.trouble = data.message;
    if (data.number) this.add({ id: data.number, event: name, data });
    this.message = data.message || this.message;
    this.show();
  }

  /** What happened before this page was there. */
  async history() {
    if (this.asked) return;
    this.asked = true;
    try {
      const { items } = await ask("GET", `launches/${this.launch.id}/events`);
      items.forEach((item) => this.add(item));
      const last = items.findLast(({ event }) => event === "progress");
      if (last && this.launch.state === "starting") this.progress = Math.max(this.progress || 0, last.data.progress);
      if (last && this.active && this.launch.state !== "ready") this.message ||= last.data.message;
      this.show();
    } catch {
      this.asked = false; // opening it again asks again
    }
  }

  /** Keep an event, which may be known already, in its place. */
  add({ id, event, data }) {
    if (this.events.has(id)) return;
    const text = data.message || data.error || event;
    this.events.set(id, h("li", {}, h("time", { datetime: data.time }, new Date(data.time).toLocaleTimeString()), " ", text));
    const after = [...this.events.keys()].filter((other) => other > id);
    this.log.insertBefore(this.events.get(id), after.length ? this.events.get(Math.min(...after)) : null);
  }

  // -- what is shown

  show() {
    const { launch } = this;
    this.element.dataset.state = launch.state;
    this.name.textContent = title(launch, this.user);
    this.badge.className = `badge text-bg-${LOOK[launch.state]}`;
    this.badge.textContent = launch.ended_by && this.active ? "stopping" : launch.state;
    const what = launch.template ? `${launch.template} (${launch.image})` : launch.image;
    this.about.textContent = `${what} · asked for ${clock(launch.created)}${launch.ended ? `, ended ${clock(launch.ended)}` : ""}`;
    this.showBar();
    this.showSaid();
    this.showActions();
    this.tick();
  }

  showBar() {
    const waits = WAITING.includes(this.launch.state);
    this.bar.hidden = !waits && !this.arrived;
    if (this.bar.hidden) return;
    const [bar] = this.bar.children;
    const known = this.launch.state !== "queued" && this.progress !== null;
    bar.style.width = known ? `${Math.max(3, this.progress)}%` : "100%";
    bar.classList.toggle("progress-bar-striped", !known);
    bar.classList.toggle("waits", !known);
    bar.textContent = known ? `${this.progress} %` : "";
    if (known) this.bar.setAttribute("aria-valuenow", this.progress);
    else this.bar.removeAttribute("aria-valuenow");
    this.bar.setAttribute("aria-valuetext", known ? `${this.progress} %` : this.waiting());
  }

  waiting() {
    if (putOff(this.launch)) return putOff(this.launch);
    if (this.message && !this.position && !this.launch.not_before) return this.message;
    const estimate = this.estimate ? `, about ${duration(this.estimate)}` : "";
    return this.position ? `Waiting at position ${this.position}${estimate}` : "Waiting for its turn";
  }

  showSaid() {
    const { state } = this.launch;
    this.said.textContent = state === "queued" ? this.waiting() : state === "starting" ? this.message : HINT[state] || "";
    this.said.hidden = !this.said.textContent && state !== "ready";
  }

  showActions() {
    const { launch } = this;
    const shape = `${launch.state} ${launch.url} ${launch.ended_by} ${Boolean(launch.expires)}`;
    if (shape === this.shape) return; // a button that has the focus keeps it
    this.shape = shape;
    const button = (text, look, action) => h("button", { class: `btn btn-sm btn-${look}`, type: "button", onclick: action, "aria-describedby": this.name.id }, text);
    const stop = launch.state === "ready" ? "Stop" : "Cancel";
    const held = this.actions.contains(document.activeElement);
    fill(
      this.actions,
      launch.url && h("a", { class: "btn btn-sm btn-primary", href: launch.url, target: "_blank", rel: "noopener", "aria-describedby": this.name.id }, "Open"),
      launch.url && button("Copy link", "outline-contrast", ({ target }) => copy(target, launch.url, "The link")),
      launch.expires && !launch.ended_by && button("Extend", "outline-contrast", () => this.extend()),
      this.active && !launch.ended_by && button(stop, "outline-danger", () => this.stop()),
      !this.active && this.again && button("Use these settings again", "outline-contrast", () => this.again(launch)),
    );
    if (held) (this.actions.firstElementChild || this.element).focus();
  }

  /** Show how long it still has; called from time to time. */
  tick() {
    const { launch } = this;
    if (launch.state === "queued" && launch.not_before) this.showSaid();
    if (launch.state !== "ready") return;
    const until = launch.expires ? `Stops by itself in ${duration((new Date(launch.expires) - Date.now()) / 1000)}` : `Ready since ${clock(launch.ready)}`;
    this.said.textContent = this.trouble ? `${until}. ${this.trouble}` : until;
  }

  fails() {
    const { error } = this.launch;
    if (!error) return fill(this.failure);
    const { log, events, exit_code: code } = error.details || {};
    const block = (name, lines) => lines?.length > 0 && h("details", { open: true }, h("summary", {}, name), h("pre", { tabindex: 0, "aria-label": `${name} of ${title(this.launch, this.user)}` }, lines.join("\n")));
    fill(
      this.failure,
      h("div", { class: "alert alert-danger" }, h("p", {}, error.error), h("p", { class: "reason" }, "Reason: ", h("code", {}, error.reason), code !== undefined && code !== null && ` · exit code ${code}`)),
      block("Log", typeof log === "string" ? log.split("\n") : log),
      block("What the engine said", events),
    );
  }

  // -- what is done

  async extend() {
    try {
      const launch = await extend(`launches/${this.launch.id}`, `More time for ${title(this.launch, this.user)}`);
      if (launch) this.update(launch);
    } catch (error) {
      this.complain(error);
    }
  }

  complain(error) {
    this.said.hidden = false;
    this.said.textContent = error.message;
    announce(error.message);
  }

  async stop() {
    if (this.launch.state === "ready" && !(await confirmed(`Stop ${title(this.launch, this.user)}? Unsaved work will be lost.`, "Stop it"))) return;
    await this.end();
  }

  /** Ask for its end; whether that was accepted. */
  async end() {
    try {
      const launch = await ask("DELETE", `launches/${this.launch.id}`);
      if (launch && this.active) this.update(launch);
      return true;
    } catch (error) {
      this.complain(error);
      return false;
    }
  }
}
