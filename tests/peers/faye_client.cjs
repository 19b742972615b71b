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
    // faye tells nobody but extensions of the replies to its goodbyes.
    incoming: (message, callback) => {
        callback(message);
        if (message.channel === '/meta/handshake') {
            say('handshake', message.successful && message.ext.replay);
        } else if (message.channel === '/meta/unsubscribe') {
            say('unsubscribed', message.successful);
            client.disconnect();
        } else if (message.channel === '/meta/disconnect') {
            say('disconnected', message.successful);
            process.exit(0);
        }
    },
});
const subscription = client.subscribe(channel, (data) => {
    say('event', data.event.replayId);
    if (data.payload.Last__c) {
        subscription.cancel();
    }
});
subscription.then(() => say('subscribed', true), (error) => say('subscribed', error.message));
setTimeout(() => process.exit(3), 15000);
