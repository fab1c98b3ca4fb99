// Requests to the launcher, as this browser's user, and its errors.

export const page = document.body.dataset;

/** The groups whose members' servers this person may start. */
export const groups = JSON.parse(page.groups);

/** Whether this person may start other people's servers. */
export const others = "everybody" in page || groups.length > 0 || JSON.parse(page.users).length > 1;

/** What the launcher, or the way to it, says instead of an answer. */
export class ApiError extends Error {
  constructor(body, status) {
    super(body.error);
    this.reason = body.reason;
    this.details = body.details || {};
    this.status = status;
  }

  /** Whether the same request may work later. */
  get temporary() {
    return this.status === 0 || this.status === 503;
  }

  /** Whether only a new login helps. */
  get loggedOut() {
    return this.status === 401 || this.reason === "xsrf_failed";
  }
}

function xsrf() {
  const found = /(?:^|;\s*)_xsrf=([^;]*)/.exec(document.cookie);
  return found ? decodeURIComponent(found[1]) : "";
}

/** The answer to a request, whatever its status. */
export async function open(method, path, { body, headers = {}, signal } = {}) {
  const address = new URL(path, new URL(page.base, location.origin));
  const options = { method, signal, headers: { "X-XSRFToken": xsrf(), ...headers }, credentials: "same-origin" };
  if (body !== undefined) options.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ error: "The launcher can't be reached.", reason: "offline" }, 0);
  }
  if (response.ok) return response;
  let said;
  try {
    said = await response.json();
    if (typeof said.error !== "string") throw new TypeError();
  } catch {
    // not the launcher's own answer: the proxy's, while the service restarts
    const status = response.status >= 500 ? 503 : response.status;
    throw new ApiError({ error: `The launcher does not answer (${response.status}).`, reason: "unavailable" }, status);
  }
  const error = new ApiError(said, response.status);
  if (error.loggedOut) error.message = "You are logged out."; // what it says is for programs
  throw error;
}

/** The JSON of an answer; null if it is empty. */
export async function ask(method, path, options = {}) {
  const response = await open(method, path, { ...options, headers: { Accept: "application/json", ...options.headers } });
  try {
    const text = await response.text();
    return text ? JSON.parse(text) : null;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ error: "The launcher's answer was lost on the way.", reason: "offline" }, 0);
  }
}

/** All items of a list, page by page. */
export async function* pages(path) {
  for (let cursor = null; ; ) {
    const answer = await ask("GET", cursor ? `${path}&cursor=${cursor}` : path);
    yield answer.items;
    cursor = answer.next;
    if (!cursor) return;
  }
}

/** Keys of requests: the same for the same body until it is `done`, so that a second try is the same request. */
export class Keys {
  of(body) {
    const content = JSON.stringify(body);
    if (this.sent?.content !== content) {
      const bytes = [...crypto.getRandomValues(new Uint8Array(16))]; // randomUUID is for secure contexts only
      this.sent = { content, key: bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("") };
    }
    return this.sent.key;
  }

  /** It is known what became of the request. */
  done() {
    this.sent = null;
  }
}
