// Example figures, which show how the page works.

const arc = (x, y, radius, start, turn, grows = 1) =>
  Array.from({ length: 65 }, (_, i) => {
    const [angle, r] = [2 * Math.PI * (start + (turn * i) / 64), radius * (1 + ((grows - 1) * i) / 64)];
    return [x + r * Math.cos(angle), y + r * Math.sin(angle)];
  });

const SETS = [
  [
    [arc(0, 0.2, 0.45, 0.75, 1), [[0, -0.25], [0.25, -0.85]]],
    [[[-0.8, 0.5], [-0.35, -0.5], [0.1, 0.5], [0.5, -0.5], [0.8, 0.3]]],
    [arc(0, 0, 0.1, 0, 2.2, 8)],
    [[[-0.7, -0.7], [0.7, 0.7]], [[0.7, -0.7], [-0.7, 0.7]], [[-0.7, -0.7], [0.7, -0.7]]],
    [[[-0.1, -0.9], [-0.1, 0.4], ...arc(0.25, 0.4, 0.35, 0.5, -0.5)], [[-0.5, -0.4], [0.4, -0.4]]],
  ],
  [
    [[[-0.7, 0.8], [0, -0.8], [0.7, 0.8], [-0.7, 0.8]], arc(0, 0.32, 0.12, 0, 1)],
    [arc(0, -0.4, 0.4, 0.6, 0.75), [[0, 0], [0, 0.85]], [[0, 0.85], [0.05, 0.85]]],
    [[[-0.8, -0.5], [0.8, -0.5]], [[-0.5, 0.1], [0.5, 0.1]], [[-0.2, 0.7], [0.2, 0.7]]],
    [arc(-0.4, 0, 0.4, 0, 1), arc(0.4, 0, 0.4, 0.5, 1)],
    [[[0.5, -0.8], [-0.4, -0.1], [0.5, 0.1], [-0.5, 0.85]]],
  ],
];

const between = (low, high) => low + (high - low) * Math.random();

/** Draws a figure as a hand would: with a random size, place and slant, and not quite even. */
function drawn(figure) {
  const [size, slant, wide, bend, phase] = [
    between(0.26, 0.36), between(-0.15, 0.15), between(0.9, 1.1), between(0.03, 0.06), between(0, 6),
  ];
  const [x0, y0] = [between(0.46, 0.54), between(0.46, 0.54)];
  const place = ([x, y]) => [
    x0 + size * wide * (x + slant * y + bend * Math.sin(2 * y + phase)),
    y0 + size * (y + bend * Math.sin(2.3 * x + phase)),
  ];
  return figure.map((stroke) => finely(stroke).map(place));
}

function finely(stroke) {
  return stroke.flatMap(([x, y], i) => {
    const [u, v] = stroke[i + 1] ?? [x, y];
    const number = Math.max(1, Math.ceil(Math.hypot(u - x, v - y) / 0.08));
    return Array.from({ length: number }, (_, j) => [x + ((u - x) * j) / number, y + ((v - y) * j) / number]);
  });
}

let shown = 0;

/** Returns some figures, drawn once each, and one of them drawn again; different ones each time. */
export function example(number) {
  const set = SETS[shown % SETS.length];
  const first = Math.floor(shown / SETS.length);
  shown += 1;
  const figures = Array.from({ length: number }, (_, i) => set[(first + i) % set.length]);
  return [figures.map(drawn), drawn(figures[Math.floor(Math.random() * number)])];
}
