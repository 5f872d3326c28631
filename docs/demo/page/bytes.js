// Numbers of bytes as texts.

/** `1,234.5`, in units of a million bytes. */
export function megabytes(bytes) {
  return (bytes / 1e6).toLocaleString('en', { minimumFractionDigits: 1, maximumFractionDigits: 1 });
}

/** `9.8 MB` or `2.4 GB`. */
export function bytesText(bytes) {
  return bytes < 1e9 ? `${megabytes(bytes)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}
