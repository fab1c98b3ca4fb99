// The form to start a job: what it offers is what the chosen system allows.

import { Keys, ask } from "./api.js";
import { announce, fill, h, login } from "./dom.js";
import { field, input, mark, select, wrong } from "./fields.js";
import { duration } from "./format.js";

const UNITS = { minutes: 60, hours: 3600, days: 86400 };
const GIB = 1024 ** 3;
const NAME = /^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/;
const PORT = /^([1-9][0-9]{0,4})(?::([1-9][0-9]{0,4}))?$/;

/** `{wanted: remote}` from "8888, 80:8080"; null if that is not what it is. */
function portsOf(text) {
  const found = text.split(/[\s,;]+/).filter(Boolean).map((part) => PORT.exec(part));
  if (!found.every((match) => match && match.slice(1).every((port) => !port || port <= 65535))) return null;
  return Object.fromEntries(found.map(([, wanted, remote]) => [wanted, Number(remote || wanted)]));
}

export class JobForm {
  /** `started(view)` is told of the user job that was made; `systems` are those with jobs. */
  constructor(root, systems, { started }) {
    Object.assign(this, { systems, started, keys: new Keys(), names: [], submitting: false });
    this.limited = h("div"); // what differs from system to system
    this.said = h("div", { class: "decision", role: "status", "aria-live": "polite" });
    this.button = h("button", { class: "btn btn-primary btn-lg", type: "submit" }, "Start the job");
    const system = select(systems.map(({ name }) => [name, name]));
    system.addEventListener("change", () => this.limit());
    const name = input({ value: "job", required: true, spellcheck: "false", autocapitalize: "off", maxlength: 63 });
    name.addEventListener("input", () => (this.named = true));
    const script = h("textarea", { class: "form-control script", rows: 7, required: true, spellcheck: "false", autocapitalize: "off", autocomplete: "off", wrap: "off" });
    script.value = "#!/bin/bash\n";
    this.form = h(
      "form",
      { novalidate: true, onsubmit: (event) => this.submit(event), oninput: () => this.touched() },
      field("hostname", "System", system, " "),
      field("service", "Name", name, "Small letters, digits and hyphens."),
      field("script", "Script", script, "Begins with #! and the program that reads it."),
      this.limited,
      this.said,
      this.button,
    );
    this.limit();
    fill(root, this.form);
  }

  get system() {
    return this.systems.find(({ name }) => name === this.value("hostname"));
  }

  /** Offer what the chosen system allows; what was filled in stays where it may. */
  limit() {
    const { account, allowed, forwards, max_ports: most } = this.system;
    const kept = new Map([...this.limited.querySelectorAll("[name]")].map(({ name, value }) => [name, value]));
    this.form.querySelector('[data-field="hostname"] .form-text').textContent = `You are ${account} there.`;
    const number = (name, label, attributes, hint) => field(name, label, input({ type: "number", inputmode: "decimal", ...attributes }), hint);
    const choice = (name, label, values) => field(name, label, select(values.map((value) => [value, value])));
    fill(
      this.limited,
      h(
        "div",
        { class: "resources" },
        choice("partition", "Partition", allowed.partitions),
        allowed.projects.length > 1 && choice("project", "Project", allowed.projects),
        allowed.nodes > 1 && number("nodes", "Nodes", { min: 1, max: allowed.nodes, placeholder: 1 }, `${allowed.nodes} at most`),
        number("cpus", "CPUs", { min: 1, max: allowed.cpus, placeholder: 1 }, `${allowed.cpus} at most`),
        allowed.memory && number("memory", "Memory", { min: 0.001, step: "any", max: allowed.memory / GIB }, `Gigabytes, ${+(allowed.memory / GIB).toFixed(3)} at most`),
        allowed.gpus > 0 && number("gpus", "GPUs", { min: 0, max: allowed.gpus, placeholder: 0 }, `${allowed.gpus} at most`),
      ),
      this.time(allowed.time),
      forwards && most > 0 && field("ports", "Ports", input({ placeholder: "8888", spellcheck: "false", inputmode: "text" }), `What it serves, for your servers to reach: 8888, or 80:8888 to have that at 80. ${most} at most, with commas between.`),
    );
    for (const [name, value] of kept) {
      const control = this.control(name);
      if (control && (!control.options || [...control.options].some((option) => option.value === value))) control.value = value;
    }
    this.check();
  }

  time(most) {
    const unit = select(Object.keys(UNITS).map((name) => [name, name]));
    unit.name = "unit";
    unit.setAttribute("aria-label", "Unit of the time");
    unit.value = most < 7200 ? "minutes" : "hours";
    const control = field("time", "Time", input({ type: "number", min: 0, step: "any", inputmode: "decimal" }), `${duration(most)} at most, and if nothing is said`);
    control.querySelector("input").after(unit);
    return control;
  }

  /** Offer a name that is not among these, unless a person has chosen one. */
  suggest(names) {
    this.names = names;
    if (this.named || this.submitting) return;
    const base = this.value("service").replace(/-[0-9]+$/, "") || "job";
    let name = base;
    for (let number = 2; names.includes(name); number++) name = `${base}-${number}`;
    this.control("service").value = name;
  }

  // -- what was filled in

  control(name) {
    return this.form.elements.namedItem(name);
  }

  value(name) {
    return this.control(name)?.value.trim() || "";
  }

  get seconds() {
    return Math.round(Number(this.value("time")) * UNITS[this.value("unit")]);
  }

  body() {
    const job = { script: this.control("script").value, partition: this.value("partition") };
    if (this.value("project")) job.project = this.value("project");
    for (const name of ["nodes", "cpus", "gpus"]) if (this.value(name)) job[name] = Number(this.value(name));
    if (this.value("memory")) job.memory = Math.round(Number(this.value("memory")) * GIB);
    if (this.value("time")) job.time = this.seconds;
    const ports = portsOf(this.value("ports"));
    return { service: this.value("service"), hostname: this.value("hostname"), ...(Object.keys(ports).length ? { ports } : {}), job };
  }

  touched() {
    this.say();
    this.check();
  }

  /** Mark the first thing that is wrong with what was filled in so far; whether there is one. */
  check() {
    const say = (name, good, text) => this.control(name)?.setCustomValidity(good ? "" : text);
    const { allowed } = this.system;
    say("service", NAME.test(this.value("service")), "Small letters, digits and hyphens, beginning with a letter.");
    say("script", this.value("script").startsWith("#!"), "It must begin with #!, for example #!/bin/bash.");
    say("time", this.seconds <= allowed.time, `${duration(allowed.time)} at most.`);
    say("ports", portsOf(this.value("ports")), "Numbers up to 65535, like 8888, or 80:8888.");
    const fault = wrong(this.form);
    mark(this.form, fault ? [fault] : []);
    return Boolean(fault);
  }

  // -- starting

  async submit(event) {
    event.preventDefault();
    if (this.submitting) return;
    const empty = [...this.form.elements].filter((control) => control.required && !control.value.trim());
    if (empty.length) mark(this.form, empty.map(({ name }) => ({ field: name, problem: "This is needed." })));
    if (empty.length || this.check()) return this.form.querySelector(".is-invalid").focus();
    this.submitting = this.button.disabled = true;
    try {
      const body = this.body();
      const view = await ask("POST", "api/userjobs/", { body, headers: { "Idempotency-Key": this.keys.of(body) } });
      this.keys.done();
      this.submitting = this.named = false;
      this.say();
      announce(`${view.service} was accepted.`);
      this.started(view);
      this.suggest(this.names.includes(view.service) ? this.names : [...this.names, view.service]);
    } catch (error) {
      this.refuse(error);
    }
    this.submitting = this.button.disabled = false;
  }

  say(...what) {
    fill(this.said, ...what);
  }

  refuse(error) {
    const problems = (error.details?.fields || []).map(({ field, problem }) => ({ field: field.replace(/^job\./, ""), problem }));
    mark(this.form, problems);
    const marked = problems.length && problems.every(({ field }) => this.control(field.split(".")[0]));
    const text = marked ? "It was not accepted; what is wrong is said at the field." : error.message;
    const again = error.temporary ? " Press Start again; it is not done twice." : "";
    this.say(h("div", { class: "alert alert-warning" }, h("p", {}, `${text}${again} `, error.loggedOut && login())));
    this.form.querySelector(".is-invalid")?.focus();
  }
}
