// fetch and undici, as they come with Node and as a package: streams, and requests that are given up.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { createRequire } from 'node:module'
import { setTimeout as pause } from 'node:timers/promises'

const modules = createRequire(`${process.env.CLIENTS_NODE}/package.json`)
const undici = modules('undici')
const base = `${process.env.PORT_URL}`
const headers = { 'X-Daytona-Authorization': `Bearer ${process.env.TOKEN}` }
const STREAM = 64 << 20

async function guest() {
  return (await fetch(`${base}/state`, { headers })).json()
}

async function eventually(what, look) {
  for (const began = Date.now(); Date.now() - began < 20_000; await pause(10)) if (await look()) return
  assert.fail(`${what} did not happen`)
}

async function* pieces(count) {
  for (let n = 0; n < count; n++) yield Buffer.alloc(64 << 10, n)
}

function sumOf(count) {
  const sum = createHash('sha256')
  for (let n = 0; n < count; n++) sum.update(Buffer.alloc(64 << 10, n))
  return sum.digest('hex')
}

async function down(name, get) {
  const began = performance.now()
  let bytes = 0
  for await (const piece of (await get(`${base}/stream?bytes=${STREAM}`, { headers })).body) bytes += piece.length
  assert.equal(bytes, STREAM)
  console.log(`${name}: 64 MiB down in ${Math.round(performance.now() - began)} ms`)
}

async function up(name, post) {
  const began = performance.now()
  const seen = await post(`${base}/upload`)
  assert.deepEqual(seen, { bytes: STREAM, sha256: sumOf(1024), chunked: true })
  console.log(`${name}: 64 MiB up in chunks in ${Math.round(performance.now() - began)} ms`)
}

// What a client gives up must end at the guest, too, and soon.
async function givenUp(name, get) {
  const before = await guest()
  const giveUp = new AbortController()
  const answer = await get(`${base}/stream`, { headers, signal: giveUp.signal })
  let bytes = 0
  await assert.rejects(async () => {
    for await (const piece of answer.body) {
      bytes += piece.length
      if (bytes > 1 << 20) giveUp.abort()
    }
  }, { name: 'AbortError' })
  const began = performance.now()
  await eventually('the guest sees that nobody listens', async () => {
    const now = await guest()
    return now.open === before.open && now.aborted === before.aborted + 1
  })
  console.log(`${name}: a stream given up ended at the guest within ${Math.round(performance.now() - began)} ms`)
}

const byFetch = (url, options) => fetch(url, options)
const byUndici = (url, options) => undici.request(url, options)
await down('fetch', byFetch)
await down('undici.request', byUndici)
await up('fetch', async (url) => (await fetch(url, { method: 'POST', headers, body: pieces(1024), duplex: 'half' })).json())
await up('undici.request', async (url) => (await undici.request(url, { method: 'POST', headers, body: pieces(1024) })).body.json())
await givenUp('fetch', byFetch)
await givenUp('undici.request', byUndici)

// Events come while the answer goes on.
let events = ''
for await (const piece of (await fetch(`${base}/events?count=10`, { headers })).body) events += Buffer.from(piece)
const delays = [...events.matchAll(/^data: \d+:(\d+)$/gm)]
assert.equal(delays.length, 10)
let first
for await (const piece of (await fetch(`${base}/events`, { headers })).body) {
  first = Date.now() - Number(/:(\d+)\n/.exec(Buffer.from(piece))[1])
  break
}
assert.ok(first < 1000, `an event took ${first} ms`)

// One connection, requests one behind the other without waiting.
const client = new undici.Client(new URL(base).origin, { pipelining: 8 })
const path = new URL(base).pathname
const answers = await Promise.all(Array.from({ length: 64 }, (_, n) =>
  client.request({ method: 'GET', path: `${path}/data?n=${n}`, headers }).then((answer) => answer.body.json())))
answers.forEach((answer, n) => assert.equal(answer.url, `/proxy/8080/data?n=${n}`))
await client.close()
console.log('undici: 64 pipelined requests answered in order')

// Many at once, and errors of the guest as they are.
const many = await Promise.all(Array.from({ length: 200 }, () => fetch(`${base}/data`, { headers })))
assert.ok(many.every((answer) => answer.status === 200))
await Promise.all(many.map((answer) => answer.arrayBuffer()))
assert.equal((await fetch(`${base}/no-such-page`, { headers })).status, 404)
const seen = await (await fetch(`${base}/data`, { headers: { ...headers, Authorization: 'Basic dTpw' } })).json()
assert.deepEqual([seen.key, seen.authorization], [null, 'Basic dTpw'])
assert.equal((await (await fetch(`${base}/moved`, { method: 'POST', headers, body: 'abc' })).json()).bytes, 3)
console.log(`node ${process.version}, undici ${modules('undici/package.json').version}: ok`)
