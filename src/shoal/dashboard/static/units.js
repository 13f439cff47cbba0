// Bytes and seconds for people; the same words as the command line uses.

export function bytes(n) {
  let value = Math.abs(n);
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${value.toFixed(unit === "B" || unit === "KiB" ? 0 : 1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(2)} TiB`;
}

export function seconds(n) {
  if (n < 60) return `${Math.round(n)} s`;
  const minutes = Math.floor(n / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(n % 60)} s`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor(minutes / 60) % 24} h`;
}

export function clock(at) {
  const then = new Date(at * 1000);
  const time = then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  return then.toDateString() === new Date().toDateString() ? time : `${then.toLocaleDateString()} ${time}`;
}
