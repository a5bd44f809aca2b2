// The toolbox of a sandbox as far as Daytona's own clients use it, with real files and processes, in the place of a
// guest: for those of their calls that the simulated guest does not know.

import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import fs from 'node:fs/promises'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import path from 'node:path'

const modules = createRequire(`${process.env.CLIENTS_NODE}/package.json`)
const { WebSocketServer } = modules('ws')
const home = process.env.HOME
const sessions = new Map()
const at = (name) => path.resolve(home, name ?? '.')

// Runs a command to its end; `heard` is told each piece, 1 for stdout and 2 for stderr.
function run(program, args, { cwd, envs, input }, heard = () => {}) {
  const child = spawn(program, args, { cwd: at(cwd), env: { ...process.env, ...envs } })
  const result = { output: '', stdout: '', stderr: '', exitCode: null }
  for (const [mark, name] of [[1, 'stdout'], [2, 'stderr']]) {
    child[name].on('data', (piece) => { result[name] += piece; result.output += piece; heard(mark, piece) })
  }
  child.stdin.end(input)
  const done = new Promise((resolve) => child.on('close', (code) => { result.exitCode = code ?? 137; resolve(result) }))
  return { child, result, done }
}

async function information(name) {
  const found = await fs.stat(name)
  const time = found.mtime.toISOString()
  return {
    name: path.basename(name), path: name, size: found.size, isDir: found.isDirectory(), mode: `-${(found.mode & 0o777).toString(8)}`,
    permissions: `0${(found.mode & 0o777).toString(8)}`, modTime: time, modifiedAt: time, owner: 'daytona', group: 'daytona',
  }
}

// The parts of a multipart body: name and content of each.
function parts(type, body) {
  const mark = Buffer.from(`--${/boundary="?([^";]+)/.exec(type)[1]}`)
  const found = []
  for (let from = body.indexOf(mark); ;) {
    const next = body.indexOf(mark, from + mark.length)
    if (next < 0) return found
    const part = body.subarray(from + mark.length + 2, next - 2)
    const end = part.indexOf('\r\n\r\n')
    found.push({ name: /name="([^"]*)"/.exec(part.subarray(0, end).toString())[1], content: part.subarray(end + 4) })
    from = next
  }
}

async function bulkUpload({ headers, body }) {
  const [paths, files] = [{}, {}]
  for (const { name, content } of parts(headers['content-type'], body)) {
    const [, number, kind] = /^files\[(\d+)\]\.(path|file)$/.exec(name)
    if (kind === 'path') paths[number] = at(content.toString())
    else files[number] = content
  }
  for (const [number, content] of Object.entries(files)) await fs.writeFile(paths[number], content)
  return {}
}

async function bulkDownload({ json }, response) {
  const boundary = randomUUID()
  response.writeHead(200, { 'Content-Type': `multipart/form-data; boundary=${boundary}` })
  for (const name of json.paths) {
    let [kind, type, content] = ['file', 'application/octet-stream']
    try {
      content = await fs.readFile(at(name))
    } catch (error) {
      [kind, type] = ['error', 'application/json']
      content = Buffer.from(JSON.stringify({ message: `${name}: ${error.code}`, statusCode: 404, code: 'FILE_NOT_FOUND' }))
    }
    const disposition = `form-data; name="${kind}"; filename="${name}"`
    response.write(`--${boundary}\r\nContent-Disposition: ${disposition}\r\nContent-Type: ${type}\r\n`)
    response.write(`Content-Length: ${content.length}\r\n\r\n`)
    response.write(content)
    response.write('\r\n')
  }
  response.end(`--${boundary}--\r\n`)
}

async function sessionExec({ match: [, id], json }) {
  const session = known(id)
  const command = { id: randomUUID(), command: json.command, heard: [], listeners: new Set() }
  const { result, done } = run('sh', ['-c', json.command], {}, (mark, piece) => {
    const message = Buffer.concat([Buffer.from([mark, mark, mark]), piece])
    command.heard.push(message)
    for (const listener of command.listeners) listener.send(message)
  })
  command.result = result
  command.done = done.then(() => { for (const listener of command.listeners) listener.close(1000) })
  session.commands.push(command)
  if (json.runAsync || json.async) return { cmdId: command.id }
  await command.done
  return { cmdId: command.id, ...result }
}

const refusal = (status, message) => Object.assign(new Error(message), { status })

function known(id) {
  const session = sessions.get(id)
  if (!session) throw refusal(404, `session ${id} not found`)
  return session
}

function commandOf([, id, number]) {
  const command = known(id).commands.find((each) => each.id === number)
  if (!command) throw refusal(404, `command ${number} not found`)
  return command
}

const commandView = ({ id, command, result }) => ({ id, command, ...(result.exitCode === null ? {} : { exitCode: result.exitCode }) })
const sessionView = ([sessionId, session]) => ({ sessionId, commands: session.commands.map(commandView) })
const interpreters = { python: ['python3', '-c'], javascript: ['node', '-e'], typescript: ['node', '-e'] }

async function codeRun({ json }) {
  const [program, flag] = interpreters[json.language]
  const { output, exitCode } = await run(program, [flag, json.code, ...(json.argv ?? [])], { envs: json.envs }).done
  return { exitCode, result: output, artifacts: { charts: [] } }
}

const routes = [
  ['GET', /^\/version$/, () => ({ version: '0.0.0-test' })],
  ['GET', /^\/(work-dir|user-home-dir)$/, () => ({ dir: home })],
  ['POST', /^\/process\/execute$/, async ({ json }) => {
    const { output, exitCode } = await run('sh', ['-c', json.command], json).done
    return { exitCode, result: output }
  }],
  ['POST', /^\/process\/code-run$/, codeRun],
  ['POST', /^\/process\/session$/, ({ json }) => { sessions.set(json.sessionId, { commands: [] }); return [201] }],
  ['GET', /^\/process\/session$/, () => [...sessions].map(sessionView)],
  ['GET', /^\/process\/session\/([^/]+)$/, ({ match }) => sessionView([match[1], known(match[1])])],
  ['DELETE', /^\/process\/session\/([^/]+)$/, ({ match }) => { known(match[1]); sessions.delete(match[1]); return [204] }],
  ['POST', /^\/process\/session\/([^/]+)\/exec$/, sessionExec],
  ['GET', /^\/process\/session\/([^/]+)\/command\/([^/]+)$/, ({ match }) => commandView(commandOf(match))],
  ['GET', /^\/process\/session\/([^/]+)\/command\/([^/]+)\/logs$/, ({ match }) => commandOf(match).result],
  ['GET', /^\/files$/, async ({ query }) => {
    const names = await fs.readdir(at(query.get('path')))
    return Promise.all(names.map((name) => information(path.join(at(query.get('path')), name))))
  }],
  ['DELETE', /^\/files$/, async ({ query }) => { await fs.rm(at(query.get('path')), { recursive: true }); return [204] }],
  ['GET', /^\/files\/info$/, ({ query }) => information(at(query.get('path')))],
  ['POST', /^\/files\/folder$/, async ({ query }) => { await fs.mkdir(at(query.get('path')), { recursive: true }); return [201] }],
  ['POST', /^\/files\/move$/, async ({ query }) => { await fs.rename(at(query.get('source')), at(query.get('destination'))); return [200] }],
  ['POST', /^\/files\/permissions$/, async ({ query }) => { await fs.chmod(at(query.get('path')), parseInt(query.get('mode'), 8)); return [200] }],
  ['GET', /^\/files\/find$/, async ({ query }) => {
    const { stdout } = await run('grep', ['-rn', query.get('pattern'), at(query.get('path'))], {}).done
    return stdout.trim().split('\n').map((line) => /^([^:]+):(\d+):(.*)$/.exec(line))
      .map(([, file, line, content]) => ({ file, line: Number(line), content }))
  }],
  ['POST', /^\/files\/bulk-upload$/, bulkUpload],
  ['POST', /^\/files\/bulk-download$/, bulkDownload],
]

async function answer(request, response) {
  const url = new URL(request.url, 'http://guest')
  const pieces = []
  for await (const piece of request) pieces.push(piece)
  const body = Buffer.concat(pieces)
  for (const [method, pattern, handle] of routes) {
    const match = method === request.method && pattern.exec(decodeURIComponent(url.pathname))
    if (!match) continue
    const json = request.headers['content-type']?.startsWith('application/json') && body.length ? JSON.parse(body) : {}
    const result = await handle({ match, json, body, query: url.searchParams, headers: request.headers }, response)
    if (response.headersSent) return
    // A single number is a status without a body.
    if (Array.isArray(result) && result.length === 1 && typeof result[0] === 'number') {
      response.writeHead(result[0], { 'Content-Length': 0 })
      return response.end()
    }
    response.writeHead(200, { 'Content-Type': 'application/json; charset=utf-8' })
    return response.end(JSON.stringify(result))
  }
  throw refusal(404, '404 page not found')
}

const server = createServer((request, response) => {
  answer(request, response).catch((error) => {
    if (response.headersSent) return response.destroy()
    const status = error.status ?? (error.code === 'ENOENT' ? 404 : 500)
    response.writeHead(status, { 'Content-Type': 'application/json' })
    response.end(JSON.stringify({ statusCode: status, message: error.message, code: status === 404 ? 'NOT_FOUND' : 'ERROR' }))
  })
})
server.keepAliveTimeout = 120_000

const options = { noServer: true, handleProtocols: (offered) => [...offered][0] }
const sockets = new WebSocketServer(options)

// A terminal: util-linux's script gives a program a pty.
function terminal(ws, query) {
  const child = spawn('script', ['--quiet', '--return', '--command', 'sh', '/dev/null'], { cwd: home })
  ws.send(JSON.stringify({ type: 'control', status: 'connected', sessionId: query.get('id') }))
  child.stdout.on('data', (piece) => ws.send(piece))
  ws.on('message', (data) => child.stdin.write(data))
  ws.on('close', () => child.kill())
  child.on('close', (exitCode) => {
    ws.send(JSON.stringify({ type: 'control', status: 'exited', exitCode }))
    ws.close(1000, JSON.stringify({ exitCode }))
  })
}

function follow(ws, command) {
  for (const message of command.heard) ws.send(message)
  if (command.result.exitCode !== null) return ws.close(1000)
  command.listeners.add(ws)
  ws.on('close', () => command.listeners.delete(ws))
}

server.on('upgrade', (request, socket, head) => {
  const url = new URL(request.url, 'http://guest')
  const logs = /^\/process\/session\/([^/]+)\/command\/([^/]+)\/logs$/.exec(url.pathname)
  const known = logs || url.pathname === '/process/pty/create-connect'
  if (!known) return socket.end('HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
  sockets.handleUpgrade(request, socket, head, (ws) => (logs ? follow(ws, commandOf(logs)) : terminal(ws, url.searchParams)))
})
server.listen(Number(process.env.PORT), '0.0.0.0')
