// Tables that a reader sorts by a click on a head, and searches. The rows are in the page already.
"use strict";

(() => {
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  const content = (cell, isNumber) => {
    if (!isNumber) return cell.textContent;
    return "value" in cell.dataset ? Number(cell.dataset.value) : NaN;
  };

  const compare = (one, other, isNumber) => {
    if (!isNumber) return collator.compare(one, other);
    return one - other;
  };

  const sort = (table, head, place) => {
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const isNumber = "number" in head.dataset;
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [content(row.cells[place], isNumber), row]);
    rows.sort(([one], [other]) => {
      // What is undefined comes last, whichever way the others are sorted.
      const missing = isNumber ? Number.isNaN(one) - Number.isNaN(other) : 0;
      return missing || direction * (isNumber && Number.isNaN(one) ? 0 : compare(one, other, isNumber));
    });
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    body.append(...rows.map(([, row]) => row));
  };

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head, place));
      head.append(button);
    });
  }

  for (const block of document.querySelectorAll(".searchable")) {
    const [choice, search, told] = ["select", "input", "output"].map((tag) => block.querySelector(tag));
    const rows = [...block.querySelectorAll("tbody tr")];
    const words = (row) => [...row.cells].filter((cell) => !cell.classList.contains("number"));
    const texts = rows.map((row) => words(row).map((cell) => cell.textContent).join("\n").toLowerCase());
    const column = Number(choice.dataset.column);
    const filter = () => {
      const sought = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, place) => {
        const isChosen = !choice.value || row.cells[column].textContent === choice.value;
        row.hidden = !(isChosen && sought.every((word) => texts[place].includes(word)));
        shown += !row.hidden;
      });
      told.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
    };
    choice.addEventListener("change", filter);
    search.addEventListener("input", filter);
    block.querySelector(".filters").hidden = false;
    filter();
  }

  // On paper nothing unfolds.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("main details:not([open])")];
    for (const details of folded) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of folded) details.open = false;
  });

  // Where the contents stand above the report, they are closed at first.
  const contents = document.querySelector(".contents details");
  if (contents && matchMedia("(max-width: 60rem)").matches) contents.open = false;
})();
