"use strict";
(() => {
  const EVERY_MS = 5000;
  const PATIENCE_MS = 4000;
  const lost = document.getElementById("lost");

  const selected = () => {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed;
  };

  const show = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("live");
    const live = document.getElementById("live");
    if (!fresh || !live) throw new Error("no page");
    for (const details of live.querySelectorAll("details[open]")) {
      const same = fresh.querySelector("#" + CSS.escape(details.id));
      if (same) same.open = true;
    }
    const focused = document.activeElement && document.activeElement.id;
    live.replaceWith(document.adoptNode(fresh));
    if (focused) {
      const again = document.getElementById(focused);
      if (again) again.focus({ preventScroll: true });
    }
    document.title = fresh.dataset.title;
  };

  const refresh = async () => {
    if (document.hidden || selected()) return;
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), PATIENCE_MS);
    try {
      const answer = await fetch("/status?html", { cache: "no-store", signal: abort.signal });
      if (!answer.ok) throw new Error(String(answer.status));
      show(await answer.text());
      document.body.classList.remove("stale");
      lost.hidden = true;
    } catch {
      if (lost.hidden) {
        lost.textContent = "No answer from walhouse since "
          + new Date().toLocaleTimeString() + ". What is shown is older.";
        lost.hidden = false;
      }
      document.body.classList.add("stale");
    } finally {
      clearTimeout(timer);
    }
  };

  setInterval(refresh, EVERY_MS);
  document.addEventListener("visibilitychange", refresh);
})();
