// Whether what is shown is still so: said where it is shown, while it is not sure.

import { announce, fill, h, login } from "./dom.js";

/** What `follow` tells of a stream's connection, said in an element: `what` goes on meanwhile, `again()` tries now. */
export function connectionIn(root, what, again) {
  let lost = false;
  return (state, error, delay) => {
    if (state === "open") {
      if (lost) announce("Connected again.");
      lost = false;
      fill(root);
    } else if (state === "ended") {
      fill(root, h("div", { class: "alert alert-warning" }, `${error.message} `, error.loggedOut && login()));
    } else {
      lost = true;
      const now = h("button", { class: "btn btn-sm btn-outline-contrast", type: "button", onclick: again }, "Try now");
      const why = navigator.onLine ? "The connection to the launcher is lost." : "This device is offline.";
      fill(root, h("div", { class: "alert alert-warning" }, `${why} ${what} go on; this page tries again in ${Math.ceil(delay / 1000)} s. `, now));
    }
  };
}
