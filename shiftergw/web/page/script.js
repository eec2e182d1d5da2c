// Keeps the pages up to date by server-sent events, and the results while the user types.
// Without it each page is complete, and a reload shows what is new.
"use strict";

const REFRESH_MILLISECONDS = 1500;
const TYPING_MILLISECONDS = 300;
const RECONNECT_MILLISECONDS = 10000;
const SILENCE_MILLISECONDS = 6000;
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

// Put an element into the place of the present one with its id; keep the focus and the scrolling.
function replace(next) {
  const present = document.getElementById(next.id);
  if (!present || present.outerHTML === next.outerHTML) return;
  const tables = (part) => Array.from(part.querySelectorAll(".wide"));
  const present_tables = tables(present);
  const focus = present_tables.indexOf(document.activeElement);
  const offsets = present_tables.map((table) => table.scrollLeft);
  present.replaceWith(document.adoptNode(next));
  tables(next).forEach((table, index) => {
    table.scrollLeft = offsets[index] || 0;
    if (index === focus) table.focus({ preventScroll: true });
  });
}

function parse(html) {
  const page = new DOMParser().parseFromString(html, "text/html");
  localize(page);
  return page;
}

// Fetch a page, and replace the elements with these ids.
async function renew(address, ids, signal) {
  const answer = await fetch(address, { credentials: "same-origin", redirect: "error", signal });
  if (!answer.ok) {
    tell(answer.status === 401 ? "The session has ended. Run shiftergw page again." : SILENT);
    return null;
  }
  const page = parse(await answer.text());
  for (const id of ids) {
    const next = page.getElementById(id);
    if (next) replace(next);
  }
  return page;
}

function setBar(bar, done, total) {
  if (total > 0) bar.value = Math.min(done / total, 1);
  else bar.removeAttribute("value");
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
    setBar(bar, data.done, data.total);
    this.layers(row.querySelector(".layers"), data.layers_in_flight || []);
  }

  // Show the layers that are being downloaded; a bar that stays moves on.
  layers(list, layers) {
    const present = new Map(Array.from(list.children, (item) => [item.dataset.digest, item]));
    list.replaceChildren(...layers.map((layer) => {
      let item = present.get(layer.digest);
      if (!item) {
        item = document.createElement("li");
        item.dataset.digest = layer.digest;
        const name = document.createElement("code");
        name.textContent = layer.digest;
        const bar = document.createElement("progress");
        bar.setAttribute("aria-label", `Layer ${layer.digest}`);
        item.append(name, bar);
      }
      setBar(item.querySelector("progress"), layer.done, layer.total);
      return item;
    }));
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

class Site {
  constructor(element) {
    this.address = element.dataset.stream;
    this.timer = null;
    this.silence = null; // each stream ends after some minutes, and another one follows at once
    this.open();
    document.addEventListener("visibilitychange", () => (document.hidden ? this.close() : this.open()));
    window.addEventListener("pagehide", () => this.close());
  }

  open() {
    if (this.source) return;
    this.source = new EventSource(this.address);
    this.source.addEventListener("part", (event) => {
      const data = JSON.parse(event.data);
      const part = parse(data.html).getElementById(data.part);
      if (part) replace(part);
    });
    this.source.addEventListener("version", (event) => {
      this.address = `events?since=${event.lastEventId}`;
      this.show("yes", "");
    });
    this.source.addEventListener("trouble", (event) => this.show("no", JSON.parse(event.data).text));
    this.source.addEventListener("error", () => {
      document.documentElement.dataset.live = "no";
      if (this.source.readyState === EventSource.CLOSED) this.retry();
      else this.silence = this.silence || setTimeout(() => tell(SILENT), SILENCE_MILLISECONDS);
    });
  }

  close() {
    clearTimeout(this.timer);
    clearTimeout(this.silence);
    this.silence = null;
    if (this.source) this.source.close();
    this.source = null;
  }

  // The browser gives up after a refusal: too many viewers, or a gateway that has just started.
  retry() {
    this.close();
    this.timer = setTimeout(async () => {
      const ids = Array.from(document.querySelectorAll("main section[id]"), (part) => part.id);
      try {
        const page = await renew(location.href, ids);
        if (page) {
          this.address = page.getElementById("live").dataset.stream;
          tell("");
        }
      } catch {
        tell(SILENT);
      }
      if (!document.hidden) this.open();
    }, RECONNECT_MILLISECONDS * (0.75 + Math.random() / 2));
  }

  show(live, text) {
    clearTimeout(this.silence);
    this.silence = null;
    document.documentElement.dataset.live = live;
    tell(text);
  }
}

localize(document);
const live = document.querySelector("[data-stream]");
if (live) new Site(live);
const section = document.querySelector("[data-events]:not([data-events=''])");
if (section) new Queue(section);
const form = document.querySelector("form.search");
if (form) new Search(form);
