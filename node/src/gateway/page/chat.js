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
    const asked = this.add("user", text);
    this.answer(() => {
      this.remove(asked);
      // In front of what was typed meanwhile.
      this.question.value = [text, this.question.value].filter(Boolean).join("\n");
    });
  }

  // The last answer once more.
  again() {
    if (this.abort || !this.turns.length) return;
    const before = this.turns.at(-1);
    this.remove(before);
    this.answer(() => this.show(before));
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

  // An answer of which nothing comes is undone: a question that stayed without one would stand before
  // the next question, and models take turns.
  async answer(undo) {
    const abort = new AbortController();
    this.abort = abort;
    const messages = this.messages();
    const turn = this.add("assistant", "");
    const turns = this.turns;
    this.busy();
    this.trace.begin();
    let tokens = 0;
    let reason = null;
    let said = "";
    let failed = true;
    const started = performance.now();
    try {
      for await (const event of stream("v1/chat/completions", this.body(messages), this.settings.headers(), abort.signal)) {
        if (event.umbel) {
          tokens += 1;
          this.trace.token(event.umbel);
        }
        const choice = event.choices[0];
        reason = choice?.finish_reason ?? reason;
        this.append(turn, choice?.delta.content ?? "");
      }
      said = ended(reason, tokens, started);
      failed = false;
    } catch (error) {
      if (abort.signal.aborted) {
        said = `Stopped after ${tokens} tokens.`;
      } else {
        said = `The answer failed: ${error.message}`;
        turn.element.classList.add("failed");
      }
    }
    this.trace.end();
    if (this.abort === abort) this.abort = null;
    // A new chat may have begun meanwhile.
    if (turns !== this.turns) return;
    if (failed && !turn.text) {
      this.remove(turn);
      undo();
    }
    this.ready(said);
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
    const turn = { role, text, element, said };
    this.show(turn);
    return turn;
  }

  show(turn) {
    by("turns").append(turn.element);
    this.turns.push(turn);
    scrollToEnd();
  }

  // The last turn goes.
  remove(turn) {
    turn.element.remove();
    this.turns.pop();
  }

  append(turn, text) {
    if (!text) return;
    // Who reads what was said before goes on reading it.
    const follows = isAtEnd();
    turn.text += text;
    turn.said.textContent = turn.text;
    if (follows) scrollToEnd();
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

// What is said of an answer that has come to its end.
function ended(reason, tokens, started) {
  if (reason !== "length") return `The answer is complete: ${tokens} tokens in ${seconds(started)} s.`;
  return `The answer is cut after ${tokens} tokens: raise "Most tokens" in the settings, or begin a new chat if the model has no room left.`;
}

function seconds(started) {
  return ((performance.now() - started) / 1000).toFixed(1);
}

function isAtEnd() {
  const turns = by("turns");
  // Browsers scroll by parts of a pixel.
  return turns.scrollHeight - turns.scrollTop - turns.clientHeight < 2;
}

function scrollToEnd() {
  const turns = by("turns");
  turns.scrollTop = turns.scrollHeight;
}
