// The CometD project's own server, with what Salesforce adds to it: the token endpoint, the check of the
// token, and the replay extension. A second port takes commands from the tests.
'use strict';

const http = require('http');
const cometd = require('cometd-nodejs-server');

const HOST = '127.0.0.1';
const state = {
    credentials: {
        client_id: 'consumer-key',
        client_secret: 'consumer-secret',
        username: 'user@example.com',
        password: 'password-and-security-token',
        refresh_token: 'refresh-token',
    },
    tokens: new Set(),
    issued: 0,
    httpUnauthorized: false,
    denied: {},
    faults: [],
    requests: [],
    channels: {},
    lastId: 0,
    maxInterval: 40000,
    timeout: 20000,
};
const sockets = new Set();
let bayeux;
let sessions;

function startBayeux() {
    sessions = new Map();
    bayeux = cometd.createCometDServer({
        timeout: state.timeout,
        maxInterval: state.maxInterval,
        sweepPeriod: 97,
        // A client whose goodbye was lost must not be taken for two clients in one browser.
        maxSessionsPerBrowser: -1,
    });
    bayeux.addListener('sessionAdded', (session) => {
        sessions.set(session.id, session);
        session.addListener('removed', () => sessions.delete(session.id));
    });
    bayeux.addListener('subscribed', (channel, session, message) => replay(channel.name, session, message));
    bayeux.addExtension({
        outgoing: (sender, session, message, callback) => {
            if (message.channel === '/meta/handshake' && message.successful) {
                message.ext = Object.assign({}, message.ext, { replay: true });
            }
            callback(undefined, message);
        },
    });
}

function stored(name) {
    if (!state.channels[name]) {
        state.channels[name] = { events: [], ids: new Map(), first: 0 };
    }
    return state.channels[name];
}

function wanted(message) {
    const map = message && message.ext && message.ext.replay;
    return map ? map[message.subscription] : undefined;
}

function replayError(message) {
    const map = message.ext && message.ext.replay;
    if (!map) {
        return null;
    }
    const id = wanted(message);
    if (id === undefined) {
        return `400::The replayId for channel {${message.subscription}} wasn't found using the provided replay ID map {${JSON.stringify(map)}}. Ensure that the channel name you provided in the replay map is valid and matches the channel name used for subscribing.`;
    }
    if (id === -1 || id === -2 || stored(message.subscription).ids.has(id)) {
        return null;
    }
    return `400::The replayId {${id}} you provided was invalid.  Please provide a valid ID, -2 to replay all events, or -1 to replay only new events.`;
}

function replay(name, session, message) {
    const channel = stored(name);
    const id = wanted(message);
    if (id === undefined || id === -1) {
        return;
    }
    const start = id === -2 ? channel.first : channel.ids.get(id) + 1;
    channel.events.slice(start - channel.first).forEach((data) => session.deliver(null, name, data));
}

function publish(events) {
    // All sessions hold their answers back until the last event, so that one answer has them all.
    const all = [...sessions.values()];
    const deliver = (index) => {
        if (index < all.length) {
            all[index].batch(() => deliver(index + 1));
            return;
        }
        events.forEach(([name, data]) => {
            const channel = stored(name);
            channel.ids.set(data.event.replayId, channel.first + channel.events.length);
            channel.events.push(data);
            bayeux.createServerChannel(name).publish(null, data);
        });
    };
    deliver(0);
}

function json(response, status, value) {
    response.writeHead(status, { 'Content-Type': 'application/json' });
    response.end(JSON.stringify(value));
}

function body(request) {
    return new Promise((resolve) => {
        let text = '';
        request.on('data', (chunk) => (text += chunk));
        request.on('end', () => resolve(text));
    });
}

function token(response, text) {
    const form = new URLSearchParams(text);
    const expected = {
        password: ['client_id', 'client_secret', 'username', 'password'],
        refresh_token: ['client_id', 'client_secret', 'refresh_token'],
        client_credentials: ['client_id', 'client_secret'],
    }[form.get('grant_type')];
    if (!expected) {
        json(response, 400, { error: 'unsupported_grant_type', error_description: 'grant type not supported' });
    } else if (!expected.every((name) => form.get(name) === state.credentials[name])) {
        json(response, 400, { error: 'invalid_grant', error_description: 'authentication failure' });
    } else {
        const value = `00D000000000001!node_${++state.issued}`;
        state.tokens.add(value);
        json(response, 200, {
            access_token: value,
            instance_url: `http://${HOST}:${server.address().port}`,
            id: 'https://login.salesforce.com/id/00D000000000001AAA/005000000000001AAA',
            token_type: 'Bearer',
            issued_at: String(Date.now()),
            signature: 'c2lnbmF0dXJl',
        });
    }
}

function unauthorized(response, message) {
    if (state.httpUnauthorized) {
        response.writeHead(401, { 'Content-Type': 'text/html' });
        response.end('<html>Request requires authentication</html>');
        return;
    }
    const reply = { channel: message.channel, id: message.id, successful: false };
    if (message.channel === '/meta/handshake') {
        reply.error = '403::Handshake denied';
        reply.advice = { reconnect: 'none' };
        reply.ext = { sfdc: { failureReason: '401::Authentication invalid' }, replay: true };
    } else {
        reply.error = '401::Authentication invalid';
        reply.advice = { reconnect: 'none', interval: 0 };
    }
    json(response, 200, [reply]);
}

function takeFault(what) {
    const index = state.faults.findIndex((fault) => !fault.on || fault.on === what);
    if (index < 0) {
        return null;
    }
    const fault = state.faults[index];
    fault.times -= 1;
    if (fault.times <= 0) {
        state.faults.splice(index, 1);
    }
    return fault;
}

// Returns whether the request has been dealt with.
function meet(fault, response) {
    const socket = response.socket;
    const end = response.end.bind(response);
    switch (fault.kind) {
        case 'status':
            response.writeHead(fault.status, fault.headers || { 'Content-Type': 'text/html' });
            response.end(fault.body || '<html>error</html>');
            return true;
        case 'hang':
            return true;
        case 'cut before':
            socket.destroy();
            return true;
        case 'cut after':
            response.end = () => {
                socket.destroy();
                response.emit('finish');
            };
            return false;
        case 'truncate':
            response.end = (content) => {
                response.setHeader('Content-Length', Buffer.byteLength(content));
                response.write(content.slice(0, Math.floor(content.length / 2)));
                setImmediate(() => socket.destroy());
                response.emit('finish');
            };
            return false;
        case 'garble':
            response.end = () => end('<html>Please log in</html>');
            return false;
        default:
            throw new Error(`no such fault: ${fault.kind}`);
    }
}

async function handle(request, response) {
    const text = await body(request);
    const path = request.url.split('?')[0];
    if (path.endsWith('/services/oauth2/token')) {
        state.requests.push({ channel: 'token' });
        const fault = takeFault('token');
        if (!fault || !meet(fault, response)) {
            token(response, text);
        }
        return;
    }
    const messages = JSON.parse(text);
    const message = messages[0];
    state.requests.push({ channel: message.channel, messages, cookie: request.headers.cookie });
    const fault = takeFault(message.channel);
    if (fault && fault.delay) {
        await new Promise((resolve) => setTimeout(resolve, fault.delay));
    }
    if (fault && fault.kind && meet(fault, response)) {
        return;
    }
    const value = (request.headers.authorization || '').replace(/^Bearer /, '');
    if (!state.tokens.has(value)) {
        unauthorized(response, message);
        return;
    }
    if (message.channel === '/meta/subscribe' && sessions.has(message.clientId)) {
        const error = state.denied[message.subscription] || replayError(message);
        if (error) {
            const { id, channel, clientId, subscription } = message;
            json(response, 200, [{ id, channel, clientId, subscription, error, successful: false }]);
            return;
        }
    }
    request.body = messages;
    bayeux.handle(request, response);
}

const commands = {
    publish: ({ events }) => publish(events),
    discard: ({ channel, keep }) => {
        const one = stored(channel);
        const count = Math.max(0, one.events.length - (keep || 0));
        one.events.splice(0, count).forEach((data) => one.ids.delete(data.event.replayId));
        one.first += count;
    },
    revoke: () => state.tokens.clear(),
    // Held connects end the way they do when a node of a cluster is gone.
    expire: () => {
        startBayeux();
        sockets.forEach((socket) => socket.destroy());
    },
    disconnect: () => [...sessions.values()].forEach((session) => session.disconnect()),
    cut: () => sockets.forEach((socket) => socket.destroy()),
    deny: ({ channel, error }) => (state.denied[channel] = error),
    fault: (fault) => state.faults.push(Object.assign({ times: 1 }, fault)),
    clear: () => (state.faults = []),
    configure: (options) => {
        Object.assign(state, options);
        startBayeux();
    },
    sessions: () => sessions.size,
    subscriptions: () => [...sessions.values()].flatMap((session) => session.subscriptions.map((one) => one.name)),
    requests: () => state.requests,
    held: () => [...sessions.values()].filter((session) => session._scheduler).length,
};

startBayeux();
const server = http.createServer((request, response) => {
    handle(request, response).catch((error) => {
        console.error(error);
        response.destroy();
    });
});
server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    socket.on('error', () => socket.destroy());
});
const control = http.createServer(async (request, response) => {
    const { command, ...options } = JSON.parse(await body(request));
    const result = commands[command](options);
    json(response, 200, { result: result === undefined ? null : result });
});
server.listen(0, HOST, () => {
    control.listen(0, HOST, () => {
        console.log(JSON.stringify({ port: server.address().port, control: control.address().port }));
    });
});
// The tests hold the other end of the standard input: when they are gone, so is this process.
process.stdin.on('end', () => process.exit(0));
process.stdin.resume();
