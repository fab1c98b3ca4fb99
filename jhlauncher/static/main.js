// The page: a form on one side, what runs on the other, and the same for jobs; and launch links, which lead to a server.

import { ask, others, page } from "./api.js";
import { announce } from "./dom.js";
import { LaunchForm, THERE } from "./form.js";
import { showJobs } from "./jobs.js";
import { title } from "./launch.js";
import { LaunchList } from "./list.js";

const at = (id) => document.getElementById(id);
const linked = location.pathname === `${page.base}launch`;
const link = new URLSearchParams(linked ? location.search : "");
let awaited = null; // the launch to whose server this page goes when it is ready

/** Where a link leads in a server, below the server's own address. */
function destination(url) {
  const server = new URL(url, location.href);
  const path = (link.get("path") || "").replace(/^\/+/, "");
  const there = new URL(server.href.replace(/\/?$/, "/") + path);
  return there.href.startsWith(server.href.replace(/\/?$/, "/")) ? there.href : server.href;
}

function goWhenReady(launch) {
  if (launch.id !== awaited) return;
  if (launch.state === "ready" && launch.url) location.replace(destination(launch.url));
  else if (launch.ended) awaited = null;
}

const list = new LaunchList({
  list: at("list"),
  batches: at("batches"),
  filters: at("filters"),
  connection: at("connection"),
  changed(launch) {
    goWhenReady(launch);
    if (launch.username === form.user) form.checkIn(1000); // what may be started has changed with it
  },
  async again(launch) {
    if (others) await form.load(launch.username);
    form.refill({ template: launch.template || "", image: launch.template ? "" : launch.image, server_name: launch.server_name });
    form.changed(0);
    at("start-title").scrollIntoView();
    form.form.querySelector("input, select, button")?.focus();
  },
});

const form = new LaunchForm(at("form"), {
  link,
  started(launch) {
    if (linked) awaited = launch.id;
    if (launch.username !== page.user) list.look(true);
    if (!list.rows.has(launch.id)) list.put(launch); // else the stream was quicker, and knows more
    list.reveal(launch.id);
    goWhenReady(list.rows.get(launch.id).launch);
  },
  startedMany(batch) {
    list.look(true);
    list.showBatch(batch);
  },
});

/** Start what the link names without asking again, if the policy lets links do so, and they say nothing else. */
async function startLinked() {
  const template = link.get("template");
  const more = [...link.keys()].filter((name) => !["template", "path"].includes(name));
  if (more.length || !form.options?.start_links.includes(template)) return;
  const plan = await form.preview(form.user);
  if (plan.decision !== "refuse") return form.submit();
  const { reason, details } = plan.error;
  if (!THERE.includes(reason)) return;
  const launch = await ask("GET", `launches/${details.launch}`);
  if (launch.template !== template) return; // another one is in the way, and the form says so
  awaited = launch.id;
  announce(`${title(launch, page.user)} is there already.`);
  goWhenReady(launch);
}

list.restart();
if ("systems" in page)
  showJobs({ root: at("jobs"), link: at("to-jobs"), form: at("job-form"), list: at("job-list"), connection: at("job-connection") });
await form.load();
if (linked) await startLinked().catch(() => {}); // the form, which is there to be pressed, says what is wrong
