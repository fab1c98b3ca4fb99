// Elements without a framework.

/** An element; attributes whose names begin with "on" are listeners, those that are false or null are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined)
      element.setAttribute(name, value === true ? "" : value);
  }
  fill(element, ...children);
  return element;
}

/** Fill an element anew; children that are false or null are left out. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
}

let names = 0;

/** An id that nothing else on the page has. */
export const unique = (prefix) => `${prefix}-${++names}`;

/** Say something to who can't see it. */
export function announce(text) {
  document.getElementById("announce").textContent = text;
}

/** The way back in, for who is logged out: asking for the page leads to the Hub's login. */
export const login = () => h("a", { class: "btn btn-sm btn-primary", href: location.href }, "Log in again");

/** Copy a text, for a button that says so then; or show the text in its place, for the person to copy it. */
export async function copy(button, text, what) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    announce(`${what} is copied.`);
  } catch {
    // not allowed, or no secure context
    const box = h("input", { class: "form-control", readonly: true, value: text, "aria-label": what });
    button.replaceWith(box);
    box.select();
  }
}

/** The answer to a question that has two. */
export function confirmed(text, yes, no = "Keep it running") {
  return new Promise((resolve) => {
    const close = (value) => () => dialog.close(value);
    const closed = () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    };
    const dialog = h(
      "dialog",
      { "aria-label": text, onclose: closed },
      h("p", {}, text),
      h("button", { class: "btn btn-danger", type: "button", onclick: close("yes") }, yes),
      " ",
      h("button", { class: "btn btn-outline-contrast", type: "button", onclick: close("no") }, no),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}
