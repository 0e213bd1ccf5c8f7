// Tabs of frameworks: the one a reader chooses stays. It goes into the address (page.html?framework=jax), so that
// it can be sent and survives a reload, and into links, because files have no common storage in Firefox.
// sphinx-design makes tabs of radio buttons, which the keyboard knows; here they, and the theme's two sidebars, get
// the names that a screen reader says.
"use strict";

const choice = () =>
  document.querySelector(".sd-tab-set > input:checked + [data-sync-group=framework]")?.dataset.syncId
  ?? new URLSearchParams(location.search).get("framework");

document.addEventListener("change", event => {
  if (!event.target.matches(".sd-tab-set > input")) return;
  const { syncGroup, syncId } = event.target.nextElementSibling.dataset;
  if (syncGroup !== "framework") return;
  const url = new URL(location.href);
  url.searchParams.set("framework", syncId);
  history.replaceState(null, "", url);
});

document.addEventListener("click", event => {
  const link = event.target.closest?.("a[href]"), framework = choice();
  if (!link || !framework || link.protocol !== location.protocol || link.host !== location.host) return;
  const url = new URL(link.href);
  if (url.pathname === location.pathname || !url.pathname.endsWith(".html")) return;
  url.searchParams.set("framework", framework);
  link.href = url.href;
}, true);

document.addEventListener("DOMContentLoaded", () => {
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
  for (const set of document.querySelectorAll(".sd-tab-set")) {
    const ofFrameworks = set.querySelector(":scope > [data-sync-group=framework]");
    set.setAttribute("role", "radiogroup");
    set.setAttribute("aria-label", ofFrameworks ? "Framework" : "Choice");
    for (const panel of set.querySelectorAll(":scope > .sd-tab-content")) {
      panel.setAttribute("role", "group");
      panel.setAttribute("aria-label", panel.previousElementSibling.textContent.trim());
    }
  }
});
