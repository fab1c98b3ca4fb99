// Times and sizes for people.

const UNITS = [["T", 1024 ** 4], ["G", 1024 ** 3], ["M", 1024 ** 2], ["K", 1024]];

/** "1 h 5 min", from seconds. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} days`;
}

/** "2G", from bytes, as the API takes it. */
export function size(bytes) {
  for (const [unit, factor] of UNITS) if (bytes >= factor) return `${+(bytes / factor).toFixed(2)}${unit}`;
  return `${bytes}`;
}

/** "14:05", with the date if it is another day's. */
export function clock(time) {
  const date = new Date(time);
  const sameDay = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], { ...(sameDay ? {} : { dateStyle: "medium" }), timeStyle: "short" });
}

/** How many of what: "1 server", "2 servers". */
export const many = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
