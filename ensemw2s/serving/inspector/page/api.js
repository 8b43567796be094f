// Requests to the server that this page came from, and the API key where it wants one.

const KEY = "ensemw2s-key";
let askForKey = () => {};

/** What the server said of a request that failed. */
export class Problem extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function onMissingKey(callback) {
  askForKey = callback;
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function send(path, options) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    // Relative, so that the page may lie below a path of a proxy.
    answer = await fetch(`inspector/${path}`, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached: is it still running?", 0);
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  let message = body?.error?.message ?? `the server answered with status ${answer.status}`;
  if (answer.status === 401) {
    // A key that was sent and refused is of no use any more.
    message = key ? "This API key is not accepted." : "This server needs an API key.";
    sessionStorage.removeItem(KEY);
    askForKey();
  } else if (answer.headers.get("retry-after")) {
    message += `; try again in ${answer.headers.get("retry-after")} s`;
  }
  throw new Problem(message, answer.status);
}

export async function get(path, query = {}) {
  const text = new URLSearchParams(query).toString();
  return (await send(text ? `${path}?${text}` : path, {})).json();
}

function posted(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}

export async function post(path, body, signal) {
  return (await send(path, posted(body, signal))).json();
}

/** Server-sent events as they come. A failure in mid-stream is thrown as a Problem. */
export async function* events(path, body, signal) {
  const answer = await send(path, posted(body, signal));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let whole = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (held + value).split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") {
          whole = true;
          continue;
        }
        const event = JSON.parse(data);
        if (event.error) throw new Problem(event.error.message, 500);
        yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Problem) throw error;
    throw new Problem("The connection broke before the answer was whole.", 0);
  }
  if (!whole) throw new Problem("The connection broke before the answer was whole.", 0);
}
