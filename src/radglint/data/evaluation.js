"use strict";
// A click on a head sorts its column: numbers from high to low first, then the other way; empty cells stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  for (const button of table.querySelectorAll("button.sort")) {
    const head = button.closest("th");
    button.addEventListener("click", () => {
      const column = Number(button.dataset.column);
      const text = button.dataset.kind === "text";
      const first = text ? "ascending" : "descending";
      const next = head.getAttribute("aria-sort") === first ? (text ? "descending" : "ascending") : first;
      const sign = next === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].dataset.value ?? "";
      const rows = [...body.rows].filter((row) => !row.classList.contains("mean"));
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (text ? x.localeCompare(y) : Number(x) - Number(y));
      });
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", next);
      body.prepend(...rows);
    });
  }
}
