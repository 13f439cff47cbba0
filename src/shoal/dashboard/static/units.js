// Bytes, seconds and rates for people; the same words as the command line uses.

/** @param {number} n */
export function bytes(n) {
  let value = Math.abs(n);
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${value.toFixed(unit === "B" || unit === "KiB" ? 0 : 1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(2)} TiB`;
}

/** @param {number} n */
export function seconds(n) {
  if (n < 60) return `${Math.round(n)} s`;
  const minutes = Math.floor(n / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(n % 60)} s`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor(minutes / 60) % 24} h`;
}

/** A short time, such as one to a first token. @param {number} n */
export const brief = (n) => (n < 1 ? `${Math.round(1000 * n)} ms` : n < 10 ? `${n.toFixed(1)} s` : seconds(n));

/** How long ago, in one unit. @param {number} n */
export function ago(n) {
  if (n < 10) return "now";
  if (n < 60) return `${Math.floor(n)} s ago`;
  if (n < 3600) return `${Math.floor(n / 60)} min ago`;
  if (n < 86400) return `${Math.floor(n / 3600)} h ago`;
  return `${Math.floor(n / 86400)} d ago`;
}

/** @param {number} n */
export const rate = (n) => (n === 0 ? "0" : n < 10 ? n.toFixed(1) : n < 10_000 ? String(Math.round(n)) : `${Math.round(n / 1000)}k`);

/** @param {number} at Unix seconds */
export function clock(at) {
  const then = new Date(at * 1000);
  const time = then.toTimeString().slice(0, 8); // not by locale: what that needs takes a browser 13 ms to make
  return then.toDateString() === new Date().toDateString() ? time : `${then.toLocaleDateString()} ${time}`;
}
