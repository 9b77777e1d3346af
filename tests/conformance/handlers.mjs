/** An ES module as handler file: named exports, and a default object. */
import { readFile } from 'node:fs/promises';

await readFile(new URL(import.meta.url)); // awaits at the top level

export async function onStart(startArgs, ctx) {
  ctx.workerState.greeting = 'hello';
}

export const named = async ({ name }, ctx) => `${ctx.workerState.greeting} ${name}`;

export default { fromDefault: () => 'default' };
