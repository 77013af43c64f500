"use strict";
// The toggle of the scheme. Without it the page goes by the system's.
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
