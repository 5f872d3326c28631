// The page: picture, question, answer. The model lives in a worker (worker.js), so that the page never freezes.

const element = (id) => document.getElementById(id);
const [form, file, drop, preview, hint] = ['form', 'file', 'drop', 'preview', 'hint'].map(element);
const [question, ask, stop, remove] = ['question', 'ask', 'stop', 'remove'].map(element);
const [progress, status, answer, speed] = ['progress', 'status', 'answer', 'speed'].map(element);

let picture = null;
let ready = false;

const worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
worker.postMessage({ type: 'load', page: location.href });
worker.onerror = (event) => fail(event.message || 'the worker could not be started');
worker.onmessage = ({ data }) => handlers[data.type](data);

const handlers = {
  progress({ loaded, total }) {
    progress.value = total ? loaded / total : 0;
    status.textContent = `Loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB`;
  },
  ready({ name, seconds }) {
    ready = true;
    progress.hidden = true;
    status.textContent = `${name} is ready (loaded in ${seconds.toFixed(1)} s)`;
    busy(false);
  },
  piece({ text }) {
    answer.textContent += text;
  },
  done({ tokens, first, seconds }) {
    const rest = tokens > 1 ? `, then ${((tokens - 1) / Math.max(seconds - first, 1e-3)).toFixed(1)} tokens/s` : '';
    speed.textContent = `${tokens} tokens; the first after ${first.toFixed(2)} s${rest}`;
    busy(false);
    question.focus();
  },
  failed({ message }) {
    fail(message);
  },
};

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

function fail(message) {
  status.textContent = `Something went wrong: ${message}`;
  status.classList.add('wrong');
  busy(false);
}

function busy(is) {
  ask.disabled = is || !ready;
  stop.hidden = !is;
}

function show(chosen) {
  if (!chosen?.type.startsWith('image/')) return;
  picture = chosen;
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(chosen);
  preview.alt = chosen.name || 'the picture you chose';
  preview.hidden = remove.hidden = false;
  hint.hidden = true;
}

remove.onclick = () => {
  picture = null;
  file.value = '';
  preview.hidden = remove.hidden = true;
  hint.hidden = false;
  file.focus();
};

file.onchange = () => show(file.files[0]);
document.onpaste = (event) => show(event.clipboardData.files[0]);

for (const kind of ['dragenter', 'dragover']) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add('over');
  });
}
document.addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) drop.classList.remove('over');
});
document.addEventListener('drop', (event) => {
  event.preventDefault();
  drop.classList.remove('over');
  show(event.dataTransfer.files[0]);
});

form.onsubmit = (event) => {
  event.preventDefault();
  if (ask.disabled) return;
  answer.textContent = speed.textContent = '';
  status.classList.remove('wrong');
  busy(true);
  worker.postMessage({ type: 'ask', question: question.value, picture });
};

stop.onclick = () => worker.postMessage({ type: 'stop' });
