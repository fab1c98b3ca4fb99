// What forms are made of: labelled controls, with room for what is wrong with them.

import { h, unique } from "./dom.js";

export const input = (attributes) => h("input", { class: "form-control", autocomplete: "off", ...attributes });
export const select = (options) => h("select", { class: "form-select" }, options.map(([value, text]) => h("option", { value }, text)));

/** A labelled control; what is wrong with it is shown by `mark`. */
export function field(name, label, control, hint) {
  const id = unique(name);
  const [about, problem] = [`${id}-hint`, `${id}-problem`];
  control.id = id;
  control.name = name;
  control.setAttribute("aria-describedby", hint ? `${about} ${problem}` : problem);
  return h(
    "div",
    { class: "mb-3", "data-field": name },
    h("label", { class: "form-label", for: id }, label),
    control,
    hint && h("div", { class: "form-text", id: about }, hint),
    h("div", { class: "problem", id: problem }),
  );
}

/** Show at each field of a form what is wrong with it: `problems` are those of the launcher's errors. */
export function mark(form, problems) {
  for (const element of form.querySelectorAll("[data-field]")) {
    const mine = problems.filter(({ field: path }) => path.split(".")[0] === element.dataset.field);
    const text = mine.map(({ problem }) => problem).join("; ");
    element.querySelector(".problem").textContent = text;
    for (const control of element.querySelectorAll("input, select, textarea")) {
      control.classList.toggle("is-invalid", Boolean(text));
      if (text) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
    }
    if (text) element.closest("details")?.setAttribute("open", "");
  }
}

/** The first control that the browser itself finds wrong, as a problem; null if there is none. */
export function wrong(form) {
  const control = [...form.elements].find((each) => each.willValidate && !each.validity.valid && each.value && !each.closest("[hidden]"));
  return control ? { field: control.name, problem: control.validationMessage } : null;
}
