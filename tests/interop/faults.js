// What may go wrong with a request, on its way there, in the server or on its way back.
'use strict';

const HTML = '<html><body>Something is wrong.</body></html>';

// The request never reaches the CometD server.
const BEFORE = {
    status(fault, response) {
        response.writeHead(fault.status || 503, { 'Content-Type': 'text/html', ...fault.headers });
        response.end(fault.body === undefined ? HTML : fault.body);
    },
    // A refusal as a Bayeux message, with fields of its own, and whatever else is to be in the answer.
    reply(fault, response, message) {
        const reply = { channel: message.channel, id: message.id, successful: false, ...fault.reply };
        response.writeHead(fault.status || 200, { 'Content-Type': 'application/json' });
        response.end(JSON.stringify([...(fault.extra || []), reply]));
    },
    hang() {},
    'cut before'(fault, response) {
        response.socket.destroy();
    },
};

// The CometD server takes what it wrote for delivered, and something becomes of it on its way.
const AFTER = {
    'cut after'(fault, response) {
        response.socket.destroy();
    },
    truncate(fault, response, content, end, write) {
        response.setHeader('Content-Length', Buffer.byteLength(content));
        const { socket } = response;
        write(content.slice(0, Math.floor(content.length / 2)), () => socket.destroy());
    },
    // A proxy's answer instead of it.
    replace(fault, response, content, end) {
        response.statusCode = fault.status || 200;
        response.setHeader('Content-Type', fault.type || 'text/html');
        end(fault.body === undefined ? HTML : fault.body);
    },
    'hang after'() {},
    late(fault, response, content, end) {
        setTimeout(() => end(content), fault.delay);
    },
};

class Faults {
    constructor() {
        this.list = [];
    }

    add({ kind, on = null, times = 1, ...options }) {
        if (!BEFORE[kind] && !AFTER[kind] && kind !== 'delay') {
            throw new Error(`no such fault: ${kind}`);
        }
        this.list.push({ kind, on, times, ...options });
    }

    clear() {
        this.list = [];
    }

    // Lets a request meet with the next fault that is meant for it. Tells whether that settled it.
    async meet(name, message, response) {
        const fault = this.take(name);
        if (!fault) {
            return false;
        }
        if (fault.kind === 'delay') {
            await new Promise((resolve) => setTimeout(resolve, fault.delay));
            return false;
        }
        if (BEFORE[fault.kind]) {
            BEFORE[fault.kind](fault, response, message);
            return true;
        }
        spoil(fault, response);
        return false;
    }

    take(name) {
        const index = this.list.findIndex((fault) => !fault.on || fault.on === name);
        if (index < 0) {
            return null;
        }
        const fault = this.list[index];
        fault.times -= 1;
        if (fault.times <= 0) {
            this.list.splice(index, 1);
        }
        return fault;
    }
}

function spoil(fault, response) {
    const end = response.end.bind(response);
    const write = response.write.bind(response);
    const listen = response.addListener.bind(response);
    const finished = [];
    // The CometD server counts the time until the next connect from the end of its answer. What really
    // becomes of that is none of its business.
    response.addListener = (name, listener) => (name === 'finish' ? finished.push(listener) : listen(name, listener));
    response.end = (content) => {
        response.end = end;
        AFTER[fault.kind](fault, response, content || '', end, write);
        finished.forEach((listener) => listener());
    };
}

module.exports = { Faults };
