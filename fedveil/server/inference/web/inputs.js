// What people fill in: a drawing, fields, or a text. Each gives the model's values for one row.

export function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, options);
  made.append(...children);
  return made;
}

// Returns an element, what it is good for, and a function that gives the values, or null where
// there is nothing to ask about; `changed` is called when a drawing rests.
export function makeInput(form, changed) {
  if (form === null) {
    const text = "This model takes more values than anybody would type. Send them to the service: ";
    const line = element("p", {}, text, element("code", { textContent: "fedveil predict" }), ".");
    return { node: line, isAskedByButton: false, values: () => null };
  }
  return { image: drawing, fields, text }[form.kind](form, changed);
}

const BOARD = 336;
const REST = 350;
const PEN = 0.085;
const LARGEST = 3;

function drawing(form, changed) {
  const cell = Math.max(4, Math.floor(BOARD / Math.max(form.width, form.height)));
  const [width, height] = [form.width * cell, form.height * cell];
  const board = element("canvas", { width, height, className: "board", tabIndex: 0 });
  const seen = element("canvas", { width: form.width, height: form.height, className: "seen" });
  for (const canvas of [board, seen]) canvas.style.setProperty("--ratio", `${width} / ${height}`);
  board.setAttribute("role", "img");
  const help = "Draw here with a mouse, a pen or a finger; or move with the arrow keys, and ink with space.";
  board.setAttribute("aria-label", help);
  seen.setAttribute("role", "img");
  seen.setAttribute("aria-label", `The ${form.width} by ${form.height} pixels that the model gets`);
  const ink = element("canvas", { width, height });
  const pen = ink.getContext("2d", { willReadFrequently: true });
  pen.lineWidth = Math.max(cell, PEN * Math.max(width, height));
  pen.lineCap = pen.lineJoin = "round";
  let [last, rest, cursor, pixels] = [null, 0, null, null];

  function show() {
    const paint = board.getContext("2d");
    paint.clearRect(0, 0, width, height);
    paint.drawImage(ink, 0, 0);
    if (cursor) {
      paint.strokeStyle = "#1f4e79";
      paint.lineWidth = 3;
      paint.strokeRect(cursor.x * cell, cursor.y * cell, cell, cell);
    }
  }

  function read() {
    clearTimeout(rest);
    pixels = fitted(ink, form, cell);
    const image = new ImageData(form.width, form.height);
    pixels?.forEach((value, place) => {
      image.data.set([27, 39, 51, Math.round(255 * value)], 4 * place);
    });
    seen.getContext("2d").putImageData(image, 0, 0);
    changed();
  }

  function inked() {
    show();
    clearTimeout(rest);
    rest = setTimeout(read, REST);
  }

  function place(event) {
    const box = board.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * width) / box.width,
      y: ((event.clientY - box.top) * height) / box.height,
    };
  }

  function stroke(to) {
    pen.beginPath();
    pen.moveTo(last.x, last.y);
    pen.lineTo(to.x, to.y);
    pen.stroke();
    last = to;
    inked();
  }

  board.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    board.setPointerCapture(event.pointerId);
    cursor = null;
    last = place(event);
    stroke(last);
  });
  board.addEventListener("pointermove", (event) => {
    if (last) for (const part of event.getCoalescedEvents?.() ?? [event]) stroke(place(part));
  });
  for (const name of ["pointerup", "pointercancel"]) {
    board.addEventListener(name, () => { last = null; });
  }
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  board.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step && event.key !== " ") return;
    event.preventDefault();
    cursor ??= { x: form.width >> 1, y: form.height >> 1 };
    if (step) {
      cursor.x = Math.min(Math.max(cursor.x + step[0], 0), form.width - 1);
      cursor.y = Math.min(Math.max(cursor.y + step[1], 0), form.height - 1);
      show();
    } else {
      pen.fillRect(cursor.x * cell, cursor.y * cell, cell, cell);
      inked();
    }
  });
  const clear = element("button", { type: "button", className: "plain", textContent: "Clear" });
  clear.addEventListener("click", () => {
    pen.clearRect(0, 0, width, height);
    show();
    read();
  });
  const caption = (text) => element("figcaption", { className: "quiet", textContent: text });
  const node = element(
    "div", { className: "drawing" },
    element("figure", {}, board, caption("Draw here.")),
    element("figure", {}, seen, caption("What the model gets"), element("p", {}, clear)),
  );
  return { node, isAskedByButton: false, values: () => pixels };
}

// The drawing as the data came about: fitted into the frame, its centre of mass in the middle as
// far as that leaves it inside, and averaged over each pixel's square.
function fitted(ink, form, cell) {
  const found = mass(ink);
  if (!found) return null;
  const room = (size) => (size - 2 * form.margin) * cell;
  const [boxWidth, boxHeight] = [found.right - found.left + 1, found.bottom - found.top + 1];
  const scale = Math.min(room(form.width) / boxWidth, room(form.height) / boxHeight, LARGEST);
  const start = (low, centre, box, size) => {
    const wanted = (size * cell) / 2 - (centre - low) * scale;
    return Math.min(Math.max(wanted, 0), Math.max(size * cell - box * scale, 0));
  };
  const frame = element("canvas", { width: ink.width, height: ink.height });
  const paint = frame.getContext("2d", { willReadFrequently: true });
  paint.imageSmoothingQuality = "high";
  paint.drawImage(
    ink, found.left, found.top, boxWidth, boxHeight,
    start(found.left, found.x, boxWidth, form.width),
    start(found.top, found.y, boxHeight, form.height),
    boxWidth * scale, boxHeight * scale,
  );
  const alpha = paint.getImageData(0, 0, ink.width, ink.height).data;
  const sums = new Array(form.width * form.height).fill(0);
  for (let y = 0; y < ink.height; y += 1) {
    for (let x = 0; x < ink.width; x += 1) {
      const pixel = Math.floor(y / cell) * form.width + Math.floor(x / cell);
      sums[pixel] += alpha[4 * (y * ink.width + x) + 3];
    }
  }
  return sums.map((sum) => Math.round((1e4 * sum) / (255 * cell * cell)) / 1e4);
}

function mass(ink) {
  const { width, height } = ink;
  const alpha = ink.getContext("2d").getImageData(0, 0, width, height).data;
  const found = { left: width, right: -1, top: height, bottom: -1, x: 0, y: 0 };
  let all = 0;
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const here = alpha[4 * (y * width + x) + 3];
      if (!here) continue;
      all += here;
      found.x += here * x;
      found.y += here * y;
      found.left = Math.min(found.left, x);
      found.right = Math.max(found.right, x);
      found.top = Math.min(found.top, y);
      found.bottom = Math.max(found.bottom, y);
    }
  }
  return all ? { ...found, x: found.x / all, y: found.y / all } : null;
}

function fields(form) {
  const parts = form.fields.map((field) => {
    const control = field.kind === "choice" ? choice(field) : number(field);
    const unit = field.unit ? ` (${field.unit})` : "";
    const label = element("label", {}, element("span", { textContent: field.name + unit }), control);
    return { field, control, label };
  });
  const node = element("div", { className: "fields" }, ...parts.map((part) => part.label));
  const values = () => {
    const wrong = parts.find((part) => !part.control.reportValidity());
    return wrong ? null : parts.flatMap(({ field, control }) => encoded(field, control.value));
  };
  return { node, isAskedByButton: true, values };
}

function choice(field) {
  const options = field.levels.map((level) => element("option", { value: level, textContent: level }));
  return element("select", { name: field.name }, ...options);
}

function number(field) {
  const control = element("input", {
    type: "number", name: field.name, step: "any", required: true,
    value: String(field.typical),
    title: `usually ${field.low} to ${field.high}`,
  });
  if (field.logarithmic) control.min = "0";
  return control;
}

function encoded(field, given) {
  if (field.kind === "choice") {
    const hot = field.levels.map((level) => (level === given ? 1 : 0));
    return field.without_first ? hot.slice(1) : hot;
  }
  const value = Number(given);
  return [((field.logarithmic ? Math.log1p(value) : value) - field.offset) / field.scale];
}

function text(form) {
  const control = element("textarea", { name: "text", value: form.typical, spellcheck: false });
  control.setAttribute("aria-label", `Text; its last ${form.length} characters count`);
  const help = `The model is given the last ${form.length} characters.`;
  const node = element(
    "div", {}, control, element("p", { className: "quiet", textContent: help }),
  );
  const values = () => {
    const codes = [...control.value].slice(-form.length).map((one) => form.alphabet.indexOf(one) + 1);
    return [...new Array(form.length - codes.length).fill(1), ...codes];
  };
  return { node, isAskedByButton: true, values };
}
