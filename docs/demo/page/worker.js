// The worker: loads an artifact as the page's address says and answers the page's questions.
//
//   ?model=URL    directory of the artifact; the page's own unless said
//   ?device=NAME  webgpu or wasm; what suits this browser unless said
//   ?dtype=NAME   one of its precisions, q4 for instance; the default one unless said
//   ?library=URL  directory of @huggingface/transformers; a CDN's unless said
//   ?wasm=URL     directory of onnxruntime-web's files; where the library finds them unless said
//
// Messages to it: load, go, ask, stop. Messages from it: phase, plan, progress, ready, piece, done, failed. After a
// `failed` that is not `usable` it is of no more use: onnxruntime-web hangs after a run that failed.

import { readArtifact } from './artifact.js';
import { choose, devicesHere, obstacleTo, probeGpu } from './choice.js';
import { Downloads } from './download.js';
import { explain, Fault } from './fault.js';
import { Model } from './model.js';

const LIBRARY = 'https://cdn.jsdelivr.net/npm/@huggingface/transformers@4.3.2';
const LARGE = 500e6; // bytes that are not downloaded before somebody agreed
const RUNTIME_BYTES = 500e6; // what onnxruntime-web and the activations take besides the weights

let model;
let agree;
const agreed = new Promise((resolve) => {
  agree = resolve;
});

const say = (type, message = {}) => postMessage({ type, ...message });
const fail = (error) => say('failed', { message: explain(error), usable: error instanceof Fault && Boolean(model) });

// transformers.js lets go of the promises of some downloads; what becomes of them is said here.
addEventListener('unhandledrejection', (event) => {
  event.preventDefault();
  fail(event.reason);
});

const handlers = { load, ask, go: () => agree(), stop: () => model?.stop() };

onmessage = async ({ data }) => {
  try {
    await handlers[data.type](data);
  } catch (error) {
    fail(error);
  }
};

async function load({ page, agreed: already }) {
  const start = performance.now();
  const address = new URL(page);
  const given = (name) => address.searchParams.get(name) ?? '';
  const directory = new URL(given('model') || '.', address);
  directory.search = directory.hash = '';
  directory.pathname = directory.pathname.replace(/\/*$/, '/');

  say('phase', { text: 'Reading the manifest' });
  const [artifact, gpu] = await Promise.all([readArtifact(directory.href), probeGpu()]);
  const choice = choose({ device: given('device'), dtype: given('dtype') }, artifact, gpu);
  const { device, precision } = choice;
  const total = precision.bytes;
  const downloads = new Downloads(artifact, precision.files, {
    onbytes: (loaded) => say('progress', { loaded, total }),
    onpause: (text) => say('phase', { text: `${text}. Trying again` }),
  });
  const bytes = await downloads.missing();
  say('plan', {
    name: artifact.name,
    device,
    devices: devicesHere(gpu),
    dtype: precision.name,
    precisions: artifact.precisions
      .filter((entry) => !obstacleTo(entry, device, gpu))
      .map(({ name, text, bytes: size }) => ({ name, text, bytes: size })),
    bytes,
    memory: 2 * total + RUNTIME_BYTES, // a file's buffer and the session's copy
    asks: bytes > LARGE && !already,
  });
  if (bytes > LARGE && !already) await agreed;

  say('phase', { text: 'Loading transformers.js' });
  const library = await importLibrary(sameOrigin('library', given('library'), address));
  say('progress', { loaded: 0, total });
  model = await Model.load(library, downloads, choice, sameOrigin('wasm', given('wasm'), address));
  say('ready', { seconds: (performance.now() - start) / 1000 });
  await downloads.forgetOld().catch(() => null); // it only saves room
}

/** The directory that a parameter names, '' if it names none. A link must not bring another site's code here. */
function sameOrigin(name, value, page) {
  if (!value) return '';
  const { href, origin } = new URL(`${value.replace(/\/*$/, '')}/`, page);
  if (origin !== page.origin) throw new Fault(`?${name}=${value}: code is loaded from ${page.origin} only`);
  return href;
}

async function importLibrary(folder) {
  const file = folder ? `${folder}dist/transformers.min.js` : LIBRARY;
  try {
    return await import(file);
  } catch {
    throw new Fault(`transformers.js cannot be loaded from ${file}. Check the connection, or serve it: ?library=`);
  }
}

async function ask(conversation) {
  say('done', await model.answer(conversation, (text) => say('piece', { text })));
}
