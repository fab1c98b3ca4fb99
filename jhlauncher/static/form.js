// The form to start a server: made from `options`, so that it offers what this person may ask, and checked with a dry run
// while it is filled in, so that it says why something would be refused.

import { Keys, ask, groups, others, page } from "./api.js";
import { announce, fill, h, login, unique } from "./dom.js";
import { field, input, mark, select, wrong } from "./fields.js";
import { duration, many, size } from "./format.js";

const DELAY = 350; // milliseconds without a change before the launcher is asked
const OWN_IMAGE = "";
export const THERE = ["server_running", "server_starting"]; // reasons: nothing is wrong but that it has been started already
const LIFETIME_UNITS = { minutes: 60, hours: 3600, days: 86400 };

/** Whom a limit is for: "ada", "group course-1", "all together". */
function whose(key) {
  const [kind, name] = [key.split(":")[0], key.slice(key.indexOf(":") + 1)];
  return { user: name, group: `group ${name}` }[kind] || "all together";
}

export class LaunchForm {
  /**
   * `started(launch)` and `startedMany(batch)` are told what the launcher has accepted; `link` has what a launch link
   * asks for, as URLSearchParams.
   */
  constructor(root, { started, startedMany, link = new URLSearchParams() }) {
    Object.assign(this, { root, started, startedMany, link });
    const touched = () => {
      this.unknown = "";
      this.changed();
    };
    this.fields = h("div"); // alone made anew: a button that moves under a mouse that is being pressed is not clicked
    this.decision = h("div", { class: "decision", role: "status", "aria-live": "polite" });
    this.button = h("button", { class: "btn btn-primary btn-lg", type: "submit" }, "Start");
    this.form = h("form", { novalidate: true, onsubmit: (event) => this.submit(event), oninput: touched }, this.fields, this.decision, this.button);
    this.timer = null;
    this.keys = new Keys();
    this.unknown = ""; // what a link asks for, and is not offered
  }

  /** Ask what may be started, for whom it is now, and show the form. */
  async load(user = this.link.get("username") || page.user, group = "") {
    this.asking?.abort();
    this.asking = new AbortController();
    this.root.setAttribute("aria-busy", "true");
    const server = this.link.get("server_name") || "";
    const query = new URLSearchParams({ ...(group ? { group } : { username: user }), ...(server ? { server_name: server } : {}) });
    try {
      this.options = await ask("GET", `options?${query}`, { signal: this.asking.signal });
      this.members = this.options.members || [];
      this.show(this.options.username);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.showRefusal(error, user, group);
    }
    this.root.removeAttribute("aria-busy");
  }

  showRefusal(error, user, group) {
    const again = error.loggedOut ? login() : h("button", { class: "btn btn-outline-contrast", type: "button", onclick: () => this.load(user, group) }, "Try again");
    const said = h("div", { class: "alert alert-warning", role: "alert" }, h("p", {}, error.message), again);
    if (this.form.isConnected) {
      this.say(said); // who else it might be for is still to be said
      this.button.disabled = true;
    } else fill(this.root, said);
  }

  // -- what is offered

  show(user) {
    this.user = user;
    const { request, templates, limits } = this.options;
    const properties = request.properties;
    const nothing = !Object.keys(templates).length && "not" in properties.image;
    const kept = this.form.isConnected ? this.values() : null;
    const rows = [...this.form.querySelectorAll(".row-of")];
    const focused = this.form.contains(document.activeElement) ? document.activeElement.name : "";
    const offer = JSON.stringify([request, templates]);
    if (offer === this.offer && this.form.isConnected) {
      this.showLimits(limits);
      return this.changed(0);
    }
    this.offer = offer;
    this.limits = h("ul", { class: "limits", "aria-label": "Limits" });
    this.showLimits(limits);
    fill(
      this.fields,
      others && this.whom(user),
      nothing
        ? h("p", { class: "empty" }, "There is nothing that may be started here. An administrator's policy decides that.")
        : [this.what(properties, templates), this.resources(properties), this.more(properties), this.limits],
    );
    this.button.hidden = nothing;
    if (!this.form.isConnected) fill(this.root, this.form);
    for (const row of rows) this.form.querySelector(`[data-field="${row.dataset.of}"] .rows`)?.append(row);
    if (kept) this.refill(kept);
    else this.refill(Object.fromEntries(this.link));
    if (focused) this.focus(focused);
    this.nothing = nothing;
    this.changed(0);
  }

  whom(user) {
    const one = input({ value: user, required: true });
    one.addEventListener("change", () => this.load(one.value.trim() || page.user));
    const names = h("textarea", { class: "form-control", rows: "4", placeholder: "ada\ngrace\nalan" });
    const anybody = "everybody" in page;
    const group = anybody ? input({ spellcheck: "false" }) : select([["", "no group"], ...groups.map((name) => [name, name])]);
    this.class = h("input", { type: "checkbox", class: "form-check-input", name: "class", id: unique("class") });
    const stagger = input({ type: "number", min: 0, max: 600, step: "any", inputmode: "decimal" });
    for (const control of [group, names]) control.addEventListener("change", () => this.loadForAll());
    this.class.addEventListener("change", () => (this.names().length ? this.loadForAll() : this.changed(0)));
    return [
      h("div", { class: "form-check mb-2" }, this.class, h("label", { class: "form-check-label", for: this.class.id }, "For a class")),
      field("username", "Whose server", one),
      (anybody || groups.length > 0) && field("group", "Everybody in the group", group),
      field("names", "For these people", names, "One name a line; each gets the same."),
      field("stagger", "Seconds between two starts", stagger, "Empty: all at once."),
    ];
  }

  /** Ask what may be started for those who are named now. */
  loadForAll() {
    if (!this.forClass) return this.load(this.value("username") || page.user);
    return this.load(this.typed()[0] || page.user, this.value("group"));
  }

  what(properties, templates) {
    const names = Object.keys(templates);
    const own = !("not" in properties.image);
    const cards = names.map((name) => this.card(name, name, this.about(templates[name])));
    if (names.length && own) cards.push(this.card(OWN_IMAGE, "An image of my choice", ""));
    return [
      names.length > 0 && h("fieldset", { class: "mb-3", "data-field": "template" }, h("legend", {}, "What"), cards, h("div", { class: "problem" })),
      own && this.image(properties.image),
    ];
  }

  about(template) {
    const parts = [template.description, template.image];
    if (template.cpu?.limit) parts.push(many(template.cpu.limit, "core"));
    if (template.memory?.limit) parts.push(`${size(template.memory.limit)} of memory`);
    if (template.gpu?.limit) parts.push(many(template.gpu.limit, "GPU"));
    if (template.lifetime) parts.push(`stops after ${duration(template.lifetime)}`);
    return parts.filter(Boolean).join(" · ");
  }

  card(value, title, text) {
    const id = unique("template");
    return h(
      "div",
      { class: "form-check choice" },
      h("input", { class: "form-check-input", type: "radio", name: "template", id, value }),
      h("label", { class: "form-check-label", for: id }, h("strong", {}, title), " ", text && h("span", { class: "about" }, text)),
    );
  }

  image(schema) {
    if (schema.enum) return field("image", "Image", select(schema.enum.map((name) => [name, name])));
    const list = h("datalist", { id: unique("images") }, schema.examples.filter((name) => !/[*?[]/.test(name)).map((value) => h("option", { value })));
    const control = input({ list: list.id, spellcheck: "false" });
    const allowed = new RegExp(schema.pattern, "s");
    control.addEventListener("input", () => {
      const good = !control.value || allowed.test(control.value);
      control.setCustomValidity(good ? "" : `Allowed: ${schema.examples.join(", ")}`);
    });
    return [field("image", "Image", control, `Allowed: ${schema.examples.join(", ")}`), list];
  }

  resources({ cpu, memory, gpu }) {
    const most = (schema) => schema["x-maximum"];
    const number = (name, label, schema, step, unit, factor = 1) => {
      if (most(schema) === 0) return null;
      const max = most(schema) === null ? null : most(schema) / factor;
      const hint = max === null ? unit : `${unit}, ${+max.toFixed(3)} at most`;
      return field(name, label, input({ type: "number", min: step, step: "any", max, inputmode: "decimal" }), hint);
    };
    const fields = [
      number("cpu", "CPU", cpu, 0.1, "Cores"),
      number("memory", "Memory", memory, 0.1, "Gigabytes", 1024 ** 3),
      number("gpu", "GPU", gpu, 1, "Devices"),
    ].filter(Boolean);
    return fields.length > 0 && h("div", { class: "resources" }, fields);
  }

  more({ vols, env, lifetime, server_name }) {
    const most = lifetime.maximum;
    const unit = select(Object.keys(LIFETIME_UNITS).map((name) => [name, name]));
    unit.name = "lifetime_unit";
    unit.setAttribute("aria-label", "Unit of the time");
    unit.value = most && most < 7200 ? "minutes" : "hours";
    const time = field("lifetime", "Stop after", input({ type: "number", min: 0, step: "any", inputmode: "decimal" }), most ? `${duration(most)} at most` : "Empty: runs until stopped");
    time.querySelector("input").after(unit);
    const name = input({ maxlength: 30, pattern: "[a-z][a-z0-9]*(-[a-z0-9]+)*", placeholder: "the default server", spellcheck: "false" });
    return h(
      "details",
      { class: "mb-3" },
      h("summary", {}, "More"),
      server_name && field("server_name", "Server name", name, "For a second server beside the default one: lower-case letters, digits, hyphens."),
      time,
      vols.maxItems !== 0 && this.rows("vols", "Volumes", "Add a volume", vols.description, () => this.volume()),
      !("not" in env.propertyNames) && this.rows("env", "Environment variables", "Add a variable", this.names_of(env.propertyNames), () => this.variable()),
    );
  }

  names_of({ enum: names, examples }) {
    return `Allowed: ${(names || examples).join(", ")}`;
  }

  rows(name, title, add, hint, row) {
    const list = h("div", { class: "rows" });
    const append = () => list.append(row());
    return h(
      "fieldset",
      { class: "mb-3", "data-field": name },
      h("legend", {}, title),
      h("div", { class: "form-text" }, hint),
      list,
      h("button", { class: "btn btn-sm btn-outline-contrast", type: "button", onclick: append }, add),
      h("div", { class: "problem" }),
    );
  }

  row(kind, what, ...controls) {
    const row = h("div", { class: `row-of ${kind}`, "data-of": kind }, controls);
    const remove = () => {
      row.remove();
      this.changed();
    };
    row.append(h("button", { class: "btn btn-sm btn-outline-contrast", type: "button", "aria-label": `Remove this ${what}`, onclick: remove }, "✕"));
    return row;
  }

  volume() {
    const id = unique("ro");
    return this.row(
      "vols",
      "volume",
      input({ name: "pvc", "aria-label": "Volume", placeholder: "volume" }),
      input({ name: "mount", "aria-label": "Where it appears", placeholder: "/home/jovyan/data" }),
      h("span", { class: "form-check" }, h("input", { class: "form-check-input", type: "checkbox", name: "read_only", id }), h("label", { for: id, class: "form-check-label" }, "read-only")),
    );
  }

  variable() {
    return this.row("env", "variable", input({ name: "key", "aria-label": "Variable", placeholder: "NAME" }), input({ name: "value", "aria-label": "Value", placeholder: "value" }));
  }

  showLimits(limits) {
    this.limits.hidden = !limits.length;
    const shown = (limit, amount) => (limit.resource === "memory" ? size(amount) : +amount.toFixed(2));
    fill(
      this.limits,
      limits.map((limit) =>
        h(
          "li",
          {},
          h("span", {}, `${whose(limit.key)}: ${shown(limit, limit.used)} of ${shown(limit, limit.most)} ${limit.resource} in use`),
          h("meter", { min: 0, max: limit.most || 1, value: limit.used, "aria-label": `${limit.resource} of ${whose(limit.key)}` }),
        ),
      ),
    );
  }

  // -- what was filled in

  control(name) {
    return this.form.elements.namedItem(name);
  }

  focus(name) {
    const control = this.control(name);
    const one = control instanceof RadioNodeList ? [...control].find((radio) => radio.checked) : control;
    one?.focus();
  }

  value(name) {
    const control = this.control(name);
    return control ? control.value.trim() : "";
  }

  /** Who is named one by one. */
  typed() {
    return [...new Set(this.value("names").split(/[\n,;]/).map((name) => name.trim()).filter(Boolean))];
  }

  /** All who are meant: members of the group, too. */
  names() {
    return [...new Set([...this.typed(), ...(this.value("group") ? this.members : [])])];
  }

  get forClass() {
    return Boolean(this.class?.checked);
  }

  values() {
    const names = ["template", "image", "server_name", "cpu", "memory", "gpu", "lifetime", "lifetime_unit", "group", "names", "stagger"];
    return { ...Object.fromEntries(names.map((name) => [name, this.value(name)])), class: this.forClass ? "1" : "" };
  }

  /** Fill in what a link, or the form before it was made anew, has. */
  refill(values) {
    const { template } = values;
    const radios = [...this.form.querySelectorAll('input[name="template"]')];
    const chosen = radios.find((radio) => radio.value === (template ?? (values.image ? OWN_IMAGE : radios[0]?.value)));
    const image = this.control("image");
    const missing = values.image && image?.options && ![...image.options].some(({ value }) => value === values.image);
    if (template && !chosen) this.unknown = `There is no template ${template} for you.`;
    else if (missing) this.unknown = `The image ${values.image} is not allowed.`;
    const radio = chosen || radios[0];
    if (radio) radio.checked = true;
    for (const [name, value] of Object.entries(values)) {
      const control = this.control(name);
      if (name === "template" || name === "username" || !control || (name === "image" && !value)) continue;
      if (name === "class") control.checked = Boolean(value);
      else if (name === "memory" && /[a-z]/i.test(value)) control.value = parseFloat(value) * ({ m: 1 / 1024, k: 1 / 1024 ** 2, t: 1024 }[value.replace(/[\d.]/g, "")[0].toLowerCase()] || 1);
      else if (name === "lifetime" && !("lifetime_unit" in values)) [control.value, this.control("lifetime_unit").value] = [value / 60, "minutes"];
      else control.value = value;
    }
    const more = ["server_name", "lifetime"].some((name) => this.value(name)) || this.form.querySelector(".row-of");
    if (more) this.form.querySelector("details")?.setAttribute("open", "");
  }

  /** The body of the request; without the user's name, which a class has many of. */
  body() {
    const body = {};
    const template = this.value("template");
    if (template) body.template = template;
    else if (this.value("image")) body.image = this.value("image");
    if (this.value("server_name")) body.server_name = this.value("server_name");
    if (this.value("cpu")) body.cpu = { limit: Number(this.value("cpu")) };
    if (this.value("memory")) body.memory = { limit: Math.round(Number(this.value("memory")) * 1024 ** 3) };
    if (this.value("gpu")) body.gpu = { limit: Number(this.value("gpu")) };
    if (this.value("lifetime")) body.lifetime = Number(this.value("lifetime")) * LIFETIME_UNITS[this.value("lifetime_unit")];
    const rows = (kind) => [...this.form.querySelectorAll(`.row-of.${kind}`)].map((row) => Object.fromEntries([...row.querySelectorAll("input")].map((each) => [each.name, each.type === "checkbox" ? each.checked : each.value.trim()])));
    const vols = rows("vols").filter((row) => row.pvc || row.mount);
    if (vols.length) body.vols = vols;
    const env = rows("env").filter((row) => row.key);
    if (env.length) body.env = Object.fromEntries(env.map((row) => [row.key, row.value]));
    return body;
  }

  // -- what would become of it

  changed(delay = DELAY) {
    if (!this.options) return;
    this.arrange();
    this.checkIn(delay);
  }

  /** Find out what would become of it now, unless more changes before. */
  checkIn(delay) {
    if (!this.options || this.submitting) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.check(), delay);
  }

  /** Show what belongs to what was chosen. */
  arrange() {
    const shown = (name, whether) => {
      const element = this.form.querySelector(`[data-field="${name}"]`);
      if (element) element.hidden = !whether;
    };
    shown("username", !this.forClass);
    for (const name of ["group", "names", "stagger"]) shown(name, this.forClass);
    shown("image", !this.value("template"));
    if (!this.nothing) this.button.textContent = this.forClass ? `Start ${many(this.names().length, "server")}` : "Start";
  }

  async check() {
    if (this.nothing) return;
    this.checking?.abort();
    this.checking = new AbortController();
    const username = this.forClass ? this.names()[0] : this.value("username") || page.user;
    mark(this.form, []);
    const fault = wrong(this.form);
    if (fault) return this.refuse({ message: fault.problem, details: { fields: [fault] } });
    if (!username) return this.ready(groups.length || "everybody" in page ? "Choose a group, or name the people, one a line." : "Name the people, one a line.", false);
    if (!this.value("template") && !this.value("image")) return this.ready("Choose what to start.", false);
    try {
      const plan = await this.preview(username, this.checking.signal);
      this.showLimits(plan.limits);
      const { error } = plan;
      if (this.forClass && THERE.includes(error?.reason)) this.ready(`${error.error} The others can be started.`, true);
      else if (error) this.refuse({ message: error.error, reason: error.reason, details: error.details });
      else this.ready(this.outlook(plan), true);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.temporary) this.ready(error.message, true);
      else this.refuse(error);
    }
  }

  /** What would become of it now. */
  preview(username, signal) {
    return ask("POST", "launches?dry_run=true", { body: { username, ...this.body() }, signal });
  }

  outlook(plan) {
    const whom = this.forClass ? "Each server" : "It";
    const start = plan.decision === "start" ? `${whom} starts at once` : `${whom} waits for its turn at position ${plan.position}`;
    const estimate = plan.decision === "queue" && plan.estimate ? `, about ${duration(plan.estimate)}` : "";
    const end = plan.lifetime ? `, and is stopped ${duration(plan.lifetime)} after it is ready` : "";
    return `${start}${estimate}${end}.`;
  }

  say(...what) {
    fill(this.decision, ...what);
  }

  ready(text, possible) {
    this.button.disabled = !possible || Boolean(this.unknown); // until something else is chosen
    if (this.decision.textContent === text) return; // a screen reader would say it again
    this.say(this.unknown && h("p", { class: "problem" }, this.unknown), h("p", {}, text));
  }

  /** Say why it is, or would be, refused. */
  refuse(error) {
    const there = THERE.includes(error.reason);
    const launch = error.reason === "server_running" && error.details.launch;
    this.button.disabled = true;
    mark(this.form, error.details?.fields || []);
    this.say(
      h(
        "div",
        { class: `alert alert-${there ? "info" : "warning"}` },
        h("p", {}, error.message),
        error.loggedOut && [" ", login()],
        launch && h("a", { class: "btn btn-sm btn-primary", href: "#", onclick: (event) => this.goTo(event, launch) }, "Open it"),
        there && h("p", { class: "mt-2 mb-0" }, "Or give this one a name of its own, under “More”."),
      ),
    );
  }

  async goTo(event, id) {
    event.preventDefault();
    const launch = await ask("GET", `launches/${id}`);
    if (launch.url) location.assign(launch.url);
  }

  // -- starting

  async submit(event) {
    event?.preventDefault();
    if (this.submitting || this.button.disabled) return;
    this.submitting = true;
    this.button.disabled = true;
    clearTimeout(this.timer);
    this.checking?.abort();
    try {
      await this.send();
      this.say();
      this.submitting = false;
      this.checkIn(1500); // what would become of another one
    } catch (error) {
      this.submitting = false;
      if (error.temporary) {
        this.say(h("div", { class: "alert alert-danger", role: "alert" }, `${error.message} Press Start again; it is not done twice.`));
        this.button.disabled = false;
      } else this.refuse(error);
    }
  }

  async send() {
    const one = { username: this.value("username") || page.user, ...this.body() };
    const body = this.forClass ? this.classBody() : one;
    const headers = { "Idempotency-Key": this.keys.of(body) };
    if (this.forClass) this.startedMany(await ask("POST", "batches", { body, headers }));
    else this.started(await ask("POST", "launches", { body, headers }));
    this.keys.done();
    announce(this.forClass ? `${many(this.names().length, "server")} asked for.` : "The launch was accepted.");
  }

  classBody() {
    const [group, users, stagger] = [this.value("group"), this.typed(), Number(this.value("stagger"))];
    return { ...(group ? { group } : {}), ...(users.length ? { users } : {}), ...(stagger ? { stagger } : {}), launch: this.body() };
  }
}
