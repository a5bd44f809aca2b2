// What stands between users and a runner: the part of Daytona's API that its clients ask for a sandbox, and
// Daytona's proxy, which adds the runner's key to what it forwards. Paths below /sandboxes go on as they are.

import http from 'node:http'
import net from 'node:net'

const [host, port] = process.env.RUNNER.split(':')
const key = `Bearer ${process.env.TOKEN}`
const agent = new http.Agent({ keepAlive: true, maxSockets: 256 })
const own = `http://127.0.0.1:${process.env.PORT}`

const sandbox = (id) => ({
  id, organizationId: 'org', name: id, snapshot: 'ubuntu-base.1', user: 'daytona', env: {}, labels: { 'code-toolbox-language': 'python' }, public: false,
  networkBlockAll: false, kvm: false, target: 'local', cpu: 1, gpu: 0, memory: 1, disk: 1, state: 'started',
  desiredState: 'started', autoStopInterval: 0, autoArchiveInterval: 0, autoDeleteInterval: -1, volumes: [],
  sandboxClass: 'container', createdAt: '2026-01-01T00:00:00Z', updatedAt: '2026-01-01T00:00:00Z', toolboxProxyUrl: `${own}/toolbox`,
})

// Answers of the API; undefined when it knows nothing of it.
function api(path) {
  const one = /^\/api\/sandbox\/([^/]+)$/.exec(path)
  if (one) return sandbox(one[1])
  const preview = /^\/api\/sandbox\/([^/]+)\/ports\/(\d+)\/preview-url$/.exec(path)
  if (preview) {
    const [, id, number] = preview
    return { sandboxId: id, url: `${own}/preview/${number}/${id}`, token: 'preview-token' }
  }
  if (path === '/api/config') return { proxyToolboxUrl: `${own}/toolbox` }
  return undefined
}

// Where a request goes on at the runner.
function target(url) {
  const toolbox = /^\/toolbox\/([^/?]+)(.*)$/.exec(url)
  if (toolbox) return `/sandboxes/${toolbox[1]}/toolbox${toolbox[2]}`
  const preview = /^\/preview\/(\d+)\/([^/?]+)(.*)$/.exec(url)
  if (preview) return `/sandboxes/${preview[2]}/toolbox/proxy/${preview[1]}${preview[3]}`
  return url.startsWith('/sandboxes/') ? url : undefined
}

function withKey(raw) {
  const headers = []
  for (let n = 0; n < raw.length; n += 2) {
    // Clients' own keys are for Daytona's API, and end here.
    const name = raw[n].toLowerCase()
    if (name === 'x-daytona-authorization' || name === 'authorization') continue
    headers.push(raw[n], raw[n + 1])
  }
  return [...headers, 'X-Daytona-Authorization', key]
}

const server = http.createServer((request, response) => {
  const known = api(request.url.split('?')[0])
  if (known) {
    response.writeHead(200, { 'Content-Type': 'application/json' })
    return response.end(JSON.stringify(known))
  }
  const path = target(request.url)
  if (!path) {
    response.writeHead(404, { 'Content-Type': 'application/json' })
    return response.end('{"message":"the front knows no such path"}')
  }
  const onward = http.request({ host, port, agent, method: request.method, path, headers: withKey(request.rawHeaders) })
  onward.on('response', (answer) => {
    response.writeHead(answer.statusCode, answer.rawHeaders)
    response.flushHeaders()
    answer.pipe(response)
    answer.on('error', () => response.destroy())
  })
  onward.on('error', (error) => {
    if (response.headersSent) return response.destroy()
    response.writeHead(599, { 'Content-Type': 'text/plain' })
    response.end(`the front could not reach the runner: ${error.message}`)
  })
  response.on('close', () => onward.destroy())
  request.on('error', () => onward.destroy())
  request.pipe(onward)
})

// From its head on, an upgrade is nobody's but the two ends'.
server.on('upgrade', (request, socket, first) => {
  const path = target(request.url)
  if (!path) return socket.end('HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
  const headers = withKey(request.rawHeaders)
  let head = `${request.method} ${path} HTTP/1.1\r\n`
  for (let n = 0; n < headers.length; n += 2) head += `${headers[n]}: ${headers[n + 1]}\r\n`
  const onward = net.connect({ host, port, allowHalfOpen: true }, () => {
    onward.write(`${head}\r\n`)
    onward.write(first)
    socket.pipe(onward)
    onward.pipe(socket)
  })
  for (const each of [socket, onward]) {
    each.setNoDelay(true)
    each.on('error', () => { socket.destroy(); onward.destroy() })
  }
  socket.on('close', () => onward.destroy())
  onward.on('close', () => socket.destroySoon())
})
server.keepAliveTimeout = 120_000
server.listen(Number(process.env.PORT), '127.0.0.1')
