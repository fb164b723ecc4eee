// The blocks of the model as a strip, below it who serves which, and the route over both.

import { blocks, short } from "./swarm.js";

const SVG = "http://www.w3.org/2000/svg";
// As wide as it is shown, so that its letters have their own size, but never too narrow for them.
const WIDTH_MIN = 300;
const LABEL = 66;
const BLOCKS_HEIGHT = 20;
const ROW = 22;

export function draw(svg, state, route) {
  const { block_count: count, servers } = state;
  const width = Math.max(svg.clientWidth, WIDTH_MIN);
  const rows = Math.max(servers.length, 1);
  const height = BLOCKS_HEIGHT + 6 + rows * ROW;
  const x = (block) => LABEL + (block / Math.max(count, 1)) * (width - LABEL - 2);
  const y = (row) => BLOCKS_HEIGHT + 6 + row * ROW;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.querySelectorAll(":scope > :not(title, desc)").forEach((old) => old.remove());

  add(svg, "text", { x: 0, y: 14 }, "servers");
  state.replicas.forEach((replicas, block) => {
    const each = x(block + 1) - x(block);
    const kind = replicas || state.local ? "block" : "block none";
    add(svg, "rect", { class: kind, x: x(block), y: 0, width: each, height: BLOCKS_HEIGHT });
  });
  if (!state.local) drawCounts(svg, state.replicas, x);
  servers.forEach((server, row) => {
    add(svg, "text", { x: 0, y: y(row) + 14 }, short(server.peer));
    const kind = server.draining ? "span leaving" : "span";
    add(svg, "rect", { class: kind, x: x(server.start), y: y(row) + 2, width: x(server.end) - x(server.start), height: ROW - 6, rx: 3 });
  });
  drawRoute(svg, state, route, x, y);
  describe(svg, state, route);
}

// How many serve a block, once for all neighbours of which there are as many.
function drawCounts(svg, replicas, x) {
  let start = 0;
  for (let end = 1; end <= replicas.length; end += 1) {
    if (replicas[end] === replicas[start]) continue;
    const middle = (x(start) + x(end)) / 2;
    if (x(end) - x(start) > 8) {
      add(svg, "text", { class: "count", x: middle, y: 14, "text-anchor": "middle" }, replicas[start]);
    }
    start = end;
  }
}

// Each hop as a frame around its blocks, and a line from hop to hop.
function drawRoute(svg, { servers }, route, x, y) {
  const points = [];
  for (const hop of route) {
    const row = servers.findIndex((server) => server.peer === hop.peer);
    // A server that has failed is gone from the picture a little later than from the route.
    if (row < 0) continue;
    const [from, to, middle] = [x(hop.start), x(hop.end), y(row) + ROW / 2 - 1];
    add(svg, "rect", { class: "hop", x: from + 1, y: y(row) + 1, width: Math.max(to - from - 2, 1), height: ROW - 4, rx: 4 });
    points.push(`${from + 3},${middle}`, `${to - 3},${middle}`);
  }
  if (points.length) add(svg, "polyline", { class: "route", points: points.join(" ") });
}

function describe(svg, state, route) {
  svg.querySelector("title").textContent =
    `${state.block_count} blocks and the ${state.servers.length} servers that serve them`;
  const hops = route.map((hop) => `${short(hop.peer)} for ${blocks(hop)}`);
  svg.querySelector("desc").textContent = hops.length ? `The route of the answer: ${hops.join(", then ")}` : "No answer is under way.";
}

function add(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
}
