// The model in transformers.js: loaded once, then asked; it keeps the keys and values of a conversation that goes on.

import { mostPixels } from './choice.js';
import { Fault } from './fault.js';

const MODEL = 'artifact'; // transformers.js wants a name; where it lies is said by `env`
const NEW_TOKENS = 512; // of an answer, at most
const PAUSE = 100; // milliseconds between two looks at messages
// On its highest level onnxruntime restores float16 weights in float32 when it loads them for WebAssembly, and keeps those.
const SESSION_OPTIONS = { wasm: { graphOptimizationLevel: 'layout' } };
const PLACEHOLDERS = /<\|(?:image_pad|video_pad|vision_start|vision_end|im_start|im_end)\|>/;

export class Model {
  #held = null; // { ids, cache, picture } of the last answer
  #stopping = null;

  constructor(library, processor, model, pixels) {
    Object.assign(this, { library, processor, model, pixels });
    // The steps of an answer are one task of the worker; messages, such as one that says stop, wait for its end.
    const { forward } = model;
    let paused = 0;
    model.forward = async (inputs) => {
      if (performance.now() - paused > PAUSE) {
        await new Promise((resume) => setTimeout(resume));
        paused = performance.now();
      }
      // Where a conversation goes on, transformers.js passes null for pixels and would encode that.
      return forward.call(model, { ...inputs, pixel_values: inputs.pixel_values ?? undefined });
    };
  }

  /** Loads the precision of an artifact on a device, through `downloads`. */
  static async load(library, downloads, { device, precision }, wasm) {
    const { env, AutoProcessor, Qwen3VLForConditionalGeneration } = library;
    env.allowLocalModels = false; // by its word "local" is a path; this way any address will do
    env.remoteHost = downloads.artifact.address;
    env.remotePathTemplate = '.'; // the directory itself, whatever it is called
    env.useBrowserCache = false; // it would keep files by name
    env.fetch = downloads.fetch;
    if (wasm) env.backends.onnx.wasm.wasmPaths = wasm;
    const session_options = SESSION_OPTIONS[device];
    const options = { device, dtype: precision.dtype, session_options, progress_callback: () => {} };
    const [processor, model] = await Promise.all([
      AutoProcessor.from_pretrained(MODEL, options),
      Qwen3VLForConditionalGeneration.from_pretrained(MODEL, options),
    ]);
    return new Model(library, processor, model, mostPixels(precision, device));
  }

  stop() {
    this.#stopping?.interrupt();
  }

  /**
   * Answers the last question of a conversation.
   *
   * `turns` is a list of { question, answer }, the last one without an answer; `picture` is null or { id, blob }, and
   * belongs to the first turn. `onpiece(text)` is given the answer as it grows. Returns the tokens, the seconds to the
   * first one and in all, and the size at which the picture was seen if it was shrunk.
   */
  async answer({ turns, picture }, onpiece) {
    const { InterruptableStoppingCriteria, Tensor, TextStreamer } = this.library;
    const seen = picture && (await this.#read(picture.blob));
    const inputs = await this.processor(this.#prompt(turns, picture), seen?.image ?? null);
    // Without a picture transformers.js continues from a wrong position, unless it is told that there are none.
    inputs.image_grid_thw ??= new Tensor('int64', new BigInt64Array(0), [0, 3]);
    this.#checkLength(inputs.input_ids.dims[1]);

    const start = performance.now();
    const elapsed = () => (performance.now() - start) / 1000;
    const timing = { tokens: 0, first: 0 };
    const streamer = new TextStreamer(this.processor.tokenizer, {
      skip_prompt: true,
      skip_special_tokens: true,
      callback_function: onpiece,
      token_callback_function: () => {
        timing.tokens += 1;
        if (timing.tokens === 1) timing.first = elapsed();
      },
    });
    this.#stopping = new InterruptableStoppingCriteria();
    const { sequences, past_key_values } = await this.model.generate({
      ...inputs,
      ...(await this.#past(inputs.input_ids, picture)),
      max_new_tokens: NEW_TOKENS,
      do_sample: false,
      return_dict_in_generate: true,
      streamer,
      stopping_criteria: this.#stopping,
    });
    this.#held = { ids: [...sequences.data].slice(0, -1), cache: past_key_values, picture: picture?.id };
    return { ...timing, seconds: elapsed(), shrunk: seen?.shrunk ?? null };
  }

  #prompt(turns, picture) {
    if (turns.some(({ question }) => PLACEHOLDERS.test(question))) {
      throw new Fault('A question cannot hold a token of the prompt, such as <|image_pad|>. Write it another way');
    }
    const messages = turns.flatMap(({ question, answer }, index) => {
      const text = { type: 'text', text: question };
      const content = picture && index === 0 ? [{ type: 'image' }, text] : [text];
      const said = { role: 'assistant', content: [{ type: 'text', text: answer }] };
      return [{ role: 'user', content }, ...(answer === undefined ? [] : [said])];
    });
    return this.processor.apply_chat_template(messages, { add_generation_prompt: true });
  }

  #checkLength(tokens) {
    const { max_position_embeddings: limit } = this.model.config.text_config ?? this.model.config;
    if (tokens + NEW_TOKENS > limit) {
      throw new Fault(`The conversation is too long: ${tokens} tokens of ${limit}. Start a new one`);
    }
  }

  /** The keys and values of the last answer, if the prompt goes on from it; else they are freed. */
  async #past(input_ids, picture) {
    const held = this.#held;
    this.#held = null; // the run below frees them, or fails
    if (!held) return {};
    const ids = input_ids.data;
    const begins = held.ids.length < ids.length && held.ids.every((id, index) => id === ids[index]);
    if (begins && held.picture === picture?.id) return { past_key_values: held.cache };
    await held.cache.dispose();
    return {};
  }

  /** The picture on white and within the budget: transformers.js shrinks without smoothing, a canvas does not. */
  async #read(blob) {
    const bitmap = await createImageBitmap(blob);
    const budget = Math.min(this.pixels, this.processor.image_processor.config.size.longest_edge);
    const scale = Math.min(1, Math.sqrt(budget / (bitmap.width * bitmap.height)));
    const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.floor(side * scale)));
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext('2d');
    context.fillStyle = 'white';
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = 'high';
    context.drawImage(bitmap, 0, 0, width, height);
    bitmap.close();
    return { image: this.library.RawImage.fromCanvas(canvas).rgb(), shrunk: scale < 1 ? { width, height } : null };
  }
}
