// Takes every event with faye, which jsforce uses, and keeps the last replay id of the channel.
'use strict';

const { performance } = require('node:perf_hooks');
const faye = require('faye');

const [url, channel, count] = process.argv.slice(2);
const events = Number(count);
const client = new faye.Client(`${url}/cometd/66.0`);
client.disable('websocket');
client.setHeader('Authorization', 'Bearer 00Dx0000000BV7z!token');
const markers = {};
client.addExtension({
    outgoing: (message, callback) => {
        if (message.channel === '/meta/subscribe') {
            message.ext = Object.assign({}, message.ext, { replay: { [channel]: -1 } });
        }
        callback(message);
    },
    incoming: (message, callback) => {
        const event = message.data && message.data.event;
        if (event && event.replayId) {
            markers[message.channel] = { date: message.data.payload.CreatedDate, replayId: event.replayId };
        }
        callback(message);
    },
});

let seen = 0;
let wall;
let cpu;

function finish() {
    const took = (performance.now() - wall) / 1000;
    const used = process.cpuUsage(cpu);
    if (markers[channel].replayId !== events) {
        process.exit(4);
    }
    console.log(JSON.stringify({ wall: took, cpu: (used.user + used.system) / 1e6 }));
    process.exit(0);
}

client.subscribe(channel, () => {
    seen += 1;
    if (seen === 1) {
        wall = performance.now();
        cpu = process.cpuUsage();
    } else if (seen === events) {
        finish();
    }
});
