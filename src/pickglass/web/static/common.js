// What all pages share: requests, messages, the chosen model, the theme, small helpers for elements and numbers.

const TOKEN = "pickglass.token";
const MODEL = "pickglass.model";

export const byId = id => document.getElementById(id);

// ---- elements ----

// element("button", {type: "button", className: "x", onclick: f, "aria-label": "y", data: {row: 1}}, "text", child, ...)
export const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "data") Object.assign(made.dataset, value);
    else if (key in made && !key.startsWith("aria-") && key !== "list" && key !== "form") made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
};

// ---- requests ----

// The answer as JSON (or as a Blob with {as: "blob"}); what goes wrong is an Error whose message a person can read.
export const api = async (path, {method = "GET", json, body, as = "json", signal} = {}) => {
  const headers = {};
  const token = localStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (json !== undefined) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(json);
  }
  let answer;
  try {
    answer = await fetch(path, {method, headers, body, signal, credentials: "same-origin"});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.status === 401) {
    location.assign("/login");
    throw new Error("Please sign in.");
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    const error = new Error(told.error || `The server answers ${answer.status}.`);
    error.status = answer.status;
    error.retryAfter = Number(answer.headers.get("Retry-After")) || null;
    throw error;
  }
  return as === "blob" ? answer.blob() : answer.json();
};

export const signIn = async token => {
  localStorage.setItem(TOKEN, token);
  await api("/api/session", {method: "POST"});
};

// ---- messages ----

// A sentence at the top of the page; screen readers say it. Errors stay until they are closed.
export const say = (sentence, kind = "note") => {
  const message = element("p", {className: `message ${kind}`}, sentence);
  message.append(element("button", {type: "button", "aria-label": "Close this message", onclick: () => message.remove()}, "×"));
  byId("messages").append(message);
  if (kind !== "error") setTimeout(() => message.remove(), 6000);
};

// Run an async function; what goes wrong is said at the top of the page.
export const attempt = async action => {
  try {
    return await action();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, "error");
    return undefined;
  }
};

// ---- numbers ----

export const percent = share => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`);
export const number = (value, digits = 4) => (value === null || value === undefined ? "–" : Number(value).toPrecision(digits));

// ---- keys ----

// keys({g: () => ..., ArrowLeft: () => ...}): single keys that work unless somebody types, or holds Ctrl, Alt or Meta.
export const keys = actions => {
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const typing = event.target.closest("input:not([type=range],[type=checkbox],[type=radio],[type=file]), textarea, select");
    const onSlider = event.target.closest("input[type=range], [role=slider]") && event.key.startsWith("Arrow");
    const action = actions[event.key];
    if (!action || typing || onSlider) return;
    event.preventDefault();
    action(event);
  });
};

// ---- the frame ----

// The name of the chosen model; onModel(f) calls f now and whenever another one is chosen.
export const model = () => byId("model").value;
export const onModel = action => {
  byId("model").addEventListener("change", action);
  action();
};

export const start = () => {
  byId("theme").onclick = () => {
    const root = document.documentElement;
    const next = getComputedStyle(root).colorScheme === "dark" ? "light" : "dark";
    root.dataset.theme = next;
    localStorage.setItem("pickglass.theme", next);
  };
  const select = byId("model");
  if (!select) return;
  const kept = localStorage.getItem(MODEL);
  if ([...select.options].some(option => option.value === kept)) select.value = kept;
  select.addEventListener("change", () => localStorage.setItem(MODEL, select.value));
};
