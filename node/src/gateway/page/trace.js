// Where each token of an answer went, and for how long.

import { blocks, short } from "./swarm.js";

const by = (id) => document.getElementById(id);

// Tokens whose times are averaged, so that the figures can be read.
const WINDOW = 16;

export class Trace {
  constructor(swarm) {
    this.swarm = swarm;
    this.begin();
  }

  begin() {
    this.hops = [];
    this.times = [];
    this.last = null;
  }

  // A token has come: {total_ms, hops: [{peer, start, end, compute_ms, queue_ms, network_ms}]}.
  token({ total_ms: total, hops: seen }) {
    const now = performance.now();
    // Of several tokens that came with one step, the first has the time of all.
    if (seen.length) {
      const hops = complete(seen, this.hops);
      const changed = this.hops.length && name(this.hops) !== name(hops);
      if (changed) this.failover(hops, now - this.last);
      if (changed || !this.hops.length) this.swarm.takeRoute(hops);
      if (changed || this.times[0]?.prefill) this.times = [];
      this.times.push({ total, hops, prefill: !this.hops.length });
      if (this.times.length > WINDOW) this.times.shift();
      this.hops = hops;
      this.show();
    }
    this.last = now;
  }

  end() {
    this.last = null;
  }

  failover(hops, gap) {
    const before = new Set(this.hops.map((hop) => hop.peer));
    const after = new Set(hops.map((hop) => hop.peer));
    const gone = this.hops.filter((hop) => !after.has(hop.peer));
    const come = hops.filter((hop) => !before.has(hop.peer));
    const list = (some) => some.map((hop) => `${short(hop.peer)} (${blocks(hop)})`).join(", ") || "nobody new";
    this.swarm.note(
      `Failover: ${list(come)} in the place of ${list(gone)}; the answer stood still for ${Math.round(gap)} ms`,
      "failover",
    );
  }

  show() {
    const count = this.times.length;
    const mean = (of) => this.times.reduce((sum, time) => sum + of(time), 0) / count;
    const total = mean((time) => time.total);
    const what = this.times[0].prefill ? "The prompt and the first token" : `A step, over the last ${count},`;
    by("token-time").textContent = `${what} took ${total.toFixed(1)} ms.`;
    const parts = ["network", "queue", "compute"];
    const hops = this.hops.map((hop, index) => ({
      hop,
      ms: parts.map((part) => mean((time) => time.hops[index][`${part}_ms`])),
    }));
    by("hops").hidden = false;
    by("hops").tBodies[0].replaceChildren(...hops.map(({ hop, ms }) => row([short(hop.peer), blocks(hop), ...ms.map((part) => `${part.toFixed(2)} ms`)])));
    const pieces = hops.flatMap(({ ms }) => ms.map((part, index) => ({ part, kind: parts[index] })));
    by("bar").replaceChildren(
      ...pieces.map(({ part, kind }) => {
        const piece = document.createElement("i");
        piece.className = kind;
        piece.style.flexGrow = part;
        return piece;
      }),
    );
  }
}

// A step that a failure has interrupted goes on from the hop before the one that failed, and is said
// to have gone through the hops from there on alone: those before are as they were.
function complete(seen, before) {
  const apart = (hop) => seen.every((other) => other.end <= hop.start || hop.end <= other.start);
  const rest = before.filter(apart).map((hop) => ({ ...hop, compute_ms: 0, queue_ms: 0, network_ms: 0 }));
  return [...rest, ...seen].sort((a, b) => a.start - b.start);
}

function name(hops) {
  return hops.map((hop) => `${hop.peer} ${blocks(hop)}`).join();
}

function row(texts) {
  const line = document.createElement("tr");
  line.append(
    ...texts.map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    }),
  );
  return line;
}
