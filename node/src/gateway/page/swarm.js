// The live picture of the swarm: who serves which blocks, and how they are.

import { complaint } from "./stream.js";
import { draw } from "./strip.js";

// How often the gateway is asked: it asks the swarm once a second at most.
const INTERVAL_MS = 1000;
// After so long the last picture is an old one.
const LATE_MS = 5000;
// The gateway may take 40 s for one, where peers have to be found and no answer comes from any.
const TIMEOUT_MS = 60000;
// Lines of what has happened.
const EVENTS_MAX = 100;

const by = (id) => document.getElementById(id);

export class Swarm {
  constructor(settings) {
    this.settings = settings;
    this.state = null;
    // Why there is no newer picture, and when this one was taken.
    this.error = "";
    this.seen = "";
    this.route = [];
    this.onModel = () => {};
  }

  async follow() {
    for (;;) {
      // Nobody looks at a tab in the background.
      if (!document.hidden) await this.look();
      await new Promise((resolve) => setTimeout(resolve, INTERVAL_MS));
    }
  }

  async look() {
    const late = setTimeout(() => this.fail("no answer yet"), LATE_MS);
    try {
      const signal = AbortSignal.timeout(TIMEOUT_MS);
      const response = await fetch("swarm", { headers: this.settings.headers(), signal });
      if (!response.ok) throw new Error(await complaint(response));
      this.take(await response.json());
    } catch (error) {
      this.fail(error.message);
    } finally {
      clearTimeout(late);
    }
  }

  // There is no newer picture.
  fail(why) {
    this.error = why;
    this.show();
  }

  take(state) {
    const before = this.state;
    this.state = state;
    this.error = "";
    this.seen = new Date().toLocaleTimeString();
    if (before) this.compare(before, state);
    if (!before || before.model !== state.model) this.onModel(state.model);
    this.show();
  }

  // Says who has come, gone, moved or begun to leave.
  compare(before, after) {
    const old = new Map(before.servers.map((server) => [server.peer, server]));
    for (const server of after.servers) {
      const was = old.get(server.peer);
      old.delete(server.peer);
      const serves = !server.draining && (!was || (was.draining && blocks(was) === blocks(server)));
      if (serves) this.note(`${short(server.peer)} has come and serves ${blocks(server)}`);
      else if (was && blocks(was) !== blocks(server)) {
        this.note(`${short(server.peer)} has moved from ${blocks(was)} to ${blocks(server)}`);
      } else if (was && !was.draining && server.draining) {
        this.note(`${short(server.peer)} is about to leave ${blocks(server)}`);
      }
    }
    for (const server of old.values()) {
      this.note(`${short(server.peer)} is gone, which served ${blocks(server)}`);
    }
  }

  note(text, kind = "") {
    const line = document.createElement("li");
    line.className = kind;
    line.textContent = `${new Date().toLocaleTimeString()} ${text}`;
    const events = by("events");
    events.prepend(line);
    while (events.children.length > EVENTS_MAX) events.lastChild.remove();
  }

  // The hops of the answer that is under way, or was the last one.
  takeRoute(route) {
    this.route = route;
    this.show();
  }

  show() {
    const { state, error, route } = this;
    const since = this.seen && ` since ${this.seen}`;
    by("coverage").textContent = error ? `No picture of the swarm${since}: ${error}` : coverage(state);
    by("swarm").classList.toggle("stale", Boolean(error));
    if (!state) return;
    draw(by("strip"), state, route);
    const onRoute = new Map(route.map((hop, index) => [hop.peer, index + 1]));
    by("servers").tBodies[0].replaceChildren(...state.servers.map((server) => row(server, onRoute.get(server.peer))));
  }
}

function coverage(state) {
  if (!state) return "";
  if (state.local) return `All ${state.block_count} blocks are computed in the process of the gateway.`;
  const missing = state.unserved;
  const nobody = missing.length ? ` Nobody serves ${missing.join(", ")}.` : "";
  return `${state.servers.length} servers for ${state.block_count} blocks.${nobody}`;
}

function row(server, hop) {
  const state = [
    hop ? `hop ${hop}` : "",
    server.draining && !server.moving_to ? "leaving" : "",
    server.moving_to ? `to ${server.moving_to.join("..")}` : "",
  ];
  const cells = [
    short(server.peer),
    blocks(server),
    server.decode_tokens_per_second.toFixed(1),
    server.round_trip_ms === null ? "?" : server.round_trip_ms.toFixed(1),
    server.queue_depth,
    server.kv_tokens_free,
    state.filter(Boolean).join(", "),
  ];
  const line = document.createElement("tr");
  if (hop) line.className = "on-route";
  line.title = `${server.peer}, version ${server.version}`;
  line.append(
    ...cells.map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    }),
  );
  return line;
}

// The end of a name: all names begin alike.
export function short(peer) {
  return peer ? `…${peer.slice(-6)}` : "this process";
}

export function blocks({ start, end }) {
  return `${start}..${end}`;
}
