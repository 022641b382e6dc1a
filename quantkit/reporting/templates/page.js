"use strict";
// Sorts, filters and chooses columns of the tables that stand on this page. Nothing is fetched.
document.documentElement.classList.remove("no-script");

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v;
}

function compare(a, b, numeric) {
  if (numeric) return Number(a) - Number(b);
  return a.localeCompare(b, "en", { numeric: true });
}

function sort(header) {
  const table = header.closest("table");
  const body = table.tBodies[0];
  const column = header.cellIndex;
  const numeric = header.classList.contains("n");
  const rising = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) {
    if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  }
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const rows = [...body.rows];
  // What was not measured stands last in either direction.
  rows.sort((one, two) => {
    const a = valueOf(one, column);
    const b = valueOf(two, column);
    if (a === "" || b === "") return (a === "") - (b === "");
    return rising ? compare(a, b, numeric) : compare(b, a, numeric);
  });
  body.append(...rows);
}

function filter(tools) {
  const text = tools.querySelector("input[type=search]").value.trim().toLowerCase();
  const choice = tools.querySelector("select")?.value ?? "";
  const items = document.querySelectorAll(`#${tools.dataset.of} [data-name]`);
  let shown = 0;
  for (const item of items) {
    const named = item.dataset.name.toLowerCase().includes(text);
    const chosen = choice === "" || item.dataset.tags.split(" ").includes(choice);
    item.hidden = !(named && chosen);
    shown += item.hidden ? 0 : 1;
  }
  tools.querySelector("output").textContent = `${shown} of ${items.length}`;
}

function showColumn(table, key, shown) {
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex((head) => head.dataset.key === key);
  for (const row of table.rows) row.cells[column].hidden = !shown;
}

for (const header of document.querySelectorAll("th[aria-sort]")) {
  header.querySelector("button").addEventListener("click", () => sort(header));
}
for (const tools of document.querySelectorAll(".tools[data-of]")) {
  for (const input of tools.querySelectorAll("input, select")) {
    input.addEventListener("input", () => filter(tools));
  }
  filter(tools);
}
for (const box of document.querySelectorAll("input[data-column]")) {
  const table = document.getElementById(box.dataset.table);
  const apply = () => showColumn(table, box.dataset.column, box.checked);
  box.addEventListener("change", apply);
  apply();
}
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
