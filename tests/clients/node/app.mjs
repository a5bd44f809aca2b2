// An application behind a port of a sandbox, in the place of the daemon that would pass requests on to it:
// a page with all that pages have, streams both ways, and WebSockets.

import { createHash } from 'node:crypto'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { deflateSync } from 'node:zlib'

const modules = createRequire(`${process.env.CLIENTS_NODE}/package.json`)
const { WebSocketServer } = modules('ws')

// What the tests want to know about connections that are gone.
const state = { open: 0, aborted: 0, closes: [], pings: 0, requests: 0 }

const page = `<!doctype html>
<html><head><title>waiting</title><link rel="stylesheet" href="assets/style.css"><link rel="icon" href="assets/dot.png">
</head><body><h1>a page</h1><img src="assets/dot.png" alt="dot"><p id="log"></p>
<script src="assets/script.js" type="module"></script></body></html>`

const script = `
const seen = { events: [], messages: [], fetched: null, posted: null, image: false, style: '' }
window.seen = seen
const here = new URL('.', location.href)
seen.style = getComputedStyle(document.querySelector('h1')).color
await document.querySelector('img').decode()
seen.image = document.querySelector('img').naturalWidth === 1
seen.fetched = await (await fetch('data?x=1')).json()
const body = new Uint8Array(300000).fill(7)
seen.posted = await (await fetch('upload', { method: 'POST', body })).json()
await new Promise((done, failed) => {
  const events = new EventSource('events')
  events.onerror = () => failed(new Error('events ended'))
  events.onmessage = (event) => {
    seen.events.push(event.data)
    if (seen.events.length === 5) { events.close(); done() }
  }
})
await new Promise((done, failed) => {
  const socket = new WebSocket(here.href.replace(/^http/, 'ws') + 'ws', ['other', 'chat'])
  socket.binaryType = 'arraybuffer'
  socket.onopen = () => { seen.protocol = socket.protocol; socket.send('hello') ; socket.send(new Uint8Array(200000)) }
  socket.onmessage = (event) => {
    seen.messages.push(typeof event.data === 'string' ? event.data : event.data.byteLength)
    if (seen.messages.length === 2) socket.close(1000, 'enough')
  }
  socket.onclose = (event) => { seen.closed = [event.code, event.wasClean]; done() }
  socket.onerror = () => failed(new Error('the WebSocket failed'))
})
document.title = 'done'
`

// The smallest PNG: one red dot.
function png() {
  const table = Array.from({ length: 256 }, (_, n) => {
    for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1
    return n >>> 0
  })
  const crc = (bytes) => (bytes.reduce((sum, byte) => (sum >>> 8) ^ table[(sum ^ byte) & 255], 0xffffffff) ^ -1) >>> 0
  const chunk = (name, data) => {
    const body = Buffer.concat([Buffer.from(name), data])
    const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)]
    length.writeUInt32BE(data.length)
    sum.writeUInt32BE(crc(body))
    return Buffer.concat([length, body, sum])
  }
  const header = Buffer.from([0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0, 0, 0])
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10])
  const data = deflateSync(Buffer.from([0, 255, 0, 0]))
  return Buffer.concat([signature, chunk('IHDR', header), chunk('IDAT', data), chunk('IEND', Buffer.alloc(0))])
}

const full = (type, body, headers = {}) => (_request, response) => {
  response.writeHead(200, { 'Content-Type': type, 'Content-Length': Buffer.byteLength(body), ...headers })
  response.end(body)
}

async function upload(request, response) {
  const sum = createHash('sha256')
  let bytes = 0
  for await (const piece of request) {
    sum.update(piece)
    bytes += piece.length
  }
  const seen = { bytes, sha256: sum.digest('hex'), chunked: request.headers['transfer-encoding'] === 'chunked' }
  full('application/json', JSON.stringify(seen))(request, response)
}

// Bytes without end, or as many as are asked for; the socket says how fast.
function stream(_request, response, url) {
  let left = Number(url.searchParams.get('bytes') ?? Infinity)
  state.open += 1
  const headers = { 'Content-Type': 'application/octet-stream' }
  if (left !== Infinity) headers['Content-Length'] = left
  response.writeHead(200, headers)
  const piece = Buffer.alloc(64 << 10, 'abcdefgh')
  const more = () => {
    while (left > 0 && !response.destroyed) {
      const length = Math.min(left, piece.length)
      left -= length
      if (!response.write(piece.subarray(0, length))) return
    }
    response.end()
  }
  response.on('drain', more)
  response.on('close', () => {
    state.open -= 1
    if (!response.writableFinished) state.aborted += 1
  })
  more()
}

function events(_request, response, url) {
  response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' })
  let next = 0
  const last = Number(url.searchParams.get('count') ?? Infinity)
  const timer = setInterval(() => {
    response.write(`id: ${next}\ndata: ${next}:${Date.now()}\n\n`)
    next += 1
    if (next >= last) response.end()
  }, 20)
  response.on('close', () => clearInterval(timer))
}

const routes = {
  '/': full('text/html; charset=utf-8', page),
  '/assets/style.css': full('text/css', 'h1 { color: rgb(1, 2, 3) }'),
  '/assets/script.js': full('text/javascript', script),
  '/assets/dot.png': full('image/png', png()),
  '/data': (request, response) => full('application/json', JSON.stringify({
    url: request.url, host: request.headers.host, forwarded: request.headers['x-forwarded-host'],
    key: request.headers['x-daytona-authorization'] ?? null, authorization: request.headers.authorization ?? null,
  }))(request, response),
  '/state': (request, response) => full('application/json', JSON.stringify(state))(request, response),
  '/cookies': (request, response) => {
    response.writeHead(200, [['Set-Cookie', 'a=1; Path=/'], ['Set-Cookie', 'b=2; Path=/'], ['Content-Length', '0']].flat())
    response.end()
  },
  '/seen-cookies': (request, response) => full('text/plain', request.headers.cookie ?? '')(request, response),
  '/moved': (_request, response) => { response.writeHead(307, { Location: 'upload' }); response.end() },
  '/large-headers': full('text/plain', 'ok', { 'X-Large': 'y'.repeat(12000) }),
  '/slow-head': (request, response) => setTimeout(() => full('text/plain', 'late')(request, response), 700),
  '/vnc.html': full('text/html', '<!doctype html><title>vnc</title>'),
  '/upload': upload,
  '/stream': stream,
  '/events': events,
}

const server = createServer((request, response) => {
  state.requests += 1
  const url = new URL(request.url, 'http://guest')
  const path = url.pathname.replace(/^\/proxy\/\d+(?=\/|$)/, '') || '/'
  const route = routes[path]
  // A body that breaks off is the end of that request, not of the server.
  if (route) return Promise.resolve(route(request, response, url)).catch(() => response.destroy())
  response.writeHead(404, { 'Content-Type': 'text/plain' })
  response.end('no such page\n')
})
// Longer than the runner keeps connections, so that it is the runner that ends them.
server.keepAliveTimeout = 120_000

// Autobahn's cases have messages of 65,536 fragments.
const options = { noServer: true, maxPayload: 64 << 20, maxFragments: 0, perMessageDeflate: true }
options.handleProtocols = (offered) => (offered.has('chat') ? 'chat' : false)
const sockets = new WebSocketServer(options)
server.on('upgrade', (request, socket, head) => {
  const url = new URL(request.url, 'http://guest')
  if (url.pathname.endsWith('/refused')) {
    socket.end('HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\nConnection: close\r\n\r\nnot me')
    return
  }
  sockets.handleUpgrade(request, socket, head, (ws) => {
    state.open += 1
    ws.on('close', (code, reason) => { state.open -= 1; state.closes.push([code, reason.toString()]) })
    ws.on('ping', () => { state.pings += 1 })
    ws.on('error', () => {})
    const code = url.searchParams.get('close')
    if (code) return ws.close(Number(code), url.searchParams.get('reason') ?? '')
    if (url.searchParams.has('terminate')) return ws.once('message', () => ws.terminate())
    if (url.searchParams.has('greet')) ws.send('first')
    ws.on('message', (data, binary) => ws.send(data, { binary }))
  })
})
server.listen(Number(process.env.PORT), '0.0.0.0')
