// Daytona's own client for Node. Its argument says who the guest is: `simulated` knows fewer calls.

import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { createReadStream, writeFileSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'

const modules = createRequire(`${process.env.CLIENTS_NODE}/package.json`)
const { Daytona } = modules('@daytona/sdk')
const [kind] = process.argv.slice(2)
const front = process.env.FRONT_URL
const passed = []

async function check(name, work) {
  const result = await work()
  passed.push(name)
  return result
}

const daytona = new Daytona({ apiKey: "a-user's-key", apiUrl: `${front}/api`, target: 'local' })
const sandbox = await daytona.get('box')
const home = await check('getUserHomeDir', () => sandbox.getUserHomeDir())
assert.equal(await check('getWorkDir', () => sandbox.getWorkDir()), home)
const executed = await check('process.executeCommand', () => sandbox.process.executeCommand("echo 'hello'; echo $NAME", undefined, { NAME: 'value' }))
assert.deepEqual([executed.exitCode, executed.result], [0, 'hello\nvalue\n'])
await check('fs.createFolder', () => sandbox.fs.createFolder('nodes', '755'))
await sandbox.process.executeCommand('echo content > nodes/one', home)
const listed = await check('fs.listFiles', () => sandbox.fs.listFiles('nodes'))
assert.deepEqual(listed.map((info) => info.name), ['one'])
assert.equal((await check('fs.getFileDetails', () => sandbox.fs.getFileDetails('nodes/one'))).size, 8)
await check('fs.deleteFile', () => sandbox.fs.deleteFile('nodes/one'))
await assert.rejects(sandbox.fs.getFileDetails('nodes/one'))
const preview = await check('getPreviewLink', () => sandbox.getPreviewLink(8080))
assert.ok(preview.url.startsWith(front))

if (kind === 'simulated') {
  const seen = await (await fetch(`${preview.url}/page?x=1`)).json()
  assert.deepEqual([seen.path, seen.query], ['/proxy/8080/page', 'x=1'])
  // The simulated guest has no route for these; its own 404 is what must arrive.
  for (const call of [() => sandbox.fs.uploadFile(Buffer.from('x'), 'up'), () => sandbox.fs.downloadFile('up'),
    () => sandbox.process.codeRun('print(1)'), () => sandbox.process.createSession('s')]) {
    await assert.rejects(call, { statusCode: 404 })
  }
} else {
  const large = randomBytes(32 << 20)
  const local = `${process.env.SCRATCH}/large`
  await check('fs.uploadFile', () => sandbox.fs.uploadFile(large, 'large'))
  const there = (await sandbox.process.executeCommand('sha256sum large')).result.split(' ')[0]
  assert.equal(there, createHash('sha256').update(large).digest('hex'))
  assert.ok(large.equals(await check('fs.downloadFile', () => sandbox.fs.downloadFile('large'))))
  await sandbox.fs.downloadFile('large', local)
  assert.ok(large.equals(readFileSync(local)))
  const pieces = []
  for await (const piece of await check('fs.downloadFileStream', () => sandbox.fs.downloadFileStream('large'))) pieces.push(piece)
  assert.ok(large.equals(Buffer.concat(pieces)))
  writeFileSync(local, large)
  await check('fs.uploadFileStream', () => sandbox.fs.uploadFileStream(createReadStream(local), 'again'))
  assert.equal((await sandbox.fs.getFileDetails('again')).size, large.length)
  await check('fs.moveFiles', () => sandbox.fs.moveFiles('again', 'moved'))

  const run = await check('process.codeRun', () => sandbox.process.codeRun('print(6 * 7)'))
  assert.deepEqual([run.exitCode, run.result], [0, '42\n'])
  await check('process.createSession', () => sandbox.process.createSession('work'))
  const done = await check('process.executeSessionCommand', () =>
    sandbox.process.executeSessionCommand('work', { command: 'echo out; echo err >&2; exit 4' }))
  assert.deepEqual([done.exitCode, done.stdout, done.stderr], [4, 'out\n', 'err\n'])
  const logs = await check('process.getSessionCommandLogs', () => sandbox.process.getSessionCommandLogs('work', done.cmdId))
  assert.deepEqual([logs.stdout, logs.stderr], ['out\n', 'err\n'])
  const command = 'for n in 1 2 3 4 5; do echo $n; echo e$n >&2; sleep 0.1; done'
  const begun = await sandbox.process.executeSessionCommand('work', { command, runAsync: true })
  let [out, err] = ['', '']
  await check('process.getSessionCommandLogs, followed', () =>
    sandbox.process.getSessionCommandLogs('work', begun.cmdId, (text) => { out += text }, (text) => { err += text }))
  assert.deepEqual([out, err], ['1\n2\n3\n4\n5\n', 'e1\ne2\ne3\ne4\ne5\n'])
  await check('process.deleteSession', () => sandbox.process.deleteSession('work'))

  let seen = ''
  const terminal = await check('process.createPty', () =>
    sandbox.process.createPty({ id: 'tty', cols: 80, rows: 24, onData: (data) => { seen += Buffer.from(data) } }))
  await terminal.waitForConnection()
  await terminal.sendInput('tty; echo two$((1 + 1)); exit 7\n')
  const ended = await check('pty.wait', () => terminal.wait())
  assert.ok(seen.includes('/dev/pts/') && seen.includes('two2'), seen)
  assert.equal(ended.exitCode, 7)
}
console.log(`@daytona/sdk ${modules('@daytona/sdk/package.json').version} for Node, ${kind} guest, ${passed.length} calls: ${passed.join(', ')}`)
// Its connection for events is of no use here, and waits.
process.exit(0)
