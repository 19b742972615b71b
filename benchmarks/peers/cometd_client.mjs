// Takes every event with the CometD project's own client and keeps the last replay id of the channel.
import { performance } from 'node:perf_hooks';
import { adapt } from 'cometd-nodejs-client';
import { CometD } from 'cometd';

const [url, channel, count] = process.argv.slice(2);
const events = Number(count);
adapt();
const client = new CometD();
client.unregisterTransport('websocket');
client.configure({
    url: `${url}/cometd/66.0`,
    requestHeaders: { Authorization: 'Bearer 00Dx0000000BV7z!token' },
    logLevel: 'warn',
});
const markers = {};
client.registerExtension('replay', {
    outgoing: (message) => {
        if (message.channel === '/meta/handshake') {
            message.ext = Object.assign({}, message.ext, { replay: true });
        } else if (message.channel === '/meta/subscribe') {
            message.ext = Object.assign({}, message.ext, { replay: { [channel]: -1 } });
        }
        return message;
    },
    incoming: (message) => {
        const event = message.data && message.data.event;
        if (event && event.replayId) {
            markers[message.channel] = { date: message.data.payload.CreatedDate, replayId: event.replayId };
        }
        return message;
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
    client.disconnect(() => process.exit(0));
}

client.handshake((reply) => {
    if (!reply.successful) {
        process.exit(5);
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
});
