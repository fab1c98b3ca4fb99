// More time for servers: how long, and what the launcher says to it.

import { ask } from "./api.js";
import { h, unique } from "./dom.js";

const UNITS = { minutes: 60, hours: 3600, days: 86400 };
const NEVER = "until stopped";

/** Ask for how long; seconds, null for "until stopped", undefined if nothing is to be changed. */
export function howLong(title) {
  return new Promise((resolve) => {
    let answer;
    const [heading, amount] = [unique("extend"), unique("amount")];
    const number = h("input", { class: "form-control", id: amount, type: "number", min: 0, step: "any", value: 1, required: true, inputmode: "decimal" });
    const unit = h("select", { class: "form-select", "aria-label": "Unit of the time" }, [...Object.keys(UNITS), NEVER].map((name) => h("option", { value: name, selected: name === "hours" }, name)));
    const never = () => unit.value === NEVER;
    unit.addEventListener("change", () => (number.hidden = number.disabled = never()));
    const take = () => (answer = never() ? null : Number(number.value) * UNITS[unit.value]);
    const closed = () => {
      dialog.remove();
      resolve(answer);
    };
    const dialog = h(
      "dialog",
      { "aria-labelledby": heading, onclose: closed },
      h(
        "form",
        { method: "dialog", onsubmit: take },
        h("p", { id: heading }, title),
        h("label", { class: "form-label", for: amount }, "Time from now on"),
        h("div", { class: "time mb-3" }, number, unit),
        h("button", { class: "btn btn-primary", type: "submit" }, "Extend"),
        " ",
        h("button", { class: "btn btn-outline-contrast", type: "button", onclick: () => dialog.close() }, "Leave it"),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
    number.select();
  });
}

/** Ask for how long, and the launcher for it; its answer, or null if nothing is to be changed. */
export async function extend(path, title) {
  const lifetime = await howLong(title);
  return lifetime === undefined ? null : ask("PATCH", path, { body: { lifetime } });
}
