// Serves the token endpoint and the CometD server as Salesforce does, and on a second port takes
// commands from the tests.
'use strict';

const http = require('http');
const { Faults } = require('./faults');
const { Login } = require('./login');
const { Streaming } = require('./streaming');

const HOST = '127.0.0.1';
const MAX_REQUEST_BYTES = 32768;
const UNKNOWN_CLIENT = {
    error: '403::Unknown client',
    successful: false,
    advice: { interval: 0, reconnect: 'handshake' },
};

const sockets = new Set();
let url;
let login;
let streaming;
let faults;
// How this server differs from the CometD project's own.
let manner;
// How often the load balancer has sent the clients elsewhere.
let routes;
// What has happened, for the tests to look at.
let requests;
let violations;
let failures;
// How many connects of a client id are being answered.
let connects;

function reset() {
    if (streaming) {
        streaming.close();
    }
    sockets.forEach((socket) => socket.destroy());
    login = new Login(url);
    streaming = new Streaming();
    faults = new Faults();
    manner = {
        // Refuse tokens with the HTTP status 401 and a page.
        unauthorizedPages: false,
        // Set a routing cookie and answer in Salesforce's words instead of CometD's.
        salesforce: false,
    };
    routes = 0;
    requests = [];
    violations = [];
    failures = [];
    connects = new Map();
}

// Real ones look so: characters that some libraries put in quotes.
function routingCookie() {
    return `sfdc-stream=!//QiKCtgRz/8Ow+${routes}==`;
}

function json(response, status, value) {
    response.writeHead(status, { 'Content-Type': 'application/json' });
    response.end(JSON.stringify(value));
}

function page(response, status, text) {
    response.writeHead(status, { 'Content-Type': 'text/html' });
    response.end(`<html><body>${text}</body></html>`);
}

function read(request) {
    return new Promise((resolve, reject) => {
        const chunks = [];
        request.on('data', (chunk) => chunks.push(chunk));
        request.on('end', () => resolve(Buffer.concat(chunks).toString()));
        request.on('error', reject);
    });
}

async function handle(request, response) {
    const text = await read(request);
    const path = request.url.split('?')[0];
    if (path === '/services/oauth2/token') {
        await answerLogin(request, response, text);
    } else if (path === '/cometd' || path.startsWith('/cometd/')) {
        await answerCometd(request, response, text, path);
    } else {
        page(response, 404, 'URL No Longer Exists');
    }
}

async function answerLogin(request, response, text) {
    requests.push({ channel: 'token', host: request.headers.host });
    if (!(await faults.meet('token', {}, response))) {
        json(response, ...login.answer(request.method, text));
    }
}

async function answerCometd(request, response, text, path) {
    if (Buffer.byteLength(text) > MAX_REQUEST_BYTES) {
        page(response, 413, 'Maximum Request Size Exceeded');
        return;
    }
    const messages = JSON.parse(text);
    const [message] = messages;
    note(request, messages);
    watch(response, message);
    if (await faults.meet(message.channel, message, response)) {
        return;
    }
    const version = versionError(path);
    if (version) {
        json(response, 400, [{ channel: message.channel, id: message.id, error: version, successful: false }]);
        return;
    }
    const unauthorized = login.refusal(request.headers.authorization);
    if (unauthorized) {
        refuse(response, message, unauthorized);
        return;
    }
    if (manner.salesforce && !isRouted(request, response, message)) {
        return;
    }
    if (message.channel === '/meta/subscribe' && streaming.sessions.has(message.clientId)) {
        const error = streaming.refusal(message);
        if (error) {
            const { id, channel, clientId, subscription } = message;
            json(response, 200, [{ id, channel, clientId, subscription, error, successful: false }]);
            return;
        }
    }
    request.body = messages;
    streaming.server.handle(request, response);
}

function note(request, messages) {
    const { cookie, host } = request.headers;
    requests.push({ channel: messages[0].channel, messages, cookie: cookie || '', host });
    if (messages.length !== 1) {
        violations.push(`${messages.length} messages in one request`);
    }
    if (cookie && cookie.includes('"')) {
        violations.push(`a cookie in quotes: ${cookie}`);
    }
}

// A client has one connect at a time.
function watch(response, message) {
    if (message.channel !== '/meta/connect') {
        return;
    }
    const { clientId } = message;
    const count = (connects.get(clientId) || 0) + 1;
    connects.set(clientId, count);
    if (count > 1) {
        violations.push(`${count} connects of ${clientId} at once`);
    }
    response.on('close', () => connects.set(clientId, connects.get(clientId) - 1));
}

function versionError(path) {
    const version = path.split('/')[2];
    if (!version) {
        return "400::API version in the URI is mandatory. URI format: '/cometd/66.0'";
    }
    if (!/^\d+\.0$/.test(version) || Number(version) < 37) {
        return "400::Unsupported API version. Only API versions '37.0' and later are supported. URI format: '/cometd/66.0'";
    }
    return null;
}

function refuse(response, message, error) {
    if (manner.unauthorizedPages) {
        page(response, 401, 'Request requires authentication');
    } else if (error.includes('requires')) {
        json(response, 401, [{ error, successful: false }]);
    } else if (message.channel === '/meta/handshake') {
        json(response, 200, [
            {
                ext: { sfdc: { failureReason: error }, replay: true, 'payload.format': true },
                advice: { reconnect: 'none' },
                channel: message.channel,
                id: message.id,
                error: '403::Handshake denied',
                successful: false,
            },
        ]);
    } else {
        const { clientId, channel, id } = message;
        // Salesforce was seen to answer with a number where the request had a text.
        const advice = { reconnect: 'none', interval: 0 };
        json(response, 200, [{ clientId, advice, channel, id: Number(id), error, successful: false }]);
    }
}

// The load balancer sends requests without its cookie to some other server, which knows of no session.
function isRouted(request, response, message) {
    const cookies = (request.headers.cookie || '').split('; ');
    if (message.channel === '/meta/handshake') {
        const set = response.setHeader.bind(response);
        const all = (name, value) => (name === 'Set-Cookie' ? [value, `${routingCookie()}; path=/`] : value);
        response.setHeader = (name, value) => set(name, all(name, value));
        set('Set-Cookie', `${routingCookie()}; path=/`);
        return true;
    }
    const { clientId } = message;
    if (!cookies.includes(routingCookie()) || !streaming.sessions.has(clientId)) {
        response.setHeader('Set-Cookie', `${routingCookie()}; path=/`);
        json(response, 200, [UNKNOWN_CLIENT]);
        return false;
    }
    if (!cookies.some((cookie) => cookie.startsWith('BAYEUX_BROWSER='))) {
        const error = `400::Client ${clientId} has established a session, but no BAYEUX_BROWSER cookie present`;
        json(response, 200, [{ channel: message.channel, id: message.id, clientId, error, successful: false }]);
        return false;
    }
    return true;
}

const cut = () => sockets.forEach((socket) => socket.destroy());

const commands = {
    reset: async () => {
        reset();
        if (!server.listening) {
            await commands.up();
        }
    },
    publish: ({ events }) => streaming.publish(events),
    discard: ({ channel, keep }) => streaming.store(channel).discard(keep),
    deny: ({ channel, error }) => streaming.denied.set(channel, error),
    limit: ({ channels }) => (streaming.existing = channels),
    revoke: () => login.revoke(),
    expire: () => streaming.expire(),
    restart: () => {
        streaming.start();
        cut();
    },
    reroute: () => (routes += 1),
    down: () =>
        new Promise((resolve) => {
            streaming.start();
            server.close(resolve);
            cut();
        }),
    up: () => new Promise((resolve) => server.listen(Number(new URL(url).port), HOST, resolve)),
    disconnect: () => streaming.disconnect(),
    cut,
    fault: (fault) => faults.add(fault),
    clear: () => faults.clear(),
    behave: (options) => {
        Object.assign(manner, options);
    },
    login: (options) => {
        Object.assign(login.settings, options);
    },
    cometd: (options) => {
        Object.assign(streaming.options, options);
        streaming.start();
    },
    sessions: () => streaming.sessions.size,
    subscriptions: () => streaming.subscriptions,
    held: () => streaming.held,
    requests: () => requests,
    violations: () => violations,
    failures: () => failures,
    unmet: () => faults.list,
    wait,
};

// Answers when a command gives the wanted result, or with what it gave at last.
async function wait({ what, wanted, seconds }) {
    const deadline = Date.now() + seconds * 1000;
    for (;;) {
        const found = commands[what]({});
        if (JSON.stringify(found) === JSON.stringify(wanted) || Date.now() > deadline) {
            return found;
        }
        await new Promise((resolve) => setTimeout(resolve, 5));
    }
}

const server = http.createServer((request, response) => {
    handle(request, response).catch((failure) => {
        failures.push(failure.stack);
        response.destroy();
    });
});
server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    socket.on('error', () => socket.destroy());
});

const control = http.createServer(async (request, response) => {
    try {
        const { command, ...options } = JSON.parse(await read(request));
        const result = await commands[command](options);
        json(response, 200, result === undefined || typeof result === 'function' ? null : result);
    } catch (failure) {
        json(response, 500, failure.stack);
    }
});

server.listen(0, HOST, () => {
    url = `http://${HOST}:${server.address().port}`;
    reset();
    control.listen(0, HOST, () => {
        console.log(JSON.stringify({ url, control: `http://${HOST}:${control.address().port}` }));
    });
});
// The tests hold the other end of the standard input: when they are gone, so is this process.
process.stdin.on('end', () => process.exit(0));
process.stdin.resume();
