// One user job as it is shown: how it is, where what it serves is reached, what it printed, and its end.

import { ask } from "./api.js";
import { announce, confirmed, copy, fill, h, unique } from "./dom.js";
import { clock, duration, many, size } from "./format.js";

const LOOK = { SUBMITTING: "secondary", PENDING: "secondary", RUNNING: "info", COMPLETING: "info", COMPLETED: "success", CANCELLED: "secondary", UNKNOWN: "secondary", TIMEOUT: "warning", DEADLINE: "warning", PREEMPTED: "warning", SUSPENDED: "warning" };
const FAILED = ["BOOT_FAIL", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "NOT_SUBMITTED", "OUT_OF_MEMORY"];
// https://slurm.schedmd.com/job_reason_codes.html; others are shown as Slurm writes them
const REASONS = {
  BeginTime: "Its time has not come yet",
  Dependency: "Waits for another job to end",
  JobHeldAdmin: "Held by an administrator",
  JobHeldUser: "Held",
  Licenses: "Waits for a licence",
  NodeDown: "A node that it needs is down",
  NonZeroExitCode: "The script ended with an error",
  OutOfMemory: "It needed more memory than it had",
  PartitionDown: "Its partition is down",
  PartitionTimeLimit: "Its time limit is longer than its partition's",
  Priority: "Others are before it in the queue",
  ReqNodeNotAvail: "Nodes that it needs are not available now",
  Reservation: "Waits for its reservation",
  Resources: "Waits until there is room for it",
  TimeLimit: "Its time was over",
};
const TAIL = 8192; // bytes of the output

/** Whether a user job goes on: its job waits or runs, or it is a forward alone. */
export const goesOn = ({ job }) => !job?.ended;

/** What tells a user job from an earlier one of its name. */
export const keyOf = ({ service, created, job }) => `${service} ${created} ${job ? "job" : "forward"}`;

const word = (state) => state.toLowerCase().replaceAll("_", " ");

export class JobRow {
  /** `gone()` is told when it has been removed; without `prints`, its output can't be looked at. */
  constructor(view, { gone, prints }) {
    Object.assign(this, { gone, prints, ending: false });
    const id = unique("job");
    this.name = h("h3", { id });
    this.badge = h("span", { class: "badge" });
    this.about = h("p", { class: "about" });
    this.said = h("p", { class: "said" });
    this.addresses = h("ul", { class: "addresses", "aria-label": `Addresses of ${view.service}` });
    this.problem = h("div");
    this.actions = h("div", { class: "actions" });
    this.text = h("pre", { tabindex: 0, "aria-label": `Output of ${view.service}` });
    this.file = h("p", { class: "about" });
    const refresh = h("button", { class: "btn btn-sm btn-outline-contrast", type: "button", "aria-describedby": id, onclick: () => this.look() }, "Refresh");
    this.output = h("div", { id: unique("output"), class: "output", hidden: true }, this.text, h("div", { class: "foot" }, this.file, refresh));
    this.element = h("li", { class: "job" }, h("div", { class: "head" }, this.name, this.badge), this.about, this.said, this.addresses, this.problem, this.actions, this.output);
    this.update(view);
  }

  get active() {
    return goesOn(this.view);
  }

  // -- what happens

  update(view) {
    const before = this.view?.job?.state;
    this.view = view;
    const state = view.job?.state;
    if (before && before !== state) {
      this.ending = false;
      announce(`${view.service}: ${word(state)}`);
      if (!this.output.hidden) this.look();
    }
    this.show();
  }

  // -- what is shown

  show() {
    const { service, job, problem } = this.view;
    const state = this.ending ? "ending" : job ? word(job.state) : "forward";
    this.element.dataset.state = job?.state || "";
    this.element.classList.toggle("failed", FAILED.includes(job?.state));
    this.name.textContent = service;
    this.badge.className = `badge text-bg-${FAILED.includes(job?.state) ? "danger" : LOOK[job?.state] || "secondary"}`;
    this.badge.textContent = state;
    this.about.textContent = this.asked();
    this.showAddresses();
    if (this.problem.textContent !== problem) fill(this.problem, problem && h("div", { class: "alert alert-warning" }, h("p", {}, problem)));
    this.showActions();
    this.tick();
  }

  asked() {
    const { hostname, service, job, target_node: node } = this.view;
    if (!job) return `${hostname} · ${node}`;
    const each = [many(job.cpus, "CPU"), job.memory && size(job.memory), job.gpus > 0 && many(job.gpus, "GPU")].filter(Boolean).join(", ");
    const what = [job.name !== service && job.name, hostname, job.id && `job ${job.id}`, job.partition, job.project, job.nodes > 1 ? `${job.nodes} nodes of ${each}` : each, node && `on ${node}`];
    return what.filter(Boolean).join(" · ");
  }

  /** Show how it is, and for how long; called from time to time. */
  tick() {
    const text = this.view.job ? [this.outcome(), this.times()].filter(Boolean).join(". ") : `Since ${clock(this.view.created)}`;
    if (this.said.textContent !== text) this.said.textContent = text;
  }

  outcome() {
    const { reason, exit_code: code, signal } = this.view.job;
    if (signal) return `Ended by signal ${signal}${REASONS[reason] ? `: ${REASONS[reason]}` : ""}`;
    return [REASONS[reason] || reason.replace(/\.$/, ""), code !== null && `Exit code ${code}`].filter(Boolean).join(". ");
  }

  times() {
    const { started, ended, time } = this.view.job;
    const since = (from, to = Date.now()) => duration((to - new Date(from)) / 1000);
    if (ended) return `${started ? `Ran for ${since(started, new Date(ended))}, ended` : "Ended"} ${clock(ended)}`;
    if (!started) return `Waiting for ${since(this.view.created)}`;
    return `Runs for ${since(started)}, until ${clock(new Date(started).getTime() + time * 1000)} at most`;
  }

  showAddresses() {
    const { service, addresses, ports, forwarding, job, target_node: node } = this.view;
    const shape = JSON.stringify([addresses, forwarding, node, job?.state]);
    this.addresses.hidden = !Object.keys(addresses).length;
    if (shape === this.addressed) return; // a button that has the focus keeps it
    this.addressed = shape;
    const state = forwarding ? `forwarded to ${node}` : job && job.state !== "RUNNING" ? "forwarded when it runs" : "not forwarded now";
    const line = ([wanted, address]) => {
      const button = h("button", { class: "btn btn-sm btn-outline-contrast", type: "button", "aria-label": `Copy the address ${address} of ${service}`, onclick: () => copy(button, address, "The address") }, "Copy");
      return h("li", {}, h("code", {}, address), button, h("span", { class: "about" }, `port ${ports[wanted]}, ${state}`));
    };
    fill(this.addresses, Object.entries(addresses).map(line));
  }

  showActions() {
    const { job } = this.view;
    const shape = `${this.active} ${Boolean(job?.started)}`;
    if (shape === this.shape) return;
    this.shape = shape;
    const held = this.actions.contains(document.activeElement);
    const button = (text, look, action, more = {}) => h("button", { class: `btn btn-sm btn-${look}`, type: "button", onclick: action, "aria-describedby": this.name.id, ...more }, text);
    const end = job && this.active ? ["Cancel", "outline-danger"] : ["Remove", this.active ? "outline-danger" : "outline-contrast"];
    this.opener = button("Output", "outline-contrast", () => this.open(), { "aria-controls": this.output.id, "aria-expanded": String(!this.output.hidden) });
    fill(this.actions, this.prints && job?.started && this.opener, button(...end, () => this.end()));
    if (held) this.actions.firstElementChild.focus();
  }

  // -- what it printed

  open() {
    this.output.hidden = !this.output.hidden;
    this.opener.setAttribute("aria-expanded", String(!this.output.hidden));
    if (!this.output.hidden) this.look();
  }

  async look() {
    const look = (this.looking = Symbol("a look"));
    this.output.setAttribute("aria-busy", "true");
    let text;
    try {
      const { tail } = await ask("GET", `api/userjobs/${this.view.service}?tail=${TAIL}`);
      text = tail || (tail === null ? "There is no output yet, or its file can't be read." : "It has printed nothing.");
      const cut = tail && new TextEncoder().encode(tail).length >= TAIL;
      this.file.textContent = `${cut ? "The end of " : ""}${this.view.job.output}`;
    } catch (error) {
      text = error.message;
    }
    if (look !== this.looking) return; // another look began meanwhile
    this.output.removeAttribute("aria-busy");
    this.text.textContent = text;
    this.text.scrollTop = this.text.scrollHeight;
  }

  // -- its end

  async end() {
    const { service, hostname, job } = this.view;
    const cancels = job && this.active; // and stays listed, with what it has printed
    const question = job ? `Cancel ${service}? What it has written stays on ${hostname}.` : `End the forward ${service}?`;
    if (this.ending || (this.active && !(await confirmed(question, job ? "Cancel it" : "End it", "Keep it")))) return;
    this.ending = true;
    this.show();
    try {
      await ask("DELETE", `api/userjobs/${service}${cancels ? "?keep=true" : ""}`);
      if (cancels) return; // the stream tells how it ended
      announce(`${service} is removed.`);
      this.gone();
    } catch (error) {
      this.ending = false;
      this.show();
      if (error.status === 404) return this.gone();
      fill(this.problem, h("div", { class: "alert alert-danger", role: "alert" }, h("p", {}, error.message)));
    }
  }
}
