// Requests to the server, its errors in plain words, and the API key.

const KEY = "ray-l4-key";
const PATIENCE = 150000; // milliseconds: more than the server's own limit

/** An error that a person is told. */
class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Send a request and return the JSON of its answer. Throws Refused. */
async function send(method, path, body) {
  for (;;) {
    const response = await fetched(method, path, body);
    const value = await response.json().catch(() => null);
    if (response.ok && value !== null) return value;
    if (response.status !== 401) throw new Refused(explained(response, value), response.status);
    await askForKey(sessionStorage.getItem(KEY) !== null);
  }
}

async function fetched(method, path, body) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE),
    });
  } catch (error) {
    if (error.name === "TimeoutError") throw new Refused("The server did not answer in time. Try again later.");
    throw new Refused("The server cannot be reached: it may be stopped or restarting. What you typed is kept here.");
  }
}

function explained(response, value) {
  const said = value?.error?.message ?? `The server answered with status ${response.status}.`;
  const wait = response.headers.get("Retry-After");
  const later = wait ? ` Try again in ${count(Number(wait), "second")}.` : " Try again later.";
  const sentence = said.charAt(0).toUpperCase() + said.slice(1) + (/[.!?]$/.test(said) ? "" : ".");
  if (response.status === 413) return `That is too long. ${sentence} Shorten the text.`;
  if (response.status === 429) return `Too many requests.${later}`;
  if (response.status === 503) return `Not now: ${sentence}${later}`;
  return sentence;
}

let asking = null;

/** Let the person type an API key; several requests that need one share the question. */
function askForKey(wrong) {
  if (asking === null) {
    const dialog = byId("key-dialog");
    byId("key-note").textContent = wrong
      ? "The server does not know this key. Try another one."
      : "This server asks for a key. It is kept in this tab until you close it.";
    asking = new Promise((resolve) => {
      byId("key-form").onsubmit = (event) => {
        event.preventDefault();
        sessionStorage.setItem(KEY, byId("key").value.trim());
        byId("key").value = "";
        dialog.close();
      };
      dialog.onclose = () => {
        asking = null;
        resolve();
      };
    });
    dialog.oncancel = (event) => event.preventDefault(); // nothing works without one
    dialog.showModal();
  }
  return asking;
}
