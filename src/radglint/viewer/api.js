// The server, as the page talks to it: everything below /api/v1, errors as `Problem` with words for the reader.

const PREFIX = "/api/v1";
const KEY_NAME = "radglint-key";
const POLL_MS = [150, 150, 300, 300, 600, 1000];

export class Problem extends Error {
  /** What went wrong: HTTP status (0 without an answer), a short title and a sentence. */
  constructor(status, title, detail) {
    super(detail || title);
    this.status = status;
    this.title = title;
  }
}

let askForKey = async () => null;
let prompt = null; // one question for all requests that wait for the key

/** Sets the function that asks the user for a key: (wasRefused) => key, or null to give up. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

const headers = (more = {}) => {
  const key = sessionStorage.getItem(KEY_NAME);
  return key ? { ...more, "X-API-Key": key } : more;
};

/** Asks for the key and keeps it for this tab; false if the user gives up. */
async function newKey() {
  prompt ??= askForKey(sessionStorage.getItem(KEY_NAME) !== null).finally(() => (prompt = null));
  const key = await prompt;
  if (key === null) return false;
  sessionStorage.setItem(KEY_NAME, key);
  return true;
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(PREFIX + path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw noAnswer();
  }
  if (response.status === 401 && (await newKey())) return request(path, options);
  if (!response.ok) throw problemOf(response.status, await response.text(), response.headers.get("Retry-After"));
  return response;
}

function noAnswer() {
  return new Problem(0, "The server does not answer", "The server does not answer. Is radglint serve still running?");
}

function problemOf(status, body, retryAfter) {
  let parsed = {};
  try {
    parsed = JSON.parse(body);
  } catch {
    parsed = {};
  }
  const detail = typeof parsed.detail === "string" ? parsed.detail : "";
  const wait = retryAfter ? ` Try again in ${retryAfter} s.` : "";
  const known = {
    401: "This server needs a key.",
    413: "The upload is larger than this server takes.",
    429: `Too many requests at once.${wait}`,
    503: `The server is busy.${wait}`,
  };
  return new Problem(status, parsed.title || `Error ${status}`, detail || known[status] || parsed.title || `The server answered ${status}.`);
}

const getJson = async (path, options) => (await request(path, options)).json();

const postJson = (path, body, options = {}) =>
  getJson(path, { ...options, method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const model = () => getJson("/model");

/** All studies, whatever the list's wrapping. */
export async function studies() {
  const answer = await getJson("/studies");
  return Array.isArray(answer) ? answer : (answer.studies ?? answer.items ?? []);
}

export const study = (id, signal) => getJson(`/studies/${id}`, { signal });
export const removeStudy = (id) => request(`/studies/${id}`, { method: "DELETE" });

/** Sends files as one study; `onShare` hears how much is sent, 0 to 1. Resolves with the new study. */
export async function upload(files, onShare) {
  const { status, body, retryAfter } = await send(files, onShare);
  if (status === 401 && (await newKey())) return upload(files, onShare);
  if (status < 200 || status >= 300) throw problemOf(status, body, retryAfter);
  return JSON.parse(body);
}

function send(files, onShare) {
  const form = new FormData();
  for (const file of files) form.append("file", file, file.name);
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest(); // fetch tells nothing of how far an upload is
    call.open("POST", `${PREFIX}/studies`);
    for (const [name, value] of Object.entries(headers())) call.setRequestHeader(name, value);
    call.upload.onprogress = (event) => event.lengthComputable && onShare(event.loaded / event.total);
    call.onload = () =>
      resolve({ status: call.status, body: call.responseText, retryAfter: call.getResponseHeader("Retry-After") });
    call.onerror = () => reject(noAnswer());
    call.send(form);
  });
}

/** Bytes of a path that the server named, or that lies below /api/v1. */
export async function bytes(path, signal) {
  const response = await request(path.startsWith(PREFIX) ? path.slice(PREFIX.length) : path, { signal });
  return response.arrayBuffer();
}

const pause = (ms) => new Promise((go) => setTimeout(go, ms));

/** Asks the server again and again until `isDone(answer)`; `onChange` hears each answer. */
export async function until(ask, isDone, onChange, first) {
  let answer = first ?? (await ask());
  for (let n = 0; ; n++) {
    onChange(answer);
    if (isDone(answer)) return answer;
    await pause(POLL_MS[Math.min(n, POLL_MS.length - 1)]);
    answer = await ask();
  }
}

const ENDED = new Set(["done", "failed", "cancelled"]);

/** Asks a study some queries and waits for the answer: the finished job. */
export async function ask(studyId, queries, { signal, onChange = () => {}, threshold = null } = {}) {
  const body = { study_id: studyId, queries, threshold };
  const first = await postJson("/jobs?wait_s=5", body, { signal });
  const read = () => getJson(`/jobs/${first.id}`, { signal });
  const job = await until(read, (answer) => ENDED.has(answer.state), onChange, first);
  if (job.state === "done") return job;
  if (job.state === "cancelled") throw new Problem(0, "Cancelled", "The question was cancelled.");
  throw new Problem(0, "No answer", job.problem ?? "The model could not answer.");
}

/** Takes back a question that is no longer wanted. */
export const cancelJob = (id) => request(`/jobs/${id}/cancel`, { method: "POST" });

/** Fetches a series from the archive that the server is set up with. */
export const fromArchive = (studyUid, seriesUid) =>
  postJson("/studies/dicomweb", { study_uid: studyUid, series_uid: seriesUid });
