// The conversation: ask, stop, ask again.

import { stream } from "./stream.js";

const by = (id) => document.getElementById(id);

export class Chat {
  constructor(settings, trace) {
    this.settings = settings;
    this.trace = trace;
    this.model = "";
    this.turns = [];
    this.abort = null;
    this.question = by("question");
    by("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    this.question.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.ask();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
    });
    by("stop").addEventListener("click", () => this.stop());
    by("again").addEventListener("click", () => this.again());
    by("new").addEventListener("click", () => this.begin());
  }

  ask() {
    const text = this.question.value.trim();
    if (!text || this.abort) return;
    this.question.value = "";
    this.add("user", text);
    this.answer();
  }

  // The last answer once more.
  again() {
    if (this.abort || !this.turns.length) return;
    if (this.turns.at(-1).role === "assistant") this.turns.pop().element.remove();
    this.answer();
  }

  begin() {
    this.stop();
    this.turns = [];
    by("turns").replaceChildren();
    this.ready("");
    this.question.focus();
  }

  stop() {
    this.abort?.abort();
  }

  async answer() {
    const abort = new AbortController();
    this.abort = abort;
    const messages = this.messages();
    const turn = this.add("assistant", "");
    const turns = this.turns;
    this.busy();
    this.trace.begin();
    let tokens = 0;
    let said = "";
    const started = performance.now();
    try {
      for await (const event of stream("v1/chat/completions", this.body(messages), this.settings.headers(), abort.signal)) {
        if (event.umbel) {
          tokens += 1;
          this.trace.token(event.umbel);
        }
        this.append(turn, event.choices[0]?.delta.content ?? "");
      }
      said = `The answer is complete: ${tokens} tokens in ${seconds(started)} s.`;
    } catch (error) {
      if (abort.signal.aborted) {
        said = `Stopped after ${tokens} tokens.`;
      } else {
        said = `The answer failed: ${error.message}`;
        turn.element.classList.add("failed");
        if (!turn.text) {
          turn.element.remove();
          turns.splice(turns.indexOf(turn), 1);
        }
      }
    }
    this.trace.end();
    if (this.abort === abort) this.abort = null;
    // A new chat may have begun meanwhile.
    if (turns === this.turns) this.ready(said);
  }

  messages() {
    const system = this.settings.text("system");
    const first = system ? [{ role: "system", content: system }] : [];
    return first.concat(this.turns.map(({ role, text }) => ({ role, content: text })));
  }

  body(messages) {
    return {
      model: this.model,
      messages,
      temperature: this.settings.number("temperature"),
      top_p: this.settings.number("top_p"),
      max_tokens: this.settings.number("max_tokens"),
      seed: this.settings.number("seed"),
      stream: true,
      trace: true,
    };
  }

  add(role, text) {
    const element = document.createElement("li");
    element.className = role;
    const who = document.createElement("span");
    who.className = "who";
    who.textContent = role === "user" ? "You" : "Model";
    const said = document.createElement("p");
    said.className = "said";
    said.textContent = text;
    element.append(who, said);
    by("turns").append(element);
    const turn = { role, text, element, said };
    this.turns.push(turn);
    scrollToEnd();
    return turn;
  }

  append(turn, text) {
    if (!text) return;
    turn.text += text;
    turn.said.textContent = turn.text;
    scrollToEnd();
  }

  busy() {
    by("send").disabled = true;
    by("again").disabled = true;
    by("stop").disabled = false;
    by("status").textContent = "Answering…";
  }

  ready(said) {
    by("send").disabled = false;
    by("again").disabled = !this.turns.length;
    by("stop").disabled = true;
    by("status").textContent = said;
  }
}

function seconds(started) {
  return ((performance.now() - started) / 1000).toFixed(1);
}

function scrollToEnd() {
  const turns = by("turns");
  turns.scrollTop = turns.scrollHeight;
}
