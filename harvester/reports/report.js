"use strict";
// Sorting and filtering of the tables. Without it the report shows all the same, in the order of the busiest.
const amount = (text) => parseFloat(text.replace(/,/g, ""));
const compared = (a, b, isNumber) => {
  if (!isNumber) return a.replace(/,/g, "").localeCompare(b.replace(/,/g, ""), "en", { numeric: true });
  const [x, y] = [amount(a), amount(b)];
  return (isNaN(x) ? -1 : x) - (isNaN(y) ? -1 : y);
};
const sort = (table, head, place) => {
  const descending = head.getAttribute("aria-sort") !== "descending" && (head.classList.contains("n") || head.hasAttribute("aria-sort"));
  const lines = [...table.tBodies[0].rows];
  const isNumber = head.classList.contains("n");
  lines.sort((a, b) => compared(a.cells[place].textContent, b.cells[place].textContent, isNumber) * (descending ? -1 : 1));
  table.tBodies[0].append(...lines);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
};
const addFilter = (box, table) => {
  const label = document.createElement("label"), input = document.createElement("input"), status = document.createElement("span");
  label.className = "filter";
  input.type = "search";
  status.setAttribute("role", "status");
  label.append("Show lines with ", input, " ", status);
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    let shown = 0;
    for (const line of table.tBodies[0].rows) {
      const text = line.textContent.toLowerCase();
      line.hidden = !text.includes(wanted) && !text.replace(/,/g, "").includes(wanted);
      shown += !line.hidden;
    }
    table.classList.toggle("filtered", wanted !== "");
    status.textContent = wanted ? `${shown.toLocaleString("en")} of ${table.tBodies[0].rows.length.toLocaleString("en")} lines` : "";
  });
  box.before(label);
};
for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(table, head, place));
    head.replaceChildren(button);
  });
  if (table.tBodies[0].rows.length > 10) addFilter(table.parentElement, table);
}
