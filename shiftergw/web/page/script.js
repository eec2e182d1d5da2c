// Keeps the page up to date: the queue by server-sent events, the results while the user types.
// Without it each page is complete, and a reload shows what is new.
"use strict";

const REFRESH_MILLISECONDS = 1500;
const TYPING_MILLISECONDS = 300;
const SILENT = "The gateway does not answer.";

const news = document.getElementById("news");

function tell(text) {
  if (news.textContent !== text) news.textContent = text;
}

// Show times in the time zone of the browser.
function localize(root) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const time = new Date(element.dateTime);
    const parts = { dateStyle: "medium" };
    if (element.dateTime.includes("T")) parts.timeStyle = "short";
    if (!Number.isNaN(time.getTime())) element.textContent = time.toLocaleString(undefined, parts);
  }
}

// Fetch a page, and put its elements with these ids into the places of the present ones.
async function renew(address, ids, signal) {
  const answer = await fetch(address, { credentials: "same-origin", redirect: "error", signal });
  if (!answer.ok) {
    tell(answer.status === 401 ? "The session has ended. Run shiftergw page again." : SILENT);
    return;
  }
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  localize(page);
  for (const id of ids) {
    const present = document.getElementById(id);
    const next = page.getElementById(id);
    if (present && next && present.outerHTML !== next.outerHTML) present.replaceWith(document.adoptNode(next));
  }
}

// The queue.

class Queue {
  constructor(section) {
    this.timer = null;
    this.source = new EventSource(section.dataset.events);
    this.source.addEventListener("work", (event) => this.work(JSON.parse(event.data)));
    this.source.addEventListener("end", (event) => this.end(JSON.parse(event.data)));
    this.source.addEventListener("gone", (event) => this.end(JSON.parse(event.data)));
    this.source.addEventListener("current", () => {
      document.documentElement.dataset.live = "yes";
      tell("");
      this.refresh();
    });
    this.source.addEventListener("error", () => this.fail());
    window.addEventListener("pagehide", () => this.source.close());
    window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  }

  row(key) {
    return document.querySelector(`#queue li[data-key="${CSS.escape(key)}"]`);
  }

  work(data) {
    const row = this.row(data.key);
    const words = JSON.parse(document.getElementById("queue").dataset.words);
    if (!row || data.status === "FAILURE" || !(data.status in words)) {
      const isHidden = !row && document.getElementById("queue").dataset.complete === "no";
      if (!isHidden || data.status === "FAILURE") this.refresh();
      return;
    }
    row.dataset.status = data.status;
    row.querySelector(".word").textContent = words[data.status];
    row.querySelector(".message").textContent = data.status_message || "";
    const bar = row.querySelector("progress");
    bar.hidden = ["INIT", "PENDING", "EXPIRING"].includes(data.status);
    if (data.total > 0) bar.value = data.done / data.total;
    else bar.removeAttribute("value");
  }

  end(data) {
    const row = this.row(data.key);
    if (row && data.status === "READY") tell(`${data.image} is ready.`);
    this.refresh();
  }

  refresh() {
    if (this.timer !== null) return;
    this.timer = setTimeout(async () => {
      this.timer = null;
      try {
        await renew(location.href, ["health", "queue", "failures"]);
      } catch {
        this.fail();
      }
    }, REFRESH_MILLISECONDS);
  }

  fail() {
    document.documentElement.dataset.live = "no";
    if (this.source.readyState === EventSource.CLOSED) {
      tell("This page is no longer live: reload it, or run shiftergw page again.");
    }
  }
}

// The search.

class Search {
  constructor(form) {
    this.form = form;
    this.timer = null;
    this.request = new AbortController();
    form.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.run(), TYPING_MILLISECONDS);
    });
  }

  async run() {
    this.request.abort(); // an answer to fewer letters must not replace a later one
    this.request = new AbortController();
    const address = `${this.form.getAttribute("action")}?${new URLSearchParams(new FormData(this.form))}`;
    try {
      await renew(address, ["results"], this.request.signal);
      history.replaceState(null, "", address);
      tell(document.querySelector("#results .summary").textContent);
    } catch (error) {
      if (error.name !== "AbortError") tell(SILENT);
    }
  }
}

// The page of operators.

async function follow(section) {
  const ids = Array.from(document.querySelectorAll("main section[id]"), (part) => part.id);
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 1000 * Number(section.dataset.refresh)));
    if (document.hidden) continue;
    try {
      await renew(location.href, ids);
    } catch {
      tell(SILENT);
    }
  }
}

localize(document);
const site = document.querySelector("[data-refresh]");
if (site) follow(site);
const section = document.querySelector("[data-events]:not([data-events=''])");
if (section) new Queue(section);
const form = document.querySelector("form.search");
if (form) new Search(form);
