// What `early.js` leaves for the modules that come after it.

declare var shoalEarly: { source: EventSource; take(): MessageEvent[] } | undefined;
