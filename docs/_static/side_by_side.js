// Two packages' versions of one file, row by row. The choice is in the address: ?left=torch&right=jax.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  for (const form of document.querySelectorAll("form.side-by-side")) {
    const found = JSON.parse(form.querySelector("script").textContent);
    const table = form.querySelector("table"), says = form.querySelector(".says");

    const rowsOf = (left, right) => {
      if (left === right) return found.lines[left].map((_, i) => [i, i, 1]);
      return found.rows[`${left} ${right}`] ?? found.rows[`${right} ${left}`].map(([i, j, same]) => [j, i, same]);
    };
    const cell = (name, i) =>
      i < 0 ? "<td></td><td></td>" : `<td class="number">${i + 1}</td><td><code>${found.lines[name][i]}</code></td>`;
    // A word for the screen reader, a sign for the eye, besides the colour.
    const mark = (i, j, same) => {
      const [kind, sign] = i < 0 ? ["only right", "▸"] : j < 0 ? ["only left", "◂"] : same ? ["", ""] : ["differs", "≠"];
      return [kind.replace(" ", "-"), sign && `<span aria-hidden="true">${sign}</span><span class="spoken">${kind}</span>`];
    };

    const show = () => {
      const left = form.elements.left.value, right = form.elements.right.value, rows = rowsOf(left, right);
      const body = rows.map(([i, j, same]) => {
        const [kind, sign] = mark(i, j, same);
        return `<tr class="${kind}">${cell(left, i)}<td class="mark">${sign}</td>${cell(right, j)}</tr>`;
      });
      const head = name => `<th scope="col" colspan="2">resnet_${name}/${found.file}</th>`;
      table.innerHTML = `<thead><tr>${head(left)}<td></td>${head(right)}</tr></thead><tbody>${body.join("")}</tbody>`;
      const same = rows.filter(row => row[2]).length, opposite = rows.filter(([i, j]) => i >= 0 && j >= 0).length;
      says.textContent = `${found.labels[left]} has ${found.lines[left].length} lines, ${found.labels[right]} `
        + `${found.lines[right].length}. ${opposite} stand opposite one another; ${same} of these say the same.`;
    };

    const asked = new URLSearchParams(location.search);
    for (const side of ["left", "right"])
      if (asked.get(side) in found.lines) form.elements[side].value = asked.get(side);
    form.addEventListener("change", () => {
      const url = new URL(location.href);
      for (const side of ["left", "right"]) url.searchParams.set(side, form.elements[side].value);
      history.replaceState(null, "", url);
      show();
    });
    form.addEventListener("submit", event => event.preventDefault());
    // The pair goes with the reader to the other files.
    for (const link of document.querySelectorAll("a[href*='side-by-side']"))
      link.addEventListener("click", () => {
        const url = new URL(link.href);
        for (const side of ["left", "right"]) url.searchParams.set(side, form.elements[side].value);
        link.href = url.href;
      });
    show();
  }
});
