// Chromium shows a page of a sandbox: everything it asks for arrives, nothing is complained about.

import assert from 'node:assert/strict'
import { createRequire } from 'node:module'

const modules = createRequire(`${process.env.CLIENTS_NODE}/package.json`)
const { chromium } = modules('playwright-core')
const front = process.env.FRONT_URL
const pages = [`${front}/sandboxes/box/proxy/8080/`, `${front}/sandboxes/box/toolbox/proxy/8080/`, `${front}/preview/8080/box/`]

const context = await chromium.launchPersistentContext(`${process.env.SCRATCH}/profile`, {
  executablePath: '/usr/bin/chromium',
  headless: true,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
})
const version = context.browser()?.version() ?? ''
for (const url of pages) {
  const page = await context.newPage()
  const [complaints, answers] = [[], []]
  page.on('console', (message) => { if (['error', 'warning'].includes(message.type())) complaints.push(message.text()) })
  page.on('pageerror', (error) => complaints.push(error.message))
  page.on('requestfailed', (request) => complaints.push(`${request.url()}: ${request.failure()?.errorText}`))
  page.on('response', (answer) => answers.push([new URL(answer.url()).pathname.slice(new URL(url).pathname.length), answer.status()]))
  const began = performance.now()
  await page.goto(url)
  await page.waitForFunction(() => document.title === 'done', undefined, { timeout: 20_000 }).catch((error) => {
    assert.fail(`${error.message}: ${JSON.stringify({ complaints, answers })}`)
  })
  const took = Math.round(performance.now() - began)
  const seen = await page.evaluate(() => window.seen)
  // An EventSource that the page closes is told as an aborted request.
  const unexpected = complaints.filter((complaint) => !/\/events: net::ERR_ABORTED$/.test(complaint))
  assert.deepEqual(unexpected, [])
  for (const path of ['', 'assets/style.css', 'assets/script.js', 'assets/dot.png', 'data', 'upload', 'events']) {
    assert.ok(answers.some(([got, status]) => got === path && status === 200), `${path} in ${JSON.stringify(answers)}`)
  }
  assert.ok(answers.every(([, status]) => status === 200), JSON.stringify(answers))
  assert.deepEqual([seen.style, seen.image, seen.posted.bytes], ['rgb(1, 2, 3)', true, 300000])
  assert.deepEqual([seen.fetched.url, seen.fetched.key], ['/proxy/8080/data?x=1', null])
  assert.deepEqual(seen.events.map((event) => event.split(':')[0]), ['0', '1', '2', '3', '4'])
  assert.deepEqual([seen.protocol, seen.messages, seen.closed], ['chat', ['hello', 200000], [1000, true]])
  console.log(`chromium ${version}: ${new URL(url).pathname} with ${answers.length} answers, events and a WebSocket in ${took} ms`)
  await page.close()
}

// The remote desktop's page is shown connected and fitted.
const page = await context.newPage()
const redirect = page.waitForResponse((answer) => answer.status() === 302)
await page.goto(`${front}/sandboxes/box/proxy/6080/vnc.html?x=1`)
assert.equal(await (await redirect).headerValue('location'), 'vnc.html?x=1&autoconnect=true&resize=scale')
assert.equal(page.url(), `${front}/sandboxes/box/proxy/6080/vnc.html?x=1&autoconnect=true&resize=scale`)
assert.equal(await page.title(), 'vnc')
console.log('chromium: vnc.html came by its redirect')
await context.close()
