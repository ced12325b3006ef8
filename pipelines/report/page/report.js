"use strict";
// Strategies on and off: everywhere at once, by the buttons and by the legends in the figures.
const off = new Set();
const belongs = (name) => [...document.querySelectorAll(`[data-s]`)].filter((one) => one.dataset.s === name);
function show(name, shown) {
  shown ? off.delete(name) : off.add(name);
  for (const one of belongs(name)) {
    if (one.tagName === "BUTTON") one.setAttribute("aria-pressed", String(shown));
    else one.classList.toggle("off", !shown);
  }
}
document.addEventListener("click", (event) => {
  const key = event.target.closest("#legend [data-s], svg .key");
  if (key) show(key.dataset.s, off.has(key.dataset.s));
  else if (event.target.id === "all") for (const name of [...off]) show(name, true);
});

// Tables: sorted by a click on a column, filtered by a word, and given as CSV with all digits.
const text = (cell) => cell.querySelector(".sign") ? cell.textContent.replace(cell.querySelector(".sign").textContent, "").trim() : cell.textContent.trim();
const leading = (cell) => "v" in cell.dataset ? Number(cell.dataset.v) : parseFloat(text(cell).replaceAll(",", ""));
function order(a, b) {
  const [x, y] = [leading(a), leading(b)];
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
  return Number.isNaN(x) ? text(a).localeCompare(text(b), undefined, { numeric: true }) : x - y;
}
const quoted = (value) => /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
const csv = (table) => [...table.rows].map((row) => [...row.cells].map((cell) => quoted(cell.dataset.v ?? text(cell))).join(",")).join("\n") + "\n";

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const cells = [...body.rows].map((row) => row.cells[column]);
    if (cells.some((cell) => "v" in cell.dataset)) for (const cell of [head, ...cells]) cell.classList.add("number");
    for (const cell of cells) if (cell.textContent.length > 60) cell.classList.add("long");
    if (head.textContent.length > 22) head.classList.add("wordy");
    if (body.rows.length < 2) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => order(a.cells[column], b.cells[column]) * (down ? -1 : 1));
      body.append(...rows);
    });
  });
  const bar = table.closest(".card").querySelector(".bar");
  if (body.rows.length > 5) {
    const filter = document.createElement("input");
    filter.type = "search";
    filter.placeholder = "filter rows";
    filter.setAttribute("aria-label", `Filter rows: ${table.caption.textContent}`);
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/);
      for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    });
    bar.append(filter);
  }
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "CSV";
  button.setAttribute("aria-label", `CSV: ${table.caption.textContent}`);
  button.setAttribute("aria-expanded", "false");
  bar.append(button);
  // Not as a download: the frame in which MLflow shows this page allows none.
  button.addEventListener("click", () => {
    const before = bar.nextElementSibling;
    const shown = before.tagName === "TEXTAREA";
    button.setAttribute("aria-expanded", String(!shown));
    if (shown) return before.remove();
    const area = document.createElement("textarea");
    area.readOnly = true;
    area.setAttribute("aria-label", `CSV: ${table.caption.textContent}`);
    area.value = csv(table);
    bar.after(area);
    area.select();
  });
}
