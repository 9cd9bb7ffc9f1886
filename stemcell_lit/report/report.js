// Sorts the table of methods by a click on a heading; a third click restores its groups. Without it the page is whole.
for (const table of document.querySelectorAll("table.sortable")) {
  const bodies = [...table.tBodies];
  const rows = bodies.map((body) => [...body.rows]);
  const heads = [...table.tHead.rows[0].cells];
  const restore = () => bodies.forEach((body, i) => body.append(...rows[i]));
  heads.forEach((head, column) => {
    if (!("sort" in head.dataset)) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      restore();
      const first = head.dataset.sort === "text" ? "ascending" : "descending";
      const second = first === "ascending" ? "descending" : "ascending";
      const order = before === first ? second : before === second ? null : first;
      table.classList.toggle("sorted", order !== null);
      if (!order) return;
      head.setAttribute("aria-sort", order);
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        if (head.dataset.sort === "text") return sign * value(a).localeCompare(value(b));
        const [x, y] = [parseFloat(value(a)), parseFloat(value(b))];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // what is not known comes last
        return sign * (x - y);
      };
      const all = rows.flat().filter((row) => !row.classList.contains("group"));
      bodies[bodies.length - 1].append(...all.sort(compare));
    });
  });
}
