// A click on a column's head sorts its table by that column, a second one the other way round; gaps stay last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const key = (row) => row.cells[head.cellIndex].dataset.value;
    const order = (x, y) => (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
    const compare = (x, y) => (x === "" || y === "" ? (x === "") - (y === "") : sign * order(x, y));
    body.append(...Array.from(body.rows).sort((a, b) => compare(key(a), key(b))));
  });
}

// A click on a quantization hides its points and its rows, a second one shows them again.
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const section = button.closest("section"), kind = button.value;
    const isShown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", isShown);
    for (const row of section.querySelectorAll("tbody tr")) if (row.dataset.kind === kind) row.hidden = !isShown;
    for (const plot of section.querySelectorAll(".js-plotly-plot")) {
      const at = plot.data.flatMap((trace, i) => (trace.meta === kind ? [i] : []));
      Plotly.restyle(plot, { visible: isShown }, at);
    }
  });
}
