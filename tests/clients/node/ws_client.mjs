// The WebSocket client of the package ws, and the one of undici.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createRequire } from 'node:module'

const modules = createRequire(`${process.env.CLIENTS_NODE}/package.json`)
const WebSocket = modules('ws')
const undici = modules('undici')
const url = process.env.PORT_URL.replace(/^http/, 'ws') + '/ws'
const headers = { 'X-Daytona-Authorization': `Bearer ${process.env.TOKEN}` }
const options = { headers, maxPayload: 64 << 20 }

async function echo(socket, data) {
  socket.send(data)
  const [message, binary] = await once(socket, 'message')
  assert.equal(binary, typeof data !== 'string')
  assert.ok(Buffer.from(data).equals(message))
}

for (const perMessageDeflate of [true, false]) {
  const socket = new WebSocket(url, ['other', 'chat'], { ...options, perMessageDeflate })
  await once(socket, 'open')
  assert.equal(socket.protocol, 'chat')
  assert.equal(socket.extensions, perMessageDeflate ? 'permessage-deflate' : '')
  for (const data of ['text', '', 'ü'.repeat(1000), Buffer.from([0, 1, 2]), Buffer.alloc(0)]) await echo(socket, data)
  const began = performance.now()
  await echo(socket, Buffer.alloc(8 << 20, 'random enough'))
  console.log(`ws: 8 MiB there and back${perMessageDeflate ? ', deflated,' : ''} in ${Math.round(performance.now() - began)} ms`)
  socket.ping('alive?')
  assert.equal(String((await once(socket, 'pong'))[0]), 'alive?')
  // In pieces, as a sender does that does not know the end yet.
  socket.send('one ', { fin: false })
  socket.send('two', { fin: true })
  assert.equal(String((await once(socket, 'message'))[0]), 'one two')
  socket.close(3001, 'enough')
  const [code, reason] = await once(socket, 'close')
  assert.deepEqual([code, String(reason)], [3001, 'enough'])
}

// Closes by the guest, in order and not.
for (const code of [1000, 1001, 1008, 1011, 4000]) {
  const socket = new WebSocket(`${url}?close=${code}&reason=because%20of%20it`, options)
  const [got, reason] = await once(socket, 'close')
  assert.deepEqual([got, String(reason)], [code, 'because of it'])
}
const cut = new WebSocket(`${url}?terminate=1`, options)
await once(cut, 'open')
cut.send('now')
assert.equal((await once(cut, 'close'))[0], 1006)

// What the guest sends right behind its head.
const greeted = new WebSocket(`${url}?greet=1`, options)
assert.equal(String((await once(greeted, 'message'))[0]), 'first')
greeted.terminate()

// The guest's refusal is the guest's, the runner's the runner's.
const refused = new WebSocket(url.replace(/ws$/, 'refused'), options)
const [, answer] = await once(refused, 'unexpected-response')
assert.equal(answer.statusCode, 403)
let text = ''
for await (const piece of answer) text += piece
assert.equal(text, 'not me')
const stranger = new WebSocket(url)
assert.equal((await once(stranger, 'unexpected-response'))[1].statusCode, 401)

// A hundred that talk at once.
const sockets = await Promise.all(Array.from({ length: 100 }, async () => {
  const socket = new WebSocket(url, options)
  await once(socket, 'open')
  return socket
}))
await Promise.all(sockets.map((socket, n) => echo(socket, `I am ${n}`)))
await Promise.all(sockets.map((socket) => { socket.close(); return once(socket, 'close') }))

// undici's is a browser's.
const browsers = new undici.WebSocket(url, { protocols: ['chat'], headers })
browsers.binaryType = 'arraybuffer'
await once(browsers, 'open')
for (const data of ['text', new Uint8Array(1 << 20)]) {
  browsers.send(data)
  const [event] = await once(browsers, 'message')
  assert.equal(event.data.byteLength ?? event.data, data.byteLength ?? data)
}
browsers.close(4002, 'done')
const [closed] = await once(browsers, 'close')
assert.deepEqual([closed.code, closed.wasClean], [4002, true])

const state = await (await fetch(`${process.env.PORT_URL}/state`, { headers })).json()
assert.ok(state.closes.some(([code, reason]) => code === 3001 && reason === 'enough'), JSON.stringify(state))
assert.ok(state.closes.some(([code]) => code === 1006), 'a client that is cut off is so for the guest')
assert.equal(state.pings, 2)
console.log(`ws ${modules('ws/package.json').version}: ok`)
process.exit(0)
