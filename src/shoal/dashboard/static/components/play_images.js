// Pictures for a prompt: scaled down here if they are large, and sent as data URLs.

const SIDE = 1536;
const BYTES = 1.5 * 2 ** 20;
const KINDS = new Set(["image/png", "image/jpeg", "image/webp", "image/gif"]);
export const MOST = 8;

/** @param {File} file @returns {Promise<PlayImage>} Raises Error with what to tell people. */
export async function readImage(file) {
  const name = file.name || "picture";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${name} is no picture that this browser can read.`);
  }
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && file.size <= BYTES && KINDS.has(file.type)) return { name, url: await dataUrl(file) };
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const png = canvas.toDataURL("image/png");
  // A photograph is far smaller as JPEG; a drawing keeps its transparency.
  return { name, url: png.length <= BYTES ? png : canvas.toDataURL("image/jpeg", 0.85) };
}

/** @param {Blob} blob @returns {Promise<string>} */
const dataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(new Error("The picture could not be read."));
    reader.readAsDataURL(blob);
  });

/** @param {DataTransfer | null} data */
export const imagesOf = (data) => [...(data?.files ?? [])].filter((file) => file.type.startsWith("image/"));
