// Faults: what went wrong, as one line that ends with what to do next.

/** An error whose message is meant for the reader of the page. */
export class Fault extends Error {}

const KNOWN = [
  [
    /bad_alloc|out of memory|allocation failed|failed to allocate|SafeInt/i,
    'Memory ran out. Close other tabs, or take a smaller picture or precision',
  ],
  [/device (was |is )?lost|GPUDevice/i, 'The GPU was lost. Try again, or take ?device=wasm'],
  [/no available backend|Failed to fetch dynamically imported module/i, 'onnxruntime-web could not be loaded'],
  [/create a session/i, 'This precision does not load here. Take another one, or another device'],
];

/** One line about anything that was thrown. */
export function explain(error) {
  const text = String(error?.message ?? error).split('\n')[0].slice(0, 300);
  if (error instanceof Fault) return text;
  const advice = KNOWN.find(([pattern]) => pattern.test(text))?.[1];
  return advice ? `${advice} (${text})` : text;
}
