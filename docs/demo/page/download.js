// Downloads: the files of an artifact, each as its manifest lists it or not at all, resumed where a connection was cut.
//
// A file is kept in the browser's cache under the sha256 in the manifest, so that what was published again is fetched
// again, and nothing else. Knows HTTP and caches; nothing about models.

import { megabytes } from './bytes.js';
import { Fault } from './fault.js';

const CACHE = 'qwen3vl-export'; // and the directory
const ATTEMPTS = 3; // in a row that bring no byte
const PAUSE = 500; // milliseconds before the second attempt

export class Downloads {
  #loaded = new Map(); // bytes by file

  /** `onbytes(loaded)` is told how many bytes of these files there are, `onpause(text)` why there is a pause. */
  constructor(artifact, files, { onbytes, onpause }) {
    this.artifact = artifact;
    this.files = files;
    this.onbytes = onbytes;
    this.onpause = onpause;
  }

  /** As `fetch`, for whatever lies in the artifact's directory; everything else goes to `fetch` itself. */
  fetch = async (address, options) => {
    const { href } = new URL(address, this.artifact.address);
    if (!href.startsWith(this.artifact.address)) return fetch(address, options);
    const file = decodeURIComponent(href.slice(this.artifact.address.length));
    const record = this.artifact.files.get(file);
    if (!record) return new Response(null, { status: 404 });
    if (options?.headers?.get?.('range')) return sizeOf(record);
    const bytes = (await this.#cached(file, record)) ?? (await this.#download(file, record));
    return new Response(new ReadableStream({ start: (stream) => give(stream, bytes) }), {
      headers: { 'content-length': String(bytes.length) },
    });
  };

  /** The bytes of the files that no visit before this one has left here. */
  async missing() {
    const kept = new Set((await (await this.#cache())?.keys())?.map((request) => request.url));
    const records = this.files.map((file) => [file, this.artifact.files.get(file)]);
    return records.reduce((sum, [file, record]) => sum + (kept.has(this.#key(file, record)) ? 0 : record.bytes), 0);
  }

  /** Forgets what the manifest no longer lists. */
  async forgetOld() {
    const cache = await this.#cache();
    const keys = new Set([...this.artifact.files].map(([file, record]) => this.#key(file, record)));
    for (const request of (await cache?.keys()) ?? []) {
      if (!keys.has(request.url)) await cache.delete(request);
    }
  }

  async #cache() {
    try {
      return await caches.open(`${CACHE} ${this.artifact.address}`);
    } catch {
      return null; // no secure page, or the browser forbids it
    }
  }

  #key(file, { sha256 }) {
    return `${this.artifact.address}${encodeURI(file)}?sha256=${sha256}`;
  }

  #count(file, loaded) {
    if (!this.files.includes(file)) return;
    this.#loaded.set(file, loaded);
    this.onbytes([...this.#loaded.values()].reduce((sum, bytes) => sum + bytes, 0));
  }

  async #cached(file, record) {
    const response = await (await this.#cache())?.match(this.#key(file, record));
    if (!response) return null;
    const bytes = new Uint8Array(await response.arrayBuffer());
    if (bytes.length !== record.bytes) return null;
    this.#count(file, bytes.length);
    return bytes;
  }

  async #download(file, record) {
    const bytes = new Uint8Array(record.bytes);
    let loaded = 0;
    for (let attempt = 1; ; attempt += 1) {
      const before = loaded;
      const cut = await this.#read(file, bytes, loaded, (count) => {
        loaded = count;
        this.#count(file, count);
      });
      if (!cut) break;
      if (loaded > before) attempt = 1;
      const where = `${file}: the connection was cut after ${megabytes(loaded)} of ${megabytes(bytes.length)} MB`;
      if (attempt === ATTEMPTS) throw new Fault(`${where}. Check the connection, then try again`);
      this.onpause(where);
      await new Promise((resume) => setTimeout(resume, PAUSE * attempt));
    }
    await verify(file, bytes, record);
    const cache = await this.#cache();
    await cache?.put(this.#key(file, record), new Response(bytes)).catch(() => null); // no room: then without
    return bytes;
  }

  /** Fills `bytes` from `loaded` on; returns whether the connection was cut. */
  async #read(file, bytes, loaded, oncount) {
    let response;
    try {
      const headers = loaded ? { range: `bytes=${loaded}-` } : {};
      response = await fetch(this.artifact.address + encodeURI(file), { cache: 'no-cache', headers });
    } catch {
      return true;
    }
    if (!response.ok) throw refused(file, response);
    let skip = response.status === 206 ? 0 : loaded; // a server may ignore ranges
    let at = loaded;
    let received = 0;
    const reader = response.body.getReader();
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch {
        return true;
      }
      if (part.done && at === bytes.length) return false;
      if (part.done && isWhole(response, received)) throw altered(file, `it has ${received} bytes`);
      if (part.done) return true;
      received += part.value.length;
      const fresh = part.value.subarray(Math.min(skip, part.value.length));
      skip -= part.value.length - fresh.length;
      if (at + fresh.length > bytes.length) throw altered(file, `it is larger than ${bytes.length} bytes`);
      bytes.set(fresh, at);
      at += fresh.length;
      oncount(at);
    }
  }
}

/** Whether a response that ended had all that the server meant to send. */
function isWhole({ headers }, received) {
  return headers.get('content-length') === String(received);
}

function sizeOf({ bytes }) {
  return new Response(null, { status: 206, headers: { 'content-range': `bytes 0-0/${bytes}` } });
}

function give(stream, bytes) {
  stream.enqueue(bytes);
  stream.close();
}

/** Compares the sha256. A page that is not secure has no digests; there, the size alone was compared. */
async function verify(file, bytes, { sha256 }) {
  if (!globalThis.crypto?.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  const hex = [...digest].map((byte) => byte.toString(16).padStart(2, '0')).join('');
  if (hex !== sha256) throw altered(file, 'its sha256 differs');
}

function altered(file, how) {
  return new Fault(`${file} is not the file that manifest.json lists: ${how}. Try again, or publish it again`);
}

function refused(file, { status }) {
  const missing = [404, 410].includes(status);
  const what = missing ? `is missing on the server (${status})` : `is not given by the server (${status})`;
  return new Fault(`${file} ${what}. ${missing ? 'Publish the artifact again' : 'Try again later'}`);
}
