// The page: what is asked of the model, and the worker it lives in (worker.js), which is replaced when it is of no use.

import * as loading from './loading.js';
import { picture, whenChanged } from './picture.js';
import * as transcript from './transcript.js';

const element = (id) => document.getElementById(id);
const [form, question, ask, stop, clear] = ['form', 'question', 'ask', 'stop', 'clear'].map(element);
const [go, again] = ['go', 'again'].map(element);

const AGAIN = 'The model is loaded again. If this happens again, take another device, precision or picture';

let worker;
let ready = false;
let answering = false;
let agreed = false; // to a large download

const handlers = {
  phase: ({ text }) => loading.phase(text),
  plan: loading.planned,
  progress: loading.loaded,
  ready({ seconds }) {
    ready = true;
    loading.ready(seconds);
    update();
  },
  piece: ({ text }) => transcript.grow(text),
  done(message) {
    transcript.finish(facts(message));
    answered();
  },
  failed({ message, usable }) {
    if (!answering) return giveUp(message);
    transcript.fail(usable ? message : `${message.replace(/\.$/, '')}. ${AGAIN}`);
    answered();
    return usable || start('Starting the model again');
  },
};

/** Starts a worker that loads the model, in place of the one there is. */
function start(text) {
  worker?.terminate();
  ready = false;
  update();
  loading.phase(text);
  worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
  worker.onmessage = ({ target, data }) => target === worker && handlers[data.type](data);
  worker.onerror = (event) => {
    event.preventDefault();
    const what = event.message ? `The worker failed (${event.message})` : "The page's own files cannot be loaded";
    if (event.target === worker) handlers.failed({ message: `${what}. Try again` });
  };
  worker.postMessage({ type: 'load', page: location.href, agreed });
}

function giveUp(message) {
  worker?.terminate();
  worker = null; // whatever it has said since is not listened to
  ready = false;
  update();
  loading.failed(message);
}

function facts({ tokens, first, seconds, shrunk }) {
  const rate = tokens > 1 ? `, then ${((tokens - 1) / Math.max(seconds - first, 1e-3)).toFixed(1)} tokens/s` : '';
  const count = tokens === 1 ? '1 token' : `${tokens} tokens`;
  const size = shrunk ? `; the picture was shrunk to ${shrunk.width}×${shrunk.height}` : '';
  return tokens ? `${count}; the first after ${first.toFixed(2)} s${rate}${size}` : 'The model answered nothing';
}

function answered() {
  answering = false;
  const left = [document.body, ask, stop].includes(document.activeElement);
  update();
  if (left) question.focus({ preventScroll: true });
}

function update() {
  ask.disabled = answering || !ready;
  ask.hidden = answering;
  stop.hidden = !answering;
  clear.disabled = answering;
  stop.textContent = 'Stop';
}

form.onsubmit = (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (ask.disabled || !text) return;
  answering = true;
  update();
  worker.postMessage({
    type: 'ask',
    turns: transcript.begin(text, picture),
    picture: picture && { id: picture.id, blob: picture.blob },
  });
  question.select();
};

stop.onclick = () => {
  if (stop.textContent === 'Stop') {
    stop.textContent = 'Stop now'; // a step of a large model takes long, and one that hangs takes forever
    worker.postMessage({ type: 'stop' });
    return;
  }
  transcript.fail('Stopped');
  answered();
  start('Starting the model again');
};

clear.onclick = () => {
  transcript.empty();
  question.focus();
};

go.onclick = () => {
  agreed = true;
  worker.postMessage({ type: 'go' });
};

again.onclick = () => start('Trying again');

whenChanged(() => {
  const change = picture ? 'Another picture' : 'No picture any more';
  transcript.forget(`${change}: the model does not know what is above`);
});

start('Starting');
