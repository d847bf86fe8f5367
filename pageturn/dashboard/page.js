"use strict";
// Asks for state.json once a second and draws it. Everything that comes from outside goes in as text, never as markup.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function svg(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function html(parent, name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  parent.append(element);
  return element;
}

const rate = (x) => `${x >= 10 ? Math.round(x) : x.toFixed(1)}/s`;
const whole = (x) => x.toLocaleString("en");
const number = (x) => (Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 1 ? x.toFixed(2) : x.toPrecision(2));
const tick = (x) => (x >= 100 ? whole(Math.round(x)) : x.toFixed(1));
const ago = (ms) => {
  const s = Math.max(0, Math.round(ms / 1000));
  return s < 120 ? `${s} s` : s < 7200 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
};

// The loop ---------------------------------------------------------------------------------------------------------

const BOXES = { // part of the run -> place, and what it says
  traffic: [20, 30, "users", (s) => `${rate(s.rates.pages)} pages`],
  agent: [270, 30, "agent", (s) => `${rate(s.rates.answered)} decided`],
  "model-server": [520, 30, "model server", (s) => s.policies.map((p) => `${p.policy} v${p.version}`).join(", ")],
  stream: [270, 200, "stream", (s) => `${rate(s.rates.transitions)} transitions`],
  trainer: [520, 200, "trainer", (s) => `${rate(s.rates.updates)} updates`],
  controller: [770, 200, "controller", (s) => `${s.policies.reduce((n, p) => n + p.accepted, 0)} published`],
};
const PIPES = [ // from, to, the path, whether something flows
  ["M210 65 H270", (s) => s.rates.pages > 0],
  ["M460 65 H520", (s) => s.rates.answered > 0],
  ["M365 100 V200", (s) => s.rates.answered > 0],
  ["M460 235 H520", (s) => s.rates.transitions > 0],
  ["M710 235 H770", (s) => s.rates.updates > 0],
  ["M865 200 V65 H710", (s) => s.verdicts.some((v) => v.outcome === "accepted" && s.now_ms - v.time_ms < 15000)],
];

function drawLoop(state) {
  const root = $("loop");
  const parts = Object.fromEntries(state.parts.map((part) => [part.name, part]));
  root.replaceChildren();
  for (const [path, flows] of PIPES) svg(root, "path", { d: path, class: flows(state) ? "pipe flows" : "pipe" });
  for (const [name, [x, y, title, says]] of Object.entries(BOXES)) {
    const part = parts[name];
    const standing = part === undefined ? "" : part.up ? " up" : " down";
    svg(root, "rect", { x, y, width: 190, height: 70, rx: 10, class: `box${standing}` });
    svg(root, "text", { x: x + 14, y: y + 28, class: "head" }, title);
    const restarts = part && part.starts > 1 ? `, started ${part.starts} times` : "";
    svg(root, "text", { x: x + 14, y: y + 50, class: "soft" }, (part && !part.up ? "down" : says(state)) + restarts);
  }
  svg(root, "text", { x: 375, y: 155, class: "soft" }, "event log");
  svg(root, "text", { x: 875, y: 130, class: "soft" }, "versions");
}

// Charts -----------------------------------------------------------------------------------------------------------

const MARGIN = { left: 54, right: 12, top: 24, bottom: 22 };

function frame(root, low, high) {
  root.replaceChildren();
  const width = root.clientWidth || 500, height = root.clientHeight || 220;
  root.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const pad = (high - low || Math.abs(high) || 1) * 0.08;
  const bottom = low - pad, span = high - low + 2 * pad;
  const y = (v) => height - MARGIN.bottom - ((v - bottom) / span) * (height - MARGIN.top - MARGIN.bottom);
  for (let i = 0; i <= 3; i++) {
    const v = bottom + (span * i) / 3;
    svg(root, "line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(v), y2: y(v), class: "axis" });
    svg(root, "text", { x: MARGIN.left - 8, y: y(v) + 4, "text-anchor": "end" }, number(v));
  }
  return { width, height, y };
}

// series: [{name, colour, values}], with gaps where a value is null; x: one number per value
function drawLines(root, x, series, xLabel) {
  const seen = series.flatMap((s) => s.values).filter((v) => v !== null);
  if (!seen.length) return nothing(root);
  const { width, height, y } = frame(root, Math.min(...seen), Math.max(...seen));
  const first = x[0], last = x[x.length - 1];
  const place = (v) => MARGIN.left + ((v - first) / (last - first || 1)) * (width - MARGIN.left - MARGIN.right);
  let at = MARGIN.left;
  series.forEach(({ name, colour, values }) => {
    let path = "", pen = "M";
    values.forEach((v, i) => {
      if (v === null) { pen = "M"; return; }
      path += `${pen}${place(x[i]).toFixed(1)} ${y(v).toFixed(1)}`;
      pen = "L";
    });
    svg(root, "path", { d: path, class: `line s${colour}` });
    const label = svg(root, "text", { x: at, y: 14, class: `t${colour}` }, name);
    at += label.getComputedTextLength() + 16;
  });
  svg(root, "text", { x: MARGIN.left, y: height - 5 }, tick(first));
  svg(root, "text", { x: width - MARGIN.right, y: height - 5, "text-anchor": "end" }, `${tick(last)} ${xLabel}`);
}

function nothing(root) {
  root.replaceChildren();
  root.setAttribute("viewBox", "0 0 300 100");
  svg(root, "text", { x: 150, y: 50, "text-anchor": "middle" }, "nothing yet");
}

function drawEarning(state) {
  const root = $("earning");
  const buckets = state.buckets.filter((b) => b.reward !== null);
  if (!buckets.length) return nothing(root);
  const ends = buckets.flatMap((b) => [b.reward - (b.half ?? 0), b.reward + (b.half ?? 0)]);
  const { width, height, y } = frame(root, Math.min(...ends), Math.max(...ends));
  const step = (width - MARGIN.left - MARGIN.right) / buckets.length;
  buckets.forEach((b, k) => {
    const x = MARGIN.left + step * (k + 0.5), c = `line s${k % 5}`;
    if (b.half !== null) {
      svg(root, "line", { x1: x, x2: x, y1: y(b.reward - b.half), y2: y(b.reward + b.half), class: c });
      for (const end of [b.reward - b.half, b.reward + b.half])
        svg(root, "line", { x1: x - 7, x2: x + 7, y1: y(end), y2: y(end), class: c });
    }
    svg(root, "circle", { cx: x, cy: y(b.reward), r: 4, class: c });
    svg(root, "text", { x, y: 14, "text-anchor": "middle", class: `t${k % 5}` }, `${b.bucket} (${b.policy})`);
    svg(root, "text", { x, y: height - 5, "text-anchor": "middle" }, `${whole(b.visits)} visits`);
  });
}

const CURVES = [ // title, which quantities
  ["actions: mean by policy", (n) => n.startsWith("action_mean/")],
  ["A at the policy's action: mean over states", (n) => n.startsWith("advantage_mean/")],
  ["V: mean over states", (n) => n === "value_mean"],
  ["losses", (n) => n === "value_loss" || n.startsWith("advantage_loss/")],
];

function drawCurves(state) {
  const parent = $("curves");
  const { transitions, learning } = state.curves;
  CURVES.forEach(([title, wanted], i) => {
    const names = Object.keys(learning).filter(wanted);
    let figure = parent.children[i];
    if (!figure) {
      figure = html(parent, "figure", undefined, "card");
      html(figure, "figcaption", title);
      svg(figure, "svg", { class: "chart" });
    }
    figure.hidden = names.length === 0 && Object.keys(learning).length > 0;
    const series = names.map((n) => {
      const [, policy, action] = n.split("/");
      const colour = state.buckets.findIndex((b) => b.policy === policy); // as its bucket has above
      return { name: [policy ?? "V", action ?? ""].join(" "), colour: Math.max(colour, 0) % 5, values: learning[n] };
    });
    drawLines(figure.lastChild, transitions, series, "transitions");
  });
}

// Text -------------------------------------------------------------------------------------------------------------

function drawTiles(state) {
  const tiles = [[whole(state.pages), "pages asked"], [whole(state.ingested), "transitions learned from"]];
  for (const p of state.policies) {
    const since = p.since_ms === null ? "the baseline itself" : `since ${ago(state.now_ms - p.since_ms)}`;
    tiles.push([`v${p.version}`, `${p.policy}, ${since}`]);
    if (p.by_policy !== null) tiles.push([`${Math.round(100 * p.by_policy)} %`, `of ${p.policy}'s pages by the policy`]);
  }
  const parent = $("tiles");
  parent.replaceChildren();
  for (const [value, label] of tiles) {
    const item = html(parent, "li");
    html(item, "strong", value);
    html(item, "span", label);
  }
}

function drawVerdicts(state) {
  const body = $("verdicts");
  body.replaceChildren();
  for (const v of state.verdicts) {
    const row = html(body, "tr");
    html(row, "td", `${ago(state.now_ms - v.time_ms)} ago`);
    html(row, "td", v.policy);
    html(row, "td", v.candidate);
    const outcome = v.outcome === "accepted" ? `accepted as ${v.version}` : v.outcome;
    html(row, "td", outcome, v.outcome === "refused" ? "bad" : "");
    html(row, "td", v.detail || (v.evidence ?? "").replaceAll("_", " "));
  }
}

function draw(state) {
  document.title = `${state.name} · Pageturn`;
  $("config").textContent = state.config;
  $("name").textContent = state.name;
  const age = ago(state.now_ms - state.created_ms);
  $("standing").textContent = state.up ? `up, begun ${age} ago` : `down, begun ${age} ago`;
  $("standing").className = "note";
  drawLoop(state);
  drawTiles(state);
  drawEarning(state);
  const time = state.curves.reward_ms.map((ms) => (ms - state.created_ms) / 60000);
  drawLines($("reward"), time, state.buckets.map((b, k) => ({ name: b.bucket, colour: k % 5, values: b.over_time })), "minutes");
  drawCurves(state);
  drawVerdicts(state);
}

async function watch() {
  try {
    const reply = await fetch("state.json");
    if (!reply.ok) throw new Error(`status ${reply.status}`);
    draw(await reply.json());
  } catch (error) {
    $("standing").textContent = `no answer from pageturn dashboard (${error.message}); trying again`;
    $("standing").className = "note bad";
  }
  setTimeout(watch, 1000);
}

watch();
