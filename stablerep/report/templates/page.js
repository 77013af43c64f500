"use strict";
// The toggle of the scheme, and open tables on paper. The page reads the same without either.
const root = document.documentElement;
const toggle = document.querySelector("#scheme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.scheme ?? (system.matches ? "dark" : "light")) === "dark";
const show = () => toggle.setAttribute("aria-pressed", String(isDark()));
toggle.addEventListener("click", () => {
  root.dataset.scheme = isDark() ? "light" : "dark";
  show();
});
system.addEventListener("change", show);
toggle.hidden = false;
show();

let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const each of closed) each.open = true;
});
addEventListener("afterprint", () => {
  for (const each of closed) each.open = false;
});
