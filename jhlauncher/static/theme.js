// Dark or light, as on the Hub's own pages, with which this one shares the choice.
const KEY = "jupyterhub-bs-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

function apply() {
  let chosen = null;
  try {
    chosen = localStorage.getItem(KEY);
  } catch {
    // storage is forbidden here: the system's choice holds
  }
  document.documentElement.dataset.bsTheme = chosen || (dark.matches ? "dark" : "light");
}

apply();
dark.addEventListener("change", apply);
addEventListener("DOMContentLoaded", () => {
  document.getElementById("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.bsTheme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // it holds for this page, then
    }
    document.documentElement.dataset.bsTheme = theme;
  });
});
