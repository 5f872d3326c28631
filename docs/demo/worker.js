// The model, in a worker: loads an artifact with transformers.js and answers questions about pictures.
//
// The page's address says what to load:
//   ?model=URL    directory of the artifact; the page's own unless said
//   ?dtype=NAME   one of its precisions, q4 for instance; the default one unless said
//   ?library=URL  directory of @huggingface/transformers; a CDN's unless said
//   ?wasm=URL     directory of onnxruntime-web's files; where the library finds them unless said

const MODEL = 'artifact'; // transformers.js wants a name; where it lies is said by `env`
const LIBRARY = 'https://cdn.jsdelivr.net/npm/@huggingface/transformers@4.3.2';

let library, processor, model, stopping;

onmessage = async ({ data }) => {
  try {
    if (data.type === 'load') await load(new URL(data.page));
    if (data.type === 'ask') await answer(data);
    if (data.type === 'stop') stopping?.interrupt();
  } catch (error) {
    postMessage({ type: 'failed', message: error?.message ?? String(error) });
  }
};

async function load(page) {
  const start = performance.now();
  const given = (name, otherwise) => page.searchParams.get(name) ?? otherwise;
  const address = new URL(given('model', '.'), page).href.replace(/\/*$/, '/');
  const name = decodeURIComponent(address.match(/([^/]+)\/$/)[1]);
  const folder = given('library', '');
  const file = folder ? new URL(`${folder}/dist/transformers.min.js`, page).href : LIBRARY;
  library = await import(file);
  const { env, AutoProcessor, Qwen3VLForConditionalGeneration } = library;
  env.allowLocalModels = false; // by its word "local" is a path; this way any address will do
  env.remoteHost = address;
  env.remotePathTemplate = '.'; // the directory itself, whatever it is called
  env.useBrowserCache = address.startsWith('https:'); // what a local server holds may have been rebuilt
  if (given('wasm', '')) env.backends.onnx.wasm.wasmPaths = new URL(`${given('wasm', '')}/`, page).href;

  const files = new Map();
  const progress_callback = ({ status, file, loaded, total }) => {
    if (status !== 'progress') return;
    files.set(file, { loaded, total });
    const sum = (key) => [...files.values()].reduce((all, one) => all + (one[key] || 0), 0);
    postMessage({ type: 'progress', loaded: sum('loaded'), total: sum('total') });
  };
  const options = { progress_callback, ...(given('dtype', '') && { dtype: given('dtype', '') }) };
  processor = await AutoProcessor.from_pretrained(MODEL, options);
  model = await Qwen3VLForConditionalGeneration.from_pretrained(MODEL, options);
  postMessage({ type: 'ready', name, seconds: (performance.now() - start) / 1000 });
}

/** The picture on white and within the pixel budget: transformers.js shrinks without smoothing, a canvas does not. */
async function read(blob) {
  const bitmap = await createImageBitmap(blob);
  const budget = processor.image_processor.config.size.longest_edge;
  const scale = Math.min(1, Math.sqrt(budget / (bitmap.width * bitmap.height)));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.floor(side * scale)));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d');
  context.fillStyle = 'white';
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, 0, 0, width, height);
  return library.RawImage.fromCanvas(canvas).rgb();
}

async function answer({ question, picture }) {
  const { InterruptableStoppingCriteria, Tensor, TextStreamer } = library;
  const content = [...(picture ? [{ type: 'image' }] : []), { type: 'text', text: question }];
  const prompt = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true });
  const inputs = await processor(prompt, picture ? await read(picture) : null);
  // Without a picture transformers.js continues from a wrong position, unless it is told that there are none.
  inputs.image_grid_thw ??= new Tensor('int64', new BigInt64Array(0), [0, 3]);

  const start = performance.now();
  const elapsed = () => (performance.now() - start) / 1000;
  let tokens = 0;
  let first = 0;
  const streamer = new TextStreamer(processor.tokenizer, {
    skip_prompt: true,
    skip_special_tokens: true,
    callback_function: (text) => postMessage({ type: 'piece', text }),
    token_callback_function: () => {
      tokens += 1;
      if (tokens === 1) first = elapsed();
    },
  });
  stopping = new InterruptableStoppingCriteria();
  await model.generate({ ...inputs, max_new_tokens: 512, do_sample: false, streamer, stopping_criteria: stopping });
  postMessage({ type: 'done', tokens, first, seconds: elapsed() });
}
