// The picture: dropped, pasted or chosen; shown if this browser can read it, refused by name if it cannot.

const element = (id) => document.getElementById(id);
const [file, drop, preview, hint] = ['file', 'drop', 'preview', 'hint'].map(element);
const [title, remove, complaint] = ['name', 'remove', 'complaint'].map(element);
const ADVICE = 'Choose a JPEG, PNG, WebP or GIF file.';
const INVITATION = [...hint.childNodes];

/** The picture that questions are about: null or { id, blob, name, url }. */
export let picture = null;

let onchange = () => {};
let picks = 0;

/** `listener` is called whenever there is another picture or none any more. */
export function whenChanged(listener) {
  onchange = listener;
}

async function pick(blob) {
  if (!blob) return complain(`That is no file. ${ADVICE}`);
  const id = (picks += 1);
  const name = blob.name || 'The picture';
  complain('');
  if (!picture) hint.textContent = `Reading ${name}…`;
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    if (id !== picks) return undefined;
    hint.replaceChildren(...INVITATION);
    return complain(`${name} is not a picture that this browser reads. ${ADVICE}`);
  }
  bitmap.close();
  if (id === picks) show({ id, blob, name, url: URL.createObjectURL(blob) });
  return undefined;
}

function show(chosen) {
  picture = chosen;
  preview.src = chosen?.url ?? '';
  preview.alt = title.textContent = chosen?.name ?? '';
  preview.hidden = remove.hidden = !chosen;
  hint.hidden = Boolean(chosen);
  hint.replaceChildren(...INVITATION);
  if (!chosen) preview.removeAttribute('src');
  onchange();
}

function complain(text) {
  complaint.textContent = text;
}

remove.onclick = () => {
  picks += 1;
  complain('');
  show(null);
  file.focus();
};

file.onchange = () => {
  if (file.files.length) pick(file.files[0]);
  file.value = ''; // so that the same file can be chosen again
};

document.addEventListener('paste', (event) => {
  if (event.clipboardData.files.length) pick(event.clipboardData.files[0]);
});

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
  pick(event.dataTransfer.files[0]);
});
