// A stream of server-sent events that goes on where it was when the connection comes back.
//
// Not EventSource, which can't send the XSRF token, nor say why it was refused.

import { open } from "./api.js";

const SILENCE = 45_000; // the launcher gives a sign of life every 15 seconds
const LONGEST_DELAY = 15_000;
const HIDDEN = 20_000; // browsers have six connections to a host, and tabs that nobody sees must not hold them

/**
 * Follow a stream until `close`.
 *
 * `tell(name, data)` gets each event; `state(what, error, delay)` is told "open", and "lost" with the milliseconds until
 * the next try, or "ended" if trying again does not help.
 */
export function follow(path, tell, state) {
  let last = "";
  let failures = 0;
  let closed = false;
  let connection = null;
  let wake = null;
  let hiding = null;
  let paused = false;

  function told(name, data) {
    try {
      tell(name, JSON.parse(data));
    } catch (error) {
      reportError(error); // a fault of the page's is no reason to connect again
    }
  }

  async function read() {
    connection = new AbortController();
    let watchdog = setTimeout(() => connection.abort(), SILENCE);
    try {
      const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
      const response = await open("GET", path, { headers, signal: connection.signal });
      if (closed) return;
      failures = 0;
      state("open");
      let pending = "";
      let event = { name: "message", data: [] };
      const decoder = new TextDecoder();
      for (const reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(watchdog);
        watchdog = setTimeout(() => connection.abort(), SILENCE);
        const lines = (pending + decoder.decode(value, { stream: true })).split("\n");
        pending = lines.pop();
        for (const line of lines) {
          const [, field, content] = /^([^:]*)(?:: ?(.*))?$/.exec(line) || [];
          if (line === "") {
            if (event.data.length && !closed) told(event.name, event.data.join("\n"));
            event = { name: "message", data: [] };
          } else if (field === "data") event.data.push(content || "");
          else if (field === "event") event.name = content;
          else if (field === "id") last = content;
        }
      }
    } finally {
      clearTimeout(watchdog);
    }
  }

  async function run() {
    while (!closed) {
      if (paused) await new Promise((resolve) => (wake = resolve));
      let problem = null;
      try {
        await read();
      } catch (error) {
        if (closed) return;
        problem = error;
        if (error.status >= 400 && !error.temporary) return state("ended", error);
      }
      if (closed) return;
      if (paused) continue;
      const delay = Math.min(LONGEST_DELAY, 500 * 2 ** failures++) * (0.75 + Math.random() / 2);
      state("lost", problem, delay);
      await new Promise((resolve) => {
        wake = resolve;
        setTimeout(resolve, delay);
      });
    }
  }

  const again = () => wake && wake();
  const gone = () => connection && connection.abort();
  const seen = () => {
    clearTimeout(hiding);
    const pause = () => {
      paused = true;
      gone();
    };
    if (document.hidden) hiding = setTimeout(pause, HIDDEN);
    else if (paused) {
      paused = false;
      again();
    }
  };
  document.addEventListener("visibilitychange", seen);
  addEventListener("online", again);
  addEventListener("offline", gone);
  run();
  return {
    /** Try now. */
    again,
    close() {
      closed = true;
      clearTimeout(hiding);
      paused = false;
      document.removeEventListener("visibilitychange", seen);
      removeEventListener("online", again);
      removeEventListener("offline", gone);
      if (connection) connection.abort();
      again();
    },
  };
}
