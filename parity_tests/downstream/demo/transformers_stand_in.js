// A stand-in for transformers.js: it fetches what the real one would, answers without a model, and fails when asked to.
//
// What it answers says what it was given: the questions so far, a picture, the keys and values of an earlier answer; to
// "options", how it was loaded.
// "fail" fails as a run on WebGPU does, after which none returns; "hang" never returns; "long" takes ten seconds, in which
// the thread is free only where the page's own code frees it.

export const env = { backends: { onnx: { wasm: {} } } };

const FILES = ['config.json', 'vision_encoder.onnx_data'];
let broken = false;

const fetchAll = () =>
  Promise.all(
    FILES.map(async (file) => {
      const path = file.endsWith('.json') ? file : `onnx/${file}`;
      const response = await env.fetch(`${env.remoteHost}./${path}`);
      if (response.status !== 200) throw new Error(`${file}: ${response.status}`);
      await response.arrayBuffer();
    }),
  );

export const RawImage = { fromCanvas: ({ width, height }) => ({ rgb: () => ({ width, height }) }) };

export class Tensor {
  constructor(type, data, dims) {
    Object.assign(this, { type, data, dims });
  }
}

export class InterruptableStoppingCriteria {
  interrupted = false;
  interrupt() {
    this.interrupted = true;
  }
}

export class TextStreamer {
  constructor(tokenizer, { callback_function, token_callback_function }) {
    this.put = (text) => {
      token_callback_function();
      callback_function(text);
    };
  }
}

export const AutoProcessor = {
  async from_pretrained() {
    const processor = async (prompt, image) => {
      const data = BigInt64Array.from([...prompt].map((character) => BigInt(character.codePointAt(0))));
      return { input_ids: new Tensor('int64', data, [1, data.length]), prompt, image };
    };
    return Object.assign(processor, {
      tokenizer: {},
      image_processor: { config: { size: { longest_edge: 2 ** 24 } } },
      apply_chat_template: (messages) =>
        messages.map(({ content }) => content.map(({ type, text }) => text ?? type).join('+')).join('|') + '|',
    });
  },
};

class Model {
  config = { max_position_embeddings: 4096 };

  constructor(options) {
    this.options = options;
  }

  async forward() {}

  async generate({ prompt, image, input_ids, past_key_values, streamer, stopping_criteria }) {
    const question = prompt.split('|').at(-2);
    if (broken || question.endsWith('hang')) await new Promise(() => {});
    if (question.endsWith('fail')) {
      broken = true;
      throw new Error('[WebGPU] Kernel "[Guard] checked" failed.\nDetails that nobody reads');
    }
    const { device, dtype, session_options } = this.options;
    const asked = question.endsWith('options') ? JSON.stringify({ device, dtype, session_options }) : prompt;
    const told = asked.replaceAll('|', ' / ').trim();
    const text = `${past_key_values ? 'going on: ' : ''}${told} ${image ? `${image.width}x${image.height}` : ''}`.trim();
    const long = question.endsWith('long');
    for (const piece of long ? Array(2000).fill('word ') : text.split(/(?<= )/)) {
      await this.forward({});
      if (stopping_criteria.interrupted) break;
      streamer.put(piece);
      for (const end = performance.now() + (long ? 5 : 0); performance.now() < end; );
    }
    const answer = [...`${text}|`].map((character) => BigInt(character.codePointAt(0)));
    const sequences = new Tensor('int64', BigInt64Array.from([...input_ids.data, ...answer]), []);
    return { sequences, past_key_values: { dispose: async () => {} } };
  }
}

export const Qwen3VLForConditionalGeneration = {
  async from_pretrained(name, options) {
    await fetchAll();
    return new Model(options);
  },
};
