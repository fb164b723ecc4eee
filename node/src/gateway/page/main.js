// What the page is made of, put together.

import { Chat } from "./chat.js";
import { Settings } from "./settings.js";
import { Swarm } from "./swarm.js";
import { Trace } from "./trace.js";

const by = (id) => document.getElementById(id);

const settings = new Settings(by("settings-form"));
const swarm = new Swarm(settings);
const trace = new Trace(swarm);
const chat = new Chat(settings, trace);

swarm.onModel = (name) => {
  by("model").textContent = name;
  chat.model = name;
};

// On a narrow screen one of the two is shown at a time.
for (const view of ["chat", "swarm"]) {
  by(`show-${view}`).addEventListener("click", () => {
    document.querySelector("main").dataset.view = view;
    for (const other of ["chat", "swarm"]) {
      by(`show-${other}`).setAttribute("aria-pressed", String(other === view));
    }
    swarm.show();
  });
}

// The strip is drawn as wide as it is shown.
addEventListener("resize", () => swarm.show());

swarm.follow();
