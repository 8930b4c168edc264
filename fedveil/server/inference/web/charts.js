// Lines over time, drawn as SVG; pointing at a chart shows the figures of that moment.

import { element } from "/inputs.js";

const [HEIGHT, LEFT, RIGHT, BOTTOM, TOP] = [176, 58, 6, 24, 10];

function svg(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// The next of 1, 2, 2.5, 5, 10, 20, ... above a figure.
function above(most) {
  const unit = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 2.5, 5, 10].map((step) => step * unit).find((step) => step >= most * (1 - 1e-9));
}

export class Chart {
  // `lines` are {name, class}; `unit` writes a figure down; `least` is the lowest top of the scale.
  constructor(root, caption, lines, unit, least) {
    Object.assign(this, { root, caption, lines, unit, least });
    this.pointed = null;
    root.addEventListener("pointermove", (event) => {
      const box = root.getBoundingClientRect();
      const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
      this.pointed = Math.min(Math.max(share, 0), 1);
      this.draw();
    });
    root.addEventListener("pointerleave", () => {
      this.pointed = null;
      this.draw();
    });
    new ResizeObserver(() => this.draw()).observe(root);
  }

  show(series, stepSeconds) {
    Object.assign(this, { series, stepSeconds });
    this.draw();
  }

  draw() {
    if (!this.series) return;
    const box = this.root.getBoundingClientRect();
    const width = Math.max(box.width, 200);
    this.root.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const { series, lines, unit } = this;
    const count = series[0].length;
    const top = above(Math.max(this.least, ...series.flat().map((value) => value ?? 0)));
    const x = (place) => LEFT + (place / (count - 1)) * (width - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);
    const parts = [];
    for (const value of [0, top / 2, top]) {
      parts.push(svg("line", { x1: LEFT, x2: width, y1: y(value), y2: y(value) }));
      const place = { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" };
      parts.push(svg("text", place, unit(value)));
    }
    const minutes = Math.round((count * this.stepSeconds) / 60);
    parts.push(svg("text", { x: LEFT, y: HEIGHT - 6 }, `${minutes} min ago`));
    parts.push(svg("text", { x: width - 2, y: HEIGHT - 6, "text-anchor": "end" }, "now"));
    series.forEach((values, number) => {
      if (!values.some((value) => value)) return;
      const path = line(values, x, y);
      if (lines[number].area) parts.push(svg("path", { class: "area", d: filled(values, x, y) }));
      parts.push(svg("path", { class: lines[number].class ?? "", d: path }));
    });
    const place = this.pointed === null ? latest(series) : Math.round(this.pointed * (count - 1));
    if (this.pointed !== null) {
      parts.push(svg("line", { class: "mark", x1: x(place), x2: x(place), y1: TOP, y2: y(0) }));
    }
    this.root.replaceChildren(...parts);
    const told = lines.map(({ name, class: kind }, number) => {
      const value = series[number][place];
      const text = `${name} ${value === null ? "–" : unit(value)}`;
      return element("span", { className: kind ?? "", textContent: text });
    });
    const seconds = (count - 1 - place) * this.stepSeconds;
    const when = this.pointed === null || !seconds ? "" : `, ${Math.round(seconds)} s ago`;
    this.caption.replaceChildren(...told, when);
    this.root.setAttribute("aria-label", this.caption.textContent);
  }
}

function latest(series) {
  for (let place = series[0].length - 1; place > 0; place -= 1) {
    if (series.some((values) => values[place] !== null)) return place;
  }
  return series[0].length - 1;
}

function line(values, x, y) {
  let [path, isOpen] = ["", false];
  values.forEach((value, place) => {
    if (value === null) {
      isOpen = false;
      return;
    }
    path += isOpen ? `L${x(place)} ${y(value)}` : `M${x(place)} ${y(value)}h0`;
    isOpen = true;
  });
  return path;
}

function filled(values, x, y) {
  const points = values.map((value, place) => `L${x(place)} ${y(value ?? 0)}`).join("");
  return `M${x(0)} ${y(0)}${points}L${x(values.length - 1)} ${y(0)}z`;
}
