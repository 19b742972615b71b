// Uses the server as any program on faye does.
'use strict';

const faye = require('faye');

const [url, token, channel, replayId] = process.argv.slice(2);
const client = new faye.Client(url);
client.disable('websocket');
client.setHeader('Authorization', `Bearer ${token}`);
const say = (what, value) => console.log(JSON.stringify({ what, value }));
client.addExtension({
    outgoing: (message, callback) => {
        if (message.channel === '/meta/subscribe') {
            message.ext = Object.assign({}, message.ext, { replay: { [channel]: Number(replayId) } });
        }
        callback(message);
    },
    incoming: (message, callback) => {
        if (message.channel === '/meta/handshake') {
            say('handshake', message.successful && message.ext.replay);
        } else if (message.channel === '/meta/unsubscribe') {
            say('unsubscribed', message.successful);
        } else if (message.channel === '/meta/disconnect') {
            say('disconnected', message.successful);
        }
        callback(message);
    },
});
const subscription = client.subscribe(channel, (data) => {
    say('event', data.event.replayId);
    if (data.payload.Last__c) {
        subscription.cancel();
        // faye tells nobody of the reply to its disconnect but the extension.
        setTimeout(() => Promise.resolve(client.disconnect()).then(() => setTimeout(() => process.exit(0), 300)), 200);
    }
});
subscription.then(() => say('subscribed', true), (error) => say('subscribed', error.message));
setTimeout(() => process.exit(3), 15000);
