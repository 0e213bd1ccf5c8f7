// The trap explorer. What is chosen is in the address (?traps=100000&size=32), so that it can be sent.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  for (const form of document.querySelectorAll("form.explorer")) {
    const found = JSON.parse(form.querySelector("script").textContent);
    const svg = form.querySelector("svg"), says = form.querySelector(".says"), table = form.querySelector("table");

    // The chart's axis is logarithmic, from 1e-6, below which nothing is drawn, to 100.
    const LOW = -6, HIGH = 2, LEFT = 62, WIDTH = 560, TOP = 12, HEIGHT = 215, BASE = TOP + HEIGHT;
    const x = i => LEFT + WIDTH * (i + 0.5) / found.layers.length;
    const y = value => BASE - HEIGHT * (Math.min(Math.max(Math.log10(value || 1e-99), LOW), HIGH) - LOW) / (HIGH - LOW);
    const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
    const written = value => value === 0 ? "0" : value >= 10 ? `${Math.round(value)} ×`
      : value < 0.001 ? value.toExponential(1) : `${+(100 * value).toPrecision(2)} %`;

    const chart = values => {
      let marks = "";
      for (let exponent = LOW; exponent <= HIGH; exponent += 2)
        marks += `<line class="grid" x1="${LEFT}" x2="${LEFT + WIDTH}" y1="${y(10 ** exponent)}" y2="${y(10 ** exponent)}"/>`
          + `<text x="${LEFT - 8}" y="${y(10 ** exponent) + 5}" text-anchor="end">${written(10 ** exponent)}</text>`;
      values.forEach((value, i) => {
        marks += `<rect class="bar" x="${x(i) - 24}" width="48" y="${y(value)}" height="${BASE - y(value)}"/>`
          + `<text x="${x(i)}" y="${y(value) - 5}" text-anchor="middle">${written(value)}</text>`
          + `<text x="${x(i)}" y="${BASE + 20}" text-anchor="middle">${found.layers[i]}</text>`;
      });
      return marks + `<text x="${LEFT + WIDTH / 2}" y="${BASE + 40}" text-anchor="middle">deviation of each part's output</text>`;
    };

    const show = () => {
      const size = form.elements.size.value;
      const on = found.traps.map((_, i) => +form.elements[`trap${i}`].checked).join("");
      const run = found.runs[`${size}:${on}`], right = found.runs[`${size}:${"0".repeat(on.length)}`];
      const names = found.traps.filter((_, i) => on[i] === "1");
      const off = run.layers.at(-1);
      const what = names.length ? `With ${names.join(" and ")}` : "Without a trap";
      says.textContent = `${what}, at ${size} × ${size} pixels, the logits are `
        + (off ? `off by ${written(off)}` : "the same to the last bit")
        + ` and ${percent(run.accuracy)} of ${found.images} test images are told right, where the network itself tells ${percent(right.accuracy)}.`;
      svg.innerHTML = chart(run.layers);
      svg.setAttribute("aria-label", `Deviation by part: ${found.layers.map((name, i) => `${name} ${written(run.layers[i])}`).join(", ")}`);
      table.innerHTML = "<tr><th scope=\"col\">part</th><th scope=\"col\">deviation</th></tr>"
        + found.layers.map((name, i) => `<tr><th scope="row">${name}</th><td>${written(run.layers[i])}</td></tr>`).join("");
      return [on, size];
    };

    const asked = new URLSearchParams(location.search);
    [...(asked.get("traps") ?? "1")].forEach((on, i) => {
      if (form.elements[`trap${i}`]) form.elements[`trap${i}`].checked = on === "1";
    });
    if (found.sizes.includes(+asked.get("size"))) form.elements.size.value = asked.get("size");
    form.addEventListener("change", () => {
      const [on, size] = show(), url = new URL(location.href);
      url.searchParams.set("traps", on);
      url.searchParams.set("size", size);
      history.replaceState(null, "", url);
    });
    form.addEventListener("submit", event => event.preventDefault());
    show();
  }
});
