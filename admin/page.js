// Keeps the page current: the server sends the parts of the page that have changed, as
// HTML, and this puts them in place. Without it the page is loaded again now and then.
"use strict";

const body = document.body;
const lost = document.getElementById("lost");
const say = document.getElementById("say");
let mark = body.dataset.mark; // of the last event
let heard = Date.now(); // when it came
let stream = null;
let ahead = body.dataset.now - Date.now(); // the server's clock
let again = 0; // the timer of the next attempt

// put makes the element with the same id equal to the one in html.
function put(html) {
  const next = new DOMParser().parseFromString(html, "text/html").body.firstElementChild;
  const now = next && document.getElementById(next.id);
  if (!now) return;
  become(now, next);
  ages(now);
}

// age formats a time span as the server does.
function age(seconds) {
  const n = (unit) => Math.floor(seconds / unit);
  if (seconds < 1) return "0 s";
  if (seconds < 60) return n(1) + " s";
  if (seconds < 3600) return n(60) + " min";
  if (seconds < 48 * 3600) return n(3600) + " h " + (n(60) % 60) + " min";
  return n(86400) + " d " + (n(3600) % 24) + " h";
}

// ages brings the ages in a part of the page up to date. The server sends a part only when
// something else in it has changed.
function ages(part) {
  for (const e of part.querySelectorAll("[data-since]")) {
    text(e, age((Date.now() + ahead - e.dataset.since) / 1000));
  }
}

// become changes the node a until it equals b. It replaces nothing that is alike, so
// that focus, selection and scrolling stay, and leaves to the reader what is open.
function become(a, b) {
  if (a.nodeType !== Node.ELEMENT_NODE) {
    if (a.data !== b.data) a.data = b.data;
    return;
  }
  if (b.open && b.dataset.level === "bad" && a.dataset.level !== "bad") a.open = true;
  for (const { name, value } of b.attributes) {
    if (name !== "open" && a.getAttribute(name) !== value) a.setAttribute(name, value);
  }
  for (const { name } of [...a.attributes]) {
    if (name !== "open" && !b.hasAttribute(name)) a.removeAttribute(name);
  }
  let at = a.firstChild;
  for (const child of [...b.childNodes]) {
    const same = child.id && at?.id !== child.id ? [...a.children].find((c) => c.id === child.id) : at;
    if (!same || same.nodeName !== child.nodeName || (same.id || "") !== (child.id || "")) {
      a.insertBefore(child, at);
      continue;
    }
    if (same === at) at = at.nextSibling;
    else a.insertBefore(same, at);
    become(same, child);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

function text(e, now) {
  if (e && e.textContent !== now) e.textContent = now;
}

function write(where, now) {
  text(document.querySelector(where), now);
}

function connect() {
  clearTimeout(again);
  stream?.close();
  stream = new EventSource("stream?since=" + encodeURIComponent(mark));
  stream.addEventListener("html", (e) => put(e.data));
  stream.addEventListener("tick", (e) => {
    const now = JSON.parse(e.data);
    if (now.shape !== body.dataset.shape) return location.reload(); // other relays, or another process
    mark = e.lastEventId;
    heard = Date.now();
    ahead = now.now - heard;
    contact();
    write("#top .clock b", now.clock);
    write("#top .clock span", now.up);
    now.relays.forEach(([live, waiting, ...took], i) => {
      write("#relay-" + i + " > summary > .live > b", live);
      write("#relay-" + i + " > summary > .waiting > b", waiting);
      const checks = document.querySelectorAll("#relay-" + i + " .took");
      if (checks.length === took.length) checks.forEach((e, k) => text(e, took[k]));
    });
    if (document.title !== now.title) document.title = now.title;
    text(say, now.say);
    const icon = document.querySelector("link[rel=icon]");
    const href = "icon.svg?level=" + now.level;
    if (icon.getAttribute("href") !== href) icon.setAttribute("href", href);
  });
  stream.onerror = () => {
    // The browser tries again by itself, but not after an answer such as "too many".
    if (stream.readyState === EventSource.CLOSED) again = setTimeout(connect, 3000);
  };
}

// contact says whether what is shown is current.
function contact() {
  const old = Date.now() - heard;
  const silent = old > 5000 && !document.hidden;
  body.classList.toggle("stale", silent);
  lost.hidden = !silent;
  // A screen reader says the sentence once, and not each second for how long.
  if (silent) lost.querySelector("span").textContent = " for " + Math.round(old / 1000) + " s";
}

// Nobody looks at a hidden page: it costs nothing then.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(again);
    stream.close();
  } else {
    heard = Date.now();
    connect();
  }
});
addEventListener("beforeunload", () => stream.close());

// show opens the part of the page that the address names.
function show() {
  const at = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = at?.matches("details") ? at : at?.querySelector("details");
  if (fold) fold.open = true;
}
addEventListener("hashchange", show);
show();

// The clipboard is there over HTTPS and on this machine only; otherwise the link opens
// the text.
const copy = document.getElementById("copy");
copy.addEventListener("click", async (e) => {
  if (!navigator.clipboard) return;
  e.preventDefault();
  try {
    const answer = await fetch(copy.href);
    await navigator.clipboard.writeText(await answer.text());
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy as text"), 2000);
  } catch {
    location.href = copy.href;
  }
});

setInterval(() => {
  contact();
  if (!document.hidden) ages(document);
}, 1000);
connect();
