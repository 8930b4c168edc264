// The page for people. Whatever the service tells is written as text, never as HTML.

import { Chart } from "/charts.js";
import { element, makeInput } from "/inputs.js";

const LOOK_MILLISECONDS = 5000;
const MOST_BARS = 10;

const at = (id) => document.getElementById(id);
let token = "";
let about = null;
let metadata = null;
let asked = 0;

class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function call(address, body) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  let reply;
  try {
    reply = await fetch(address, {
      method: body === undefined ? "GET" : "POST",
      headers: body === undefined ? headers : { ...headers, "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch {
    throw new Refused(0, "The service cannot be reached.");
  }
  const found = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Refused(reply.status, found.error ?? `The service answers ${reply.status}.`);
  return found;
}

function trouble(error) {
  at("trouble").hidden = !error;
  at("trouble").textContent = error ? error.message : "";
}

// Figures as the report has them: an epsilon is never shown less than it is.
const upward = (epsilon) => (Math.ceil(epsilon * 1e3 - 1e-9) / 1e3).toFixed(3);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function milliseconds(seconds) {
  const value = seconds * 1e3;
  return `${value >= 100 ? Math.round(value) : Number(value.toPrecision(2))} ms`;
}

function meaning({ epsilon, delta, privacy_unit: unit }) {
  if (epsilon === undefined) {
    return "No privacy is claimed for this model: records that it was trained on can be inferred from it.";
  }
  const shown = upward(epsilon);
  const factor = Math.exp(Number(shown));
  const rounded = factor < 10 ? factor.toFixed(2) : Number(factor.toPrecision(3)).toLocaleString("en");
  return `Whether one ${unit} was among the training data changes the probability of anything that `
    + `a client sent, and so of this model, by a factor of at most ${rounded} (e to the power of `
    + `epsilon), but for a probability of ${delta}. The smaller both are, the less is given away.`;
}

function outputs() {
  const kind = metadata.parameters.outputs ?? "full";
  const number = kind.split("-")[1];
  if (kind === "labels") return "the class alone";
  if (kind.startsWith("top-")) return `the ${number} most probable classes`;
  if (kind.startsWith("round-")) return `probabilities with ${number} decimals`;
  return "all of the model's output";
}

function showClaim() {
  const told = metadata.parameters;
  const hasClaim = told.epsilon !== undefined;
  at("epsilon").textContent = hasClaim ? upward(told.epsilon) : "none";
  at("delta").textContent = hasClaim ? String(told.delta) : "none";
  at("accuracy").textContent = told.accuracy === undefined ? "unknown" : percent(told.accuracy);
  at("round").textContent = String(told.round);
  at("meaning").textContent = meaning(told);
  at("meaning").classList.toggle("bad", !hasClaim);
  at("model").textContent = metadata.name;
  at("run").textContent = told.run;
  at("created").textContent = told.created;
  at("outputs").textContent = outputs();
  const hash = told.report_sha256;
  at("report").textContent = hash ? `sha256 ${hash}` : "none for this round yet";
}

function softmax(logits) {
  const most = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp(logit - most));
  const sum = weights.reduce((one, other) => one + other, 0);
  return weights.map((weight) => weight / sum);
}

// Returns the class of one row, and the probabilities where the service tells them.
function read(output) {
  const kind = metadata.parameters.outputs ?? "full";
  const data = output.data;
  if (kind === "labels") return { label: data[0], shares: null };
  if (data.length === 1) {
    const yes = kind === "full" ? 1 / (1 + Math.exp(-data[0])) : data[0];
    return { label: Number(kind === "full" ? data[0] > 0 : yes > 0.5), shares: [1 - yes, yes] };
  }
  return { label: data.indexOf(Math.max(...data)), shares: kind === "full" ? softmax(data) : data };
}

function showAnswer(reply, took) {
  const { label, shares } = read(reply.outputs[0]);
  at("class").textContent = about.classes[label];
  at("share").textContent = shares ? percent(shares[label]) : "";
  const places = about.classes.map((_, place) => place);
  const isFew = places.length <= MOST_BARS;
  const told = shares ? places.filter((place) => isFew || shares[place] > 0) : [];
  if (!isFew) told.sort((one, other) => shares[other] - shares[one]);
  const rows = told.slice(0, MOST_BARS).map((place) => {
    const bar = element("i");
    bar.style.setProperty("--share", shares[place]);
    return element(
      "li", { className: place === label ? "first" : "" },
      element("span", { textContent: about.classes[place] }),
      element("span", { className: "bar" }, bar),
      element("span", { textContent: percent(shares[place]) }),
    );
  });
  at("bars").replaceChildren(...rows);
  const more = told.length > rows.length ? ` · ${told.length - rows.length} classes more` : "";
  at("source").textContent = `round ${reply.model_version} · ${milliseconds(took / 1e3)} with the network${more}`;
  at("answer").hidden = false;
}

async function ask(values) {
  asked += 1;
  const mine = asked;
  if (!values) {
    at("answer").hidden = true;
    return;
  }
  const [spec] = metadata.inputs;
  const shape = [1, ...spec.shape.slice(1)];
  const tensor = { name: spec.name, shape, datatype: spec.datatype, data: values };
  const started = performance.now();
  try {
    const reply = await call(`/v2/models/${metadata.name}/infer`, { inputs: [tensor] });
    if (mine !== asked) return;
    showAnswer(reply, performance.now() - started);
    trouble(null);
  } catch (error) {
    if (mine !== asked) return;
    at("answer").hidden = true;
    trouble(error);
  }
}

function showInput() {
  if (!about.classes.length) {
    at("input").replaceChildren(
      element("p", { textContent: "This model's answers are no classes, so that this page cannot show them." }),
    );
    return;
  }
  const input = makeInput(about.form, () => ask(input.values()));
  const parts = [input.node];
  if (input.isAskedByButton) {
    const button = element("button", { type: "button", textContent: "Ask the model" });
    button.addEventListener("click", () => ask(input.values()));
    parts.push(element("div", { className: "actions" }, button));
  }
  at("input").replaceChildren(...parts);
}

const times = new Chart(
  at("times-chart"), at("times"), [{ name: "p50" }, { name: "p99", class: "second" }],
  milliseconds, 0.001,
);
const rates = new Chart(
  at("rates-chart"), at("rates"), [{ name: "answered", area: true }, { name: "refused", class: "second" }],
  (value) => value.toLocaleString("en", { maximumFractionDigits: 1 }), 1,
);

async function look() {
  const isReady = await fetch("/v2/health/ready", { cache: "no-store" }).then((r) => r.ok, () => null);
  at("health").hidden = false;
  at("health").textContent = { true: "ready", false: "ending", null: "not reachable" }[isReady];
  at("health").classList.toggle("bad", !isReady);
  if (isReady === null) return;
  try {
    if (about === null) {
      const found = await call("/about");
      metadata = await call(`/v2/models/${found.model}`);
      about = found;
      at("title").textContent = `Fedveil: ${about.model}`;
      document.title = `Fedveil: ${about.model}`;
      at("entry").hidden = true;
      at("main").hidden = false;
      trouble(null);
      showInput();
    } else {
      metadata = await call(`/v2/models/${about.model}`);
    }
    showClaim();
    const found = await call("/latencies");
    times.show([found.p50, found.p99], found.step_seconds);
    const perSecond = (counts) => counts.map((count) => count / found.step_seconds);
    rates.show([perSecond(found.answered), perSecond(found.refused)], found.step_seconds);
  } catch (error) {
    const isAboutTokens = error.status === 401 || error.status === 403;
    at("entry").hidden = !isAboutTokens;
    // The first page without a token is no mistake of anybody's.
    trouble(error.status === 401 && !token ? null : error);
  }
}

at("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  at("token").value = "";
  look();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});
setInterval(() => {
  const isWaitingForToken = about === null && !at("entry").hidden;
  if (!document.hidden && !isWaitingForToken) look();
}, LOOK_MILLISECONDS);
look();
