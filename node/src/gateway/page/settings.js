// What the user has set, kept in this browser; a key is kept for as long as the tab is open.

const STORE = "umbel-settings";

export class Settings {
  constructor(form) {
    this.form = form;
    const kept = { ...read(localStorage), ...read(sessionStorage) };
    for (const [name, value] of Object.entries(kept)) {
      if (form.elements[name]) form.elements[name].value = value;
    }
    form.addEventListener("input", () => this.keep());
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  text(name) {
    return this.form.elements[name].value.trim();
  }

  // The number, or nothing where there is none.
  number(name) {
    const text = this.text(name);
    return text === "" || Number.isNaN(Number(text)) ? undefined : Number(text);
  }

  headers() {
    const key = this.text("key");
    return key ? { authorization: `Bearer ${key}` } : {};
  }

  keep() {
    const { key, ...others } = Object.fromEntries(new FormData(this.form));
    write(localStorage, others);
    write(sessionStorage, { key });
  }
}

function read(store) {
  try {
    return JSON.parse(store.getItem(STORE)) ?? {};
  } catch {
    return {};
  }
}

function write(store, values) {
  try {
    store.setItem(STORE, JSON.stringify(values));
  } catch {
    // A browser that keeps nothing has the defaults the next time.
  }
}
